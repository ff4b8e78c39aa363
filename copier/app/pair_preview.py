"""Pictures on their way to a run: kept in the data directory, made to fit, and shown as a pair."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from copier.app.checks import check_data_folder
from copier.app.settings import Settings
from copier.errors import BadPicture
from copier.evaluation.data_uri import data_uri
from copier.fields import LARGEST_UPLOAD
from copier.images.effects import apply_effect
from copier.images.pairs import SIDE_MULTIPLE, difference_image, difference_map, read_picture
from copier.request import Edit
from copier.temporary import replace_file

SHOWN = 512
"""Longer side of a picture in a page, in pixels."""


@dataclass(frozen=True)
class PairView:
    """A and B as a page shows them.

    Attributes:
        name: of A's file.
        a, b, difference: data URIs; ``b`` and ``difference`` are "" where there is no B.
        size, b_size: in pixels.
        changed: share of the pixels that differ visibly.
        mean: mean magnitude of the difference, 0 to 1.
        areas: number of separate areas of change.
        warnings: what to know before training.
        problem: why the two make no pair; "" where they do.
    """

    name: str
    a: str
    b: str = ""
    difference: str = ""
    size: tuple[int, int] = (0, 0)
    b_size: tuple[int, int] = (0, 0)
    changed: float = 0.0
    mean: float = 0.0
    areas: int = 0
    warnings: tuple[str, ...] = ()
    problem: str = ""


def keep_picture(source: Path, settings: Settings) -> Path:
    """A copy, under its own name, of a picture that a page was given; one of the same content is kept once.

    Raises:
        BadPicture: it cannot be read, or is larger than ``LARGEST_UPLOAD``; nothing is kept.
        BadInput: the data folder cannot be written.
    """
    read_picture(source)
    size = source.stat().st_size
    if size > LARGEST_UPLOAD:
        raise BadPicture(
            f"{source.name} has {size >> 20} MB: give a picture of {LARGEST_UPLOAD >> 20} MB at most"
        )
    check_data_folder(settings.data)
    content = source.read_bytes()
    return _placed(settings.pictures / hashlib.sha256(content).hexdigest()[:16] / source.name, content)


def _placed(place: Path, content: bytes) -> Path:
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, content)
    return place


def fitted_picture(kept: Path, side: int, settings: Settings) -> Path:
    """``kept`` with a longer side of ``side`` px and both sides multiples of 64: scaled, then cropped evenly.

    A picture that is so already is given back as it is. Two of one size are treated alike, so that a pair
    stays one.

    Raises:
        BadPicture: it cannot be read.
    """
    image = read_picture(kept)
    wanted = fitted_size(image.size, side)
    if image.size == wanted:
        return kept
    scale = max(wanted[0] / image.width, wanted[1] / image.height)
    whole = image.resize(
        (max(wanted[0], round(image.width * scale)), max(wanted[1], round(image.height * scale))),
        Image.Resampling.LANCZOS,
    )
    left, top = (whole.width - wanted[0]) // 2, (whole.height - wanted[1]) // 2
    content = io.BytesIO()
    whole.crop((left, top, left + wanted[0], top + wanted[1])).save(content, format="PNG")
    place = settings.pictures / f"{kept.parent.name}-{wanted[0]}x{wanted[1]}" / f"{kept.stem}.png"
    return _placed(place, content.getvalue())


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height nearest in shape to ``size``, the longer one ``side``, both multiples of 64."""
    longer = max(size)
    width, height = (max(1, round(one / longer * side / SIDE_MULTIPLE)) * SIDE_MULTIPLE for one in size)
    return width, height


def look_at(a: Path, b: Path | Edit | None) -> PairView:
    """A beside B, and where they differ.

    Raises:
        BadPicture, BadInput: a picture cannot be read, or the edit's values are out of bounds.
    """
    first = read_picture(a)
    view = PairView(a.name, data_uri(first, SHOWN), size=first.size)
    if b is None:
        return view
    second = edited(first, b)
    return _compared(replace(view, b=data_uri(second, SHOWN), b_size=second.size), first, second)


def edited(a: Image.Image, b: Path | Edit) -> Image.Image:
    """B: the picture of a file, or A with a built-in edit. Raises as ``look_at``."""
    return apply_effect(a, b.name, b.parameters) if isinstance(b, Edit) else read_picture(b)


def _compared(view: PairView, first: Image.Image, second: Image.Image) -> PairView:
    try:
        found = difference_map(first, second)
    except BadPicture as error:
        return replace(view, problem=str(error))
    return replace(
        view,
        difference=data_uri(difference_image(found), SHOWN),
        changed=found.changed,
        mean=found.mean,
        areas=found.areas,
        warnings=found.warnings,
    )


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height, upright. Raises BadPicture."""
    return read_picture(path).size


def thumbnail(path: Path, side: int) -> str:
    """The picture as a data URI of at most ``side`` pixels, for a list; "" where it cannot be read."""
    try:
        return data_uri(read_picture(path), side)
    except BadPicture:
        return ""
