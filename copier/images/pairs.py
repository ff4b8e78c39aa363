"""Reading pictures, checking that two of them make a pair, and the map of what differs.

Everything here happens before any training: a picture that cannot be used is refused with its name,
the limit and the remedy.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from copier.errors import BadPicture
from copier.images.effects import Picture, to_array
from copier.request import Fit

log = logging.getLogger(__name__)

SIDE_MULTIPLE = 64
"""Sides must be multiples of this: the U-Net halves the latents, 8 pixels wide each, three times."""

CHANGED = 0.02
"""A pixel counts as changed above this magnitude: about 5 of 255 levels, just visible."""

_NOISE = 0.75 / 255.0
# The grid in which separate areas of change are found: at most this many cells along a side.
_CELLS = 48
_LAYERED = ("RGBA", "RGBa", "LA", "PA")
"""Modes of pictures with an alpha channel."""
_WHITE = (255, 255, 255)
_decoding = threading.Lock()

# Pillow has no one class for what a damaged file may raise.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error)

Note = Callable[[str], None]


@contextmanager
def _strict_decoding() -> Iterator[None]:
    """Truncated files are errors within, although other extensions switch that off for the process."""
    with _decoding:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_picture(path: str | os.PathLike[str], *, note: Note = log.warning) -> Image.Image:
    """The picture in the file ``path``: RGB, upright, every pixel decoded.

    EXIF orientation is applied. What has to be given up is told to ``note``, one line each: of an
    animation the first frame is taken, transparency is laid on white, 16-bit gray becomes 8-bit.

    Raises:
        BadPicture: no such file, not a picture, damaged or truncated, too large, or pixels that are
            floating-point numbers.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        raise BadPicture(f"{name} is a folder: name a picture in it")
    if os.path.exists(name) and not os.path.isfile(name):
        raise BadPicture(f"{name} is a pipe or a device: give a PNG, JPEG or WebP file")
    try:
        with open(name, "rb") as file, _strict_decoding():
            image = _opened(file, name)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                note(f"{name} is an animation of {frames} frames: the first one is used")
            _decoded(image, name)
            return _as_rgb(_upright(image, name, note), name, note)
    except FileNotFoundError:
        raise BadPicture(f"there is no file {name}: check the path") from None
    except PermissionError:
        raise BadPicture(f"{name} may not be read: check the file's permissions") from None
    except OSError as error:
        raise BadPicture(f"{name} cannot be read ({error}): check the disk, or copy the file anew") from error


def read_mask(path: str | os.PathLike[str]) -> Image.Image | None:
    """The alpha channel of the picture in the file ``path``, upright, mode L; None where all is opaque.

    The file was read before, by ``read_picture``, which refuses what is damaged.
    """
    with Image.open(path) as image:
        if image.mode not in _LAYERED and "transparency" not in image.info:
            return None
        alpha = _upright(image, os.fspath(path), lambda _: None).convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def change_mask(a: Picture, b: Picture, *, margin: int) -> Image.Image:
    """Where A and B differ, and ``margin`` pixels around it: white, mode L; elsewhere black.

    A pixel counts as changed above ``CHANGED``. The margin is a square's: what a change shows beyond its own
    pixels, where the autoencoder looks at 8 of them at a time.

    Raises:
        BadPicture: they differ in size, or nowhere enough to show.
    """
    found = difference_map(a, b)
    mask = found.magnitude > found.threshold
    if not mask.any():
        raise BadPicture(
            f"A and B differ by at most {255 * found.maximum:.1f} of 255 levels: a mask of what changed "
            "would be empty; make the edit stronger, or set pair_mask to false"
        )
    for axis in (0, 1):
        mask = _widened(mask, margin, axis)
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _widened(mask: npt.NDArray[np.bool_], margin: int, axis: int) -> npt.NDArray[np.bool_]:
    """True where any of the ``margin`` places before or after along ``axis`` is."""
    # How many are true up to a place: equal at both ends of a window that has none.
    length = mask.shape[axis]
    sums = np.insert(np.cumsum(mask, axis=axis), 0, 0, axis=axis)
    places = np.arange(length)
    last = sums.take(np.minimum(places + margin + 1, length), axis=axis)
    first = sums.take(np.maximum(places - margin, 0), axis=axis)
    return np.asarray(last > first)


