"""The edits: pure functions from a picture to a picture.

A picture here is a float32 array of shape (height, width, 3), sRGB values in [0, 1]; no function
changes its argument. The parameters of each edit, with bounds and defaults, are the fields of its
entry in ``EFFECTS``; ``apply_effect`` checks them and accepts and returns Pillow images.

Grayscale is the beginner's article's example; outline, flatten, high contrast, posterise and JPEG
noise are the five edits of the copier memo.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from copier.errors import BadInput, UnknownName

Picture = npt.NDArray[np.float32]
"""A picture (height, width, 3), or a stack of them (n, height, width, 3): sRGB values in [0, 1]."""
Pictures = Picture | Sequence[Picture]
"""Several pictures: a stack, or a sequence in which each may have a size of its own."""

LUMA_REC601 = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of R, G and B in luma (ITU-R BT.601), what "grayscale" means in every paint program."""


def to_array(image: Image.Image) -> Picture:
    """Pillow image of any mode -> float32 array (height, width, 3) in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0


def to_image(picture: Picture) -> Image.Image:
    """Float array (height, width, 3), clipped to [0, 1] -> RGB Pillow image, rounded to 8 bits."""
    return Image.fromarray((np.clip(picture, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def luma(picture: Picture) -> Picture:
    """Luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601): (height, width, 3) -> (height, width)."""
    weighted: Picture = picture @ LUMA_REC601
    return weighted


def grayscale(picture: Picture, *, strength: float = 1.0) -> Picture:
    """Move every pixel towards its luma; ``strength`` 1 leaves no colour."""
    return picture + strength * (luma(picture)[..., None] - picture)


def saturation(picture: Picture, *, factor: float = 1.8) -> Picture:
    """Scale the distance of every pixel from its luma by ``factor`` (0 is grayscale, 1 nothing)."""
    gray = luma(picture)[..., None]
    spread: Picture = np.clip(gray + factor * (picture - gray), 0.0, 1.0)
    return spread


def brightness(picture: Picture, *, amount: float = 0.2) -> Picture:
    """Add ``amount`` to every channel."""
    shifted: Picture = np.clip(picture + np.float32(amount), 0.0, 1.0)
    return shifted


def high_contrast(picture: Picture, *, amount: float = 1.8) -> Picture:
    """Scale the distance of every channel from mid-gray (0.5) by ``amount``."""
    spread: Picture = np.clip(0.5 + amount * (picture - 0.5), 0.0, 1.0)
    return spread


def posterise(picture: Picture, *, levels: int = 4) -> Picture:
    """Round every channel to ``levels`` equally spaced values."""
    steps = levels - 1
    rounded: Picture = np.floor(picture * steps + 0.5) / np.float32(steps)
    return rounded


def hue(picture: Picture, *, degrees: float = 60.0) -> Picture:
    """Rotate the hue (the ``hueRotate`` matrix of the W3C's feColorMatrix).

    It keeps the luma 0.213 R + 0.715 G + 0.072 B, as far as no channel has to be clipped.
    """
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    constant = np.array([[0.213, 0.715, 0.072]] * 3)
    cosine = np.eye(3) - constant
    sine = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    matrix = (constant + c * cosine + s * sine).astype(np.float32)
    turned: Picture = np.clip(picture @ matrix.T, 0.0, 1.0)
    return turned


def blur(picture: Picture, *, radius: float = 2.0) -> Picture:
    """Gaussian blur; ``radius`` is the standard deviation in pixels."""
    return to_array(to_image(picture).filter(ImageFilter.GaussianBlur(radius)))


def sharpen(picture: Picture, *, amount: float = 1.5, radius: float = 1.5) -> Picture:
    """Unsharp mask: add ``amount`` times the difference from a blur of ``radius`` pixels."""
    sharp: Picture = np.clip(picture + amount * (picture - blur(picture, radius=radius)), 0.0, 1.0)
    return sharp


def flatten(picture: Picture, *, colours: int = 4, radius: int = 2) -> Picture:
    """Flat paint: a median filter removes texture, then every pixel takes one of ``colours`` tones.

    ``radius`` in pixels is that of the median filter (0: none). The tones are chosen by Pillow's
    median cut, refined by k-means, and no dithering is applied.
    """
    image = to_image(picture)
    if radius > 0:
        image = image.filter(ImageFilter.MedianFilter(2 * radius + 1))
    tones = image.quantize(colors=colours, method=Image.Quantize.MEDIANCUT, kmeans=4)
    return to_array(image.quantize(palette=tones, dither=Image.Dither.NONE))


def outline(
    picture: Picture, *, width: int = 3, threshold: float = 0.12, strength: float = 1.0
) -> Picture:
    """Draw black lines along the edges.

    An edge is where the largest central difference of any channel, along x or y, exceeds
    ``threshold``: two pixels at a sharp edge. Half of ``width``, rounded down, is added on each side,
    so such a line is 2 (width // 2) + 2 pixels wide; a blur of half a pixel softens it.
    """
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    along_x = np.abs(padded[1:-1, 2:] - padded[1:-1, :-2])
    along_y = np.abs(padded[2:, 1:-1] - padded[:-2, 1:-1])
    edge = np.maximum(along_x, along_y).max(axis=-1) > threshold
    mask = Image.fromarray(edge.astype(np.uint8) * 255)
    mask = mask.filter(ImageFilter.MaxFilter(2 * (width // 2) + 1))
    mask = mask.filter(ImageFilter.GaussianBlur(0.5))
    line = np.asarray(mask, dtype=np.float32)[..., None] / 255.0
    drawn: Picture = picture * (1.0 - np.float32(strength) * line)
    return drawn


def jpeg_noise(picture: Picture, *, quality: int = 10) -> Picture:
    """Encode as JPEG at ``quality`` (libjpeg's scale, chroma at half resolution) and decode."""
    buffer = io.BytesIO()
    to_image(picture).save(buffer, format="JPEG", quality=quality, subsampling=2)
    buffer.seek(0)
    return to_array(Image.open(buffer))


@dataclass(frozen=True)
class EffectParameter:
    """One bounded number of an edit. ``whole`` numbers are integers."""

    name: str
    label: str
    default: float
    minimum: float
    maximum: float
    whole: bool = False


@dataclass(frozen=True)
class Effect:
    """An edit with its parameters. ``function(picture, **parameters)`` returns the new picture."""

    name: str
    label: str
    explanation: str
    function: Callable[..., Picture]
    parameters: tuple[EffectParameter, ...]


def _table() -> dict[str, Effect]:
    number = EffectParameter
    effects = (
        Effect(
            "grayscale", "Grayscale", "Takes the colour away.", grayscale,
            (number("strength", "Strength", 1.0, 0.0, 1.0),),
        ),
        Effect(
            "outline", "Outline", "Draws black lines along the edges.", outline,
            (
                number("width", "Line width (px)", 3, 1, 31, whole=True),
                number("threshold", "Edge threshold", 0.12, 0.01, 1.0),
                number("strength", "Strength", 1.0, 0.0, 1.0),
            ),
        ),
        Effect(
            "flatten", "Flatten", "Paints with a few flat tones.", flatten,
            (
                number("colours", "Tones", 4, 2, 64, whole=True),
                number("radius", "Smoothing radius (px)", 2, 0, 15, whole=True),
            ),
        ),
        Effect(
            "high_contrast", "High contrast", "Spreads the tones apart.", high_contrast,
            (number("amount", "Amount", 1.8, 1.0, 5.0),),
        ),
        Effect(
            "posterise", "Posterise", "Rounds every channel to a few levels.", posterise,
            (number("levels", "Levels", 4, 2, 32, whole=True),),
        ),
        Effect(
            "jpeg_noise", "JPEG noise", "Compresses until it shows.", jpeg_noise,
            (number("quality", "Quality", 10, 1, 95, whole=True),),
        ),
        Effect(
            "blur", "Blur", "Softens everything.", blur,
            (number("radius", "Radius (px)", 2.0, 0.0, 50.0),),
        ),
        Effect(
            "sharpen", "Sharpen", "Unsharp mask.", sharpen,
            (
                number("amount", "Amount", 1.5, 0.0, 10.0),
                number("radius", "Radius (px)", 1.5, 0.1, 20.0),
            ),
        ),
        Effect(
            "saturation", "Saturation", "Strengthens or weakens the colours.", saturation,
            (number("factor", "Factor", 1.8, 0.0, 4.0),),
        ),
        Effect(
            "brightness", "Brightness", "Makes everything lighter or darker.", brightness,
            (number("amount", "Amount", 0.2, -1.0, 1.0),),
        ),
        Effect(
            "hue", "Hue", "Turns the colour wheel.", hue,
            (number("degrees", "Degrees", 60.0, -180.0, 180.0),),
        ),
    )
    return {effect.name: effect for effect in effects}


EFFECTS: Mapping[str, Effect] = _table()
"""Every built-in edit by name, in the order in which they are offered."""


def effect_parameters(name: str, values: Mapping[str, float] | None = None) -> dict[str, float]:
    """The full, checked parameters of the edit ``name``, defaults filled in.

    Raises:
        UnknownName: no edit, or no parameter, of that name (the nearest names are offered).
        BadInput: a value outside its bounds, or a fraction where a whole number is needed.
    """
    effect = EFFECTS.get(name)
    if effect is None:
        raise UnknownName("edit", name, EFFECTS)
    given = dict(values or {})
    known = {parameter.name for parameter in effect.parameters}
    for key in given:
        if key not in known:
            raise UnknownName(f"parameter of the edit {name!r}", key, known)
    checked: dict[str, float] = {}
    for parameter in effect.parameters:
        value = given.get(parameter.name, parameter.default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadInput(f"{name}.{parameter.name} is {value!r}: give a number")
        if not parameter.minimum <= value <= parameter.maximum:
            raise BadInput(
                f"{name}.{parameter.name} is {value:g}: it must lie between "
                f"{parameter.minimum:g} and {parameter.maximum:g}"
            )
        if parameter.whole and value != int(value):
            raise BadInput(f"{name}.{parameter.name} is {value:g}: give a whole number")
        checked[parameter.name] = int(value) if parameter.whole else float(value)
    return checked


def check_edit(name: str, values: Mapping[str, float] | None = None) -> None:
    """Refuse an edit that no picture would show; as ``apply_effect`` does, it refuses bad names and values.

    Raises:
        BadInput: of noise, which has every colour and edge, the edit changes nothing.
    """
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    before = Image.fromarray(noise)
    if apply_effect(before, name, values).tobytes() == before.tobytes():
        raise BadInput(f"{name} with {dict(values or {})} changes nothing: give stronger parameters")


def apply_effect(
    image: Image.Image, name: str, values: Mapping[str, float] | None = None
) -> Image.Image:
    """The Pillow image ``image`` with the edit ``name`` applied; RGB, same size.

    Raises:
        UnknownName, BadInput: as ``effect_parameters``.
    """
    parameters = effect_parameters(name, values)
    return to_image(EFFECTS[name].function(to_array(image), **parameters))
