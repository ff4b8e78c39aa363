"""Sizes of pictures, (width, height) in pixels: a set may have several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image

from copier.images.effects import Picture, Pictures

Size = tuple[int, int]
"""Width and height in pixels."""

Made = TypeVar("Made")


def size_of(picture: Picture) -> Size:
    """The size of an array (height, width, 3)."""
    return picture.shape[1], picture.shape[0]


def file_sizes(paths: Iterable[Path]) -> list[Size]:
    """The sizes of picture files of the program's own, which are upright; only their headers are read."""
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    return sizes


def by_size(sizes: Iterable[Size]) -> dict[Size, list[int]]:
    """The places, from 0, at which each size stands; the sizes in the order in which they come first."""
    found: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes):
        found.setdefault(size, []).append(place)
    return found


def in_stacks(pictures: Pictures, make: Callable[[Sequence[Picture]], Iterable[Made]]) -> list[Made]:
    """What ``make`` makes of each of the pictures, which it gets by size: all of one size at once."""
    made: dict[int, Made] = {}
    for places in by_size(map(size_of, pictures)).values():
        made.update(zip(places, make([pictures[place] for place in places]), strict=True))
    return [made[place] for place in range(len(pictures))]


def largest(sizes: Iterable[Size]) -> Size:
    """The one of the most pixels, which decides how much memory a training takes."""
    return max(sizes, key=lambda size: (size[0] * size[1], size))


def shared_out(sizes: Sequence[Size], count: int) -> list[Size]:
    """A size for each of ``count`` pictures that are drawn for a set: each of its sizes as often.

    Equal ones come one after the other: what alternates from picture to picture, such as guidance, then
    falls on every size. Of more sizes than pictures some are left out.
    """
    different = list(by_size(sizes))
    return [different[place * len(different) // count] for place in range(count)]


def sizes_text(sizes: Iterable[Size]) -> str:
    """``64 x 64 px``, or ``64 x 64, 128 x 64 px``: each once."""
    return ", ".join(f"{width} x {height}" for width, height in by_size(sizes)) + " px"