def check_same_names(a: Sequence[Path], b: Sequence[Path]) -> None:
    """Raise ``BadPicture`` unless files are paired: one B for each A, of the same name but for its ending.

    Where there is only one of each, the names do not matter.
    """
    if len(a) != len(b):
        raise BadPicture(
            f"there are {len(a)} originals and {len(b)} changed pictures: give one changed picture for each"
        )
    if len(a) == 1:
        return
    for first, second in zip(a, b, strict=True):
        if first.stem != second.stem:
            raise BadPicture(
                f"{first.name} and {second.name} come at the same place of their folders: the two pictures "
                "of a pair must have the same name"
            )


def _opened(file: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        raise BadPicture(
            f"{name} is not a picture, or of a kind that cannot be read: give a PNG, JPEG or WebP file"
        ) from None
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _decoded(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: BaseException) -> BadPicture:
    return BadPicture(
        f"{name} is damaged or cut off, it cannot be decoded to its end ({error}): save or copy it anew"
    )


def _too_large(name: str) -> BadPicture:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return BadPicture(
        f"{name} is too large: at most {limit:,} pixels are decoded; scale it down, for instance to "
        "1024 x 1024"
    )


def _upright(image: Image.Image, name: str, note: Note) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except _DAMAGE as error:
        note(f"the EXIF data of {name} cannot be read ({error}): its orientation is ignored")
        return image


def _as_rgb(image: Image.Image, name: str, note: Note) -> Image.Image:
    if image.mode == "F":
        raise BadPicture(f"the pixels of {name} are floating-point numbers: save it with 8 bits a channel")
    if image.mode.startswith("I"):
        # convert() would turn everything above 255 into white.
        note(f"{name} has 16 bits a pixel: reduced to 8")
        levels = np.clip(np.asarray(image, dtype=np.float64) / 257.0 + 0.5, 0, 255)
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode in _LAYERED or "transparency" in image.info:
        layered = image.convert("RGBA")
        if layered.getchannel("A").getextrema() != (255, 255):
            note(f"{name} has transparent parts: they are laid on white")
        ground = Image.new("RGBA", layered.size, (*_WHITE, 255))
        image = Image.alpha_composite(ground, layered)
    try:
        plain = image.convert("RGB")
    except ValueError:
        raise BadPicture(f"{name} has the colour mode {image.mode}: save it as RGB") from None
    plain.info = {}
    return plain


def cropped_and_padded(size: tuple[int, int]) -> tuple[tuple[int, int] | None, tuple[int, int]]:
    """The sizes to which a picture of ``size`` can be cropped (None: it is too small) and padded."""
    (width, height), multiple = size, SIDE_MULTIPLE
    crop = (width // multiple * multiple, height // multiple * multiple)
    pad = (-(-width // multiple) * multiple, -(-height // multiple) * multiple)
    return (crop if min(crop) else None), pad


def fitted(image: Image.Image, fit: Fit) -> Image.Image:
    """``image`` with sides that are multiples of 64: its middle, or with as much white on all sides.

    Unchanged where they are, where ``fit`` is none, and where there is not enough to crop. A picture of mode
    L, a mask, is padded with black, which counts for nothing.
    """
    crop, pad = cropped_and_padded(image.size)
    size = {Fit.NONE: None, Fit.CROP: crop, Fit.PAD: pad}[fit]
    if size is None or size == image.size:
        return image
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    if fit is Fit.CROP:
        return image.crop((left, top, left + size[0], top + size[1]))
    ground = Image.new(image.mode, size, 0 if image.mode == "L" else _WHITE)
    ground.paste(image, (-left, -top))
    return ground


def check_size(image: Image.Image, name: str = "the picture") -> None:
    """Raise ``BadPicture`` unless both sides of ``image`` are multiples of 64, at least 64.

    ``name`` is what the message calls it. It offers a crop and a pad: nothing is ever scaled silently.
    """
    crop, pad = cropped_and_padded(image.size)
    if crop == image.size:
        return
    offer = f"crop it to {crop[0]} x {crop[1]} (--fit crop) or pad it" if crop else "pad it"
    raise BadPicture(
        f"{name} is {image.width} x {image.height} px: both sides must be multiples of {SIDE_MULTIPLE}, at "
        f"least {SIDE_MULTIPLE}; {offer} to {pad[0]} x {pad[1]} (--fit pad), both pictures of a pair alike"
    )


def check_pair(a: Image.Image, b: Image.Image, which: str = "") -> None:
    """Raise ``BadPicture`` unless A and B have one size, of sides that ``check_size`` accepts.

    ``which`` follows "A" in the message: " of 2.png", where there are several pairs.
    """
    if a.size != b.size:
        raise BadPicture(
            f"A{which} is {a.width} x {a.height} px and B is {b.width} x {b.height} px: a pair must have one "
            "size; make B by editing a copy of A, without scaling or cropping"
        )
    check_size(a, f"A{which}")


@dataclass(frozen=True, eq=False)
class DifferenceMap:
    """What differs between A and B.

    Attributes:
        magnitude: root mean square over the channels, one value in [0, 1] for each pixel: (h, w).
        threshold: a pixel counts as changed above this magnitude.
        changed: share of the pixels that count as changed, 0 to 1.
        mean: mean of ``magnitude``; ``maximum`` its largest value.
        box: left, top, right, bottom (exclusive) of all changed pixels; None where none is.
        areas: number of separate areas of change (an area bridges gaps of about a twentieth of a side).
        outside: share of the change, by magnitude, that lies outside the largest area.
        warnings: what the user should know before training, one sentence or two each.
    """

    magnitude: npt.NDArray[np.float32]
    threshold: float
    changed: float
    mean: float
    maximum: float
    box: tuple[int, int, int, int] | None
    areas: int
    outside: float
    warnings: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether A and B are equal in every pixel."""
        return self.maximum == 0.0


def difference_map(
    a: Image.Image | Picture, b: Image.Image | Picture, *, threshold: float = CHANGED
) -> DifferenceMap:
    """The map of what differs between A and B, with warnings where the pair looks unintended.

    Raises:
        BadPicture: A and B differ in size.
    """
    first, second = (to_array(p) if isinstance(p, Image.Image) else p for p in (a, b))
    if first.shape != second.shape:
        (height_a, width_a), (height_b, width_b) = first.shape[:2], second.shape[:2]
        raise BadPicture(
            f"A is {width_a} x {height_a} px and B is {width_b} x {height_b} px: only pictures of one "
            "size can be compared"
        )
    apart = first.astype(np.float32) - second.astype(np.float32)
    magnitude: npt.NDArray[np.float32] = np.sqrt(np.mean(apart * apart, axis=-1))
    mask = magnitude > threshold
    labels, areas = _areas(mask)
    total = float(magnitude[mask].sum())
    weights = [float(magnitude[mask & (labels == area)].sum()) for area in range(1, areas + 1)]
    largest = 1 + int(np.argmax(weights)) if weights else 0
    outside = 1.0 - weights[largest - 1] / total if weights else 0.0
    return DifferenceMap(
        magnitude=magnitude,
        threshold=threshold,
        changed=float(mask.mean()),
        mean=float(magnitude.mean()),
        maximum=float(magnitude.max()),
        box=_box(mask),
        areas=areas,
        outside=max(0.0, outside),
        warnings=tuple(_warnings(magnitude, mask, labels == largest, areas, outside)),
    )


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _areas(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """Number the separate areas of ``mask``: labels (h, w) of cells, 0 outside; and how many.

    Pixels are gathered in square cells; two changed cells belong together where at most one
    unchanged cell lies between them.
    """
    height, width = mask.shape
    cell = max(2, -(-max(height, width) // _CELLS))
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.zeros((rows * cell, columns * cell), dtype=bool)
    padded[:height, :width] = mask
    changed = np.asarray(padded.reshape(rows, cell, columns, cell).any(axis=(1, 3)))
    cells, count = np.zeros((rows, columns), dtype=np.int32), 0
    for row, column in np.argwhere(changed).tolist():
        if not cells[row, column]:
            count += 1
            _flood(changed, cells, (row, column), count)
    labels = np.repeat(np.repeat(cells, cell, axis=0), cell, axis=1)[:height, :width]
    return labels, count


def _flood(
    changed: npt.NDArray[np.bool_], cells: npt.NDArray[np.int32], start: tuple[int, int], label: int
) -> None:
    """Write ``label`` into all ``cells`` that belong together with ``start``."""
    cells[start] = label
    waiting = [start]
    while waiting:
        row, column = waiting.pop()
        top, left = max(0, row - 2), max(0, column - 2)
        near = np.s_[top : row + 3, left : column + 3]
        free = np.logical_and(changed[near], cells[near] == 0)
        for down, right in np.argwhere(free).tolist():
            cells[top + down, left + right] = label
            waiting.append((top + down, left + right))


def _warnings(
    magnitude: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    main: npt.NDArray[np.bool_],
    areas: int,
    outside: float,
) -> Iterator[str]:
    if magnitude.max() == 0.0:
        yield "A and B are identical: there is nothing to learn. Edit B, or choose another file."
        return
    if not mask.any():
        yield (
            f"A and B differ by at most {255 * magnitude.max():.1f} of 255 levels, which hardly shows: "
            "the LoRA will learn next to nothing. Make the edit stronger."
        )
        return
    # Above a quarter the other areas are surely meant: two eyes, several letters.
    if areas > 1 and outside <= 0.25:
        stray = magnitude * (mask & ~main)
        y, x = np.unravel_index(int(np.argmax(stray)), stray.shape)
        yield (
            f"{100 * outside:.1f} % of the change lies outside the main area, in {areas - 1} other "
            f"place{'s' if areas > 2 else ''}, for instance at x {x}, y {y}. Whatever moved there is "
            "learnt too: if it is not meant, paste A's pixels back."
        )
    faint = (magnitude > _NOISE) & ~mask
    rest = ~main
    if rest.mean() > 0.3 and faint[rest].mean() > 0.2:
        yield (
            f"Outside the main area {100 * faint[rest].mean():.0f} % of the pixels changed slightly, as "
            "when B was saved with compression. That noise is learnt too: save both pictures as PNG."
        )


# Black, violet, orange, pale yellow, in even steps of lightness (after matplotlib's "inferno").
_HEAT = np.array(
    [(0, 0, 4), (51, 10, 95), (114, 31, 103), (178, 50, 80), (229, 92, 48), (251, 155, 6), (246, 215, 70),
     (252, 255, 164)], dtype=np.float32
)  # fmt: skip


def difference_image(found: DifferenceMap, *, full: float | None = None) -> Image.Image:
    """The heat map of ``found``: black where nothing changed, pale yellow at the magnitude ``full``.

    ``full`` is, unless given, the largest magnitude, but at least 0.1, so that faint noise stays dark.
    """
    scale = max(found.maximum, 0.1) if full is None else full
    place = np.clip(found.magnitude / scale, 0.0, 1.0) * (len(_HEAT) - 1)
    steps = np.arange(len(_HEAT))
    colours = np.stack([np.interp(place, steps, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray((colours + 0.5).astype(np.uint8))
