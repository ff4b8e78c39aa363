"""The files of a finished stage: their names, and how pictures are read back."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from copier.images.effects import Picture, to_array
from copier.images.sizes import Size, file_sizes
from copier.pipeline.plan import Draws
from copier.pipeline.store import Entry

PICTURE_KINDS = ("original", "edited", "derived")
"""Kinds of stages whose outcome is a set of pictures."""
LORA = "lora.safetensors"
LOSSES = "losses.json"
"""The loss of every step of a training, a JSON list."""
MASKS = "masks"
"""Folder of the masks that a training makes from its pairs."""
IDEAL = "ideal"
"""Folder of the pictures decode(encode(x)) that a stage measured by."""


def picture_name(number: int) -> str:
    """Name of a picture of a set's stage; the numbers begin with 1."""
    return f"picture-{number:06d}.png"


def picture_paths(entry: Entry) -> list[Path]:
    """The pictures of a finished stage of one of ``PICTURE_KINDS``, in their order."""
    return sorted(entry.folder.glob("picture-*.png"))


def mask_name(number: int) -> str:
    """Name of the mask of that picture, where it has one."""
    return f"mask-{number:06d}.png"


def mask_paths(entry: Entry) -> list[Path | None]:
    """For each picture of the stage its mask, in grey: where the loss counts; None: everywhere."""
    places = [path.with_name(path.name.replace("picture-", "mask-")) for path in picture_paths(entry)]
    return [place if place.is_file() else None for place in places]


def shown_pictures(entry: Entry, most: int = 6) -> list[Path]:
    """A few of a finished stage's pictures, to be looked at: of several weights the first of each."""
    if entry.record.kind in PICTURE_KINDS:
        return picture_paths(entry)[:most]
    if entry.record.kind != "draw":
        return []
    folders = [sorted(folder.glob("*.png")) for folder in sorted(entry.folder.iterdir()) if folder.is_dir()]
    chosen = folders[0] if len(folders) == 1 else [pictures[0] for pictures in folders if pictures]
    return chosen[:most]


def picture_sizes(entry: Entry) -> list[Size]:
    """The sizes of the pictures of a finished stage of one of ``PICTURE_KINDS``."""
    return file_sizes(picture_paths(entry))


def load_set(entry: Entry) -> list[Picture]:
    """The pictures of a finished stage of one of ``PICTURE_KINDS``, each in its size."""
    return [load_picture(path) for path in picture_paths(entry)]


def load_picture(path: Path) -> Picture:
    """A picture file as a float32 array (height, width, 3) in [0, 1]."""
    with Image.open(path) as image:
        return to_array(image)


def load_folder(folder: Path) -> list[Picture]:
    """The numbered PNG files of a folder, in their order."""
    return [load_picture(path) for path in sorted(folder.glob("*.png"))]


def weight_folder(weight: float) -> str:
    """Name of the folder that holds the pictures of one weight, exact to three decimals."""
    return f"{weight:+.3f}"


def strip_pictures(entry: Entry, draws: Draws) -> dict[float, list[Picture]]:
    """The pictures of a finished ``draw`` stage by weight."""
    return {weight: load_folder(entry.path(weight_folder(weight))) for weight in draws.weights}


def plain_pictures(entry: Entry) -> list[Picture]:
    """The pictures of a finished ``draw`` stage that draws without a strip of weights."""
    return load_folder(entry.path(weight_folder(0.0)))
