"""Reads a drawn scene back: which shape, of which colour, on which background.

Written for the quality gate of the pocket checkpoint. The judge is measured on rendered scenes
first: its own errors are part of what the gate reports.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from copier.pocket.scenes import COLOURS, SHAPES, Scene, masks

FRAME = 10
"""Width in pixels of the rim from which the background's colour is read."""
SHAPE_THRESHOLD = 14.0
"""Distance from the background, in CIE Lab, from which a pixel belongs to the shape."""
TEMPLATE = 48
_DARK = 0.35
_ALIKE = 45.0
ANGLES = (-12, -6, 0, 6, 12)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


@dataclass(frozen=True)
class Verdict:
    """What the judge sees; "" where it sees no shape."""

    shape: str
    colour: str
    background: str


def lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1], (..., 3) -> CIE 1976 L*a*b*, D65 (IEC 61966-2-1; CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _SRGB_TO_XYZ.T / _WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    lightness = 116 * f[..., 1] - 16
    return np.stack(
        [lightness, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    )


def nearest_colour(rgb: np.ndarray) -> str:
    """The palette colour nearest in CIE Lab to ``rgb`` (3,), sRGB in [0, 1]."""
    names = list(COLOURS)
    palette = lab(np.array([COLOURS[name] for name in names]) / 255.0)
    return names[int(np.argmin(np.linalg.norm(palette - lab(rgb), axis=1)))]


def shape_mask(picture: np.ndarray) -> np.ndarray:
    """The largest area that differs from the background: (height, width, 3) -> bool (height, width).

    A shape is in one piece: a stray speck would stretch the box that the templates are laid into.
    """
    far = np.linalg.norm(lab(picture) - lab(_background(picture)), axis=-1) > SHAPE_THRESHOLD
    far[:3], far[-3:], far[:, :3], far[:, -3:] = False, False, False, False
    return _largest_area(far)


def judge(picture: np.ndarray) -> Verdict:
    """Look at a picture (height, width, 3) in [0, 1].

    The background's colour is the median of the rim; the shape's that of the mask's inside (eroded
    past the outline); the shape is the template of the largest overlap over all shapes and angles.
    """
    background = nearest_colour(_background(picture))
    mask = shape_mask(picture)
    if mask.sum() < 100:
        return Verdict("", "", background)
    inside = _eroded(mask, 5)
    if inside.sum() < 30:
        inside = _eroded(mask, 2)
    colour = nearest_colour(np.median(picture[inside if inside.any() else mask], axis=0))
    return Verdict(_shape(mask), colour, background)


def outlined(picture: np.ndarray) -> float:
    """Luminance of the shape's rim over that of its inside: low where it is outlined, near 1 where it is not.

    Of each the ``_DARK`` quantile, which an ornament lighter than the shape does not reach; luminance as in
    IEC 61966-2-1, of sRGB values. 1 where there is no shape.
    """
    mask = shape_mask(picture)
    inside, rim = _eroded(mask, 6), mask & ~_eroded(mask, 3)
    if not inside.any():
        return 1.0
    light = picture @ np.array([0.2126, 0.7152, 0.0722])
    return float(np.quantile(light[rim], _DARK) / max(1e-3, np.quantile(light[inside], _DARK)))


def dressed(picture: np.ndarray, colour: str, ornament: np.ndarray) -> tuple[float, float]:
    """Shares of the shape's pixels in the palette's ``colour``, and in the ornament's sRGB (3,).

    A pixel has the nearer of the two, or neither where both are farther than ``_ALIKE`` in CIE Lab.
    """
    inside = _eroded(shape_mask(picture), 2)
    if not inside.any():
        return 0.0, 0.0
    points = lab(picture[inside])
    far = [np.linalg.norm(points - lab(one), axis=-1) for one in (np.array(COLOURS[colour]) / 255, ornament)]
    body = (far[0] <= far[1]) & (far[0] < _ALIKE)
    worn = (far[1] < far[0]) & (far[1] < _ALIKE)
    return float(body.mean()), float(worn.mean())


def _background(picture: np.ndarray) -> np.ndarray:
    rim = np.ones(picture.shape[:2], dtype=bool)
    rim[FRAME:-FRAME, FRAME:-FRAME] = False
    rim[:3], rim[-3:], rim[:, :3], rim[:, -3:] = False, False, False, False
    return np.asarray(np.median(picture[rim], axis=0))


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        inner = np.zeros_like(mask)
        inner[1:-1, 1:-1] = (
            mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        )
        mask = inner
    return mask


def _largest_area(mask: np.ndarray) -> np.ndarray:
    """The largest part of ``mask`` that hangs together by edges. The rim of ``mask`` must be false."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    before = None
    while before is None or (labels != before).any():
        before = labels.copy()
        for shift in (1, -1):
            for axis in (0, 1):
                labels = np.where(mask, np.maximum(labels, np.roll(labels, shift, axis)), 0)
    return np.asarray(mask & (labels == np.bincount(labels[mask]).argmax())) if mask.any() else mask


def _fitted(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box, scaled to TEMPLATE x TEMPLATE, in [0, 1]."""
    ys, xs = np.nonzero(mask)
    box = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    image = Image.fromarray(box.astype(np.uint8) * 255)
    scaled = image.resize((TEMPLATE, TEMPLATE), Image.Resampling.BOX)
    return np.asarray(scaled, dtype=np.float32) / 255.0


@functools.cache
def _templates() -> tuple[tuple[str, np.ndarray], ...]:
    found = []
    for shape in SHAPES:
        for angle in ANGLES:
            fill, line = masks(Scene(shape, "red", "white", angle=angle))
            found.append((shape, _fitted(np.maximum(fill, line) > 0.5)))
    return tuple(found)


def _shape(mask: np.ndarray) -> str:
    seen = _fitted(mask)

    def overlap(template: np.ndarray) -> float:
        return float(np.minimum(seen, template).sum() / np.maximum(seen, template).sum())

    return max(_templates(), key=lambda one: overlap(one[1]))[0]
