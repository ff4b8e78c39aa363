"""Views of a picture: crops and zooms at random places, the same for every picture of a size.

A set that is trained as many views of itself varies only in its framing: the recipe "framing" of the method.
Its changed pictures are cut in exactly the same way: the places depend on nothing but size and seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from copier.images.pairs import SIDE_MULTIPLE
from copier.images.sizes import Size
from copier.recipe import PictureSet

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are outside."""


@dataclass(frozen=True)
class View:
    """A part of a picture: the ``box``, scaled to ``size`` (a crop where that is the box's own)."""

    box: Box
    size: Size

    @property
    def zoom(self) -> float:
        """How many times larger than in the picture it is shown."""
        return self.size[0] / (self.box[2] - self.box[0])

    def __str__(self) -> str:
        left, top, right, bottom = self.box
        shown = f"{right - left} x {bottom - top} px at {left}, {top}"
        return shown if self.zoom == 1.0 else f"{shown}, zoom {self.zoom:.2f}"


def views(size: Size, count: int, *, nearest: float, seed: int) -> tuple[View, ...]:
    """``count`` views of a picture of that size (width and height, multiples of 64): all of it first.

    Then crops and zooms by turns. A crop is not scaled; its sides are multiples of 64, at least the share
    ``nearest`` of the picture's, and one of them is less. A zoom shows as large a share of both sides,
    scaled to the picture's size (Lanczos). A picture too small for a crop has zooms only.
    """
    draw = np.random.default_rng(seed)
    found = [View((0, 0, *size), size)]
    sides = [[side for side in range(SIDE_MULTIPLE, whole + 1, SIDE_MULTIPLE) if side >= nearest * whole]
             for whole in size]  # fmt: skip
    crops = [(width, height) for width in sides[0] for height in sides[1] if (width, height) != size]
    while len(found) < count:
        if crops and len(found) % 2:
            part = crops[draw.integers(len(crops))]
            found.append(View(_placed(part, size, draw), part))
        else:
            share = draw.uniform(nearest, 1.0)
            part = max(1, round(share * size[0])), max(1, round(share * size[1]))
            found.append(View(_placed(part, size, draw), size))
    return tuple(found[:count])


def views_of(spec: PictureSet, size: Size, place: int) -> tuple[View, ...]:
    """The views that a set has of the picture at that place, from 0, of the set that it is made from.

    Every picture has places of its own. A set without views has the picture as it is.
    """
    if not spec.views:
        return (View((0, 0, *size), size),)
    return views(size, spec.views, nearest=spec.nearest, seed=spec.views_seed + place)


def _placed(part: Size, whole: Size, draw: np.random.Generator) -> Box:
    left, top = (int(draw.integers(w - p + 1)) for p, w in zip(part, whole, strict=True))
    return left, top, left + part[0], top + part[1]


def seen(image: Image.Image, view: View) -> Image.Image:
    """What the view shows of the picture."""
    part = image.crop(view.box)
    return part if part.size == view.size else part.resize(view.size, Image.Resampling.LANCZOS)
