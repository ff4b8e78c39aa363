"""The files of a finished stage: their names, and how pictures are read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from copier.images.effects import Picture, to_array
from copier.pipeline.plan import Draws
from copier.pipeline.store import Entry

LORA = "lora.safetensors"
LOSSES = "losses.json"
"""The loss of every step of a training, a JSON list."""
IDEAL = "ideal"
"""Folder of the pictures decode(encode(x)) that a stage measured by."""


def picture_name(number: int) -> str:
    """Name of a picture of a set's stage; the numbers begin with 1."""
    return f"picture-{number:06d}.png"


def picture_paths(entry: Entry) -> list[Path]:
    """The pictures of a finished ``original`` or ``edited`` stage, in their order."""
    return sorted(entry.folder.glob("picture-*.png"))


def mask_name(number: int) -> str:
    """Name of the mask of that picture, where it has one."""
    return f"mask-{number:06d}.png"


def mask_paths(entry: Entry) -> list[Path | None]:
    """For each picture of the stage its mask, in grey: where the loss counts; None: everywhere."""
    places = [path.with_name(path.name.replace("picture-", "mask-")) for path in picture_paths(entry)]
    return [place if place.is_file() else None for place in places]


def load_set(entry: Entry) -> Picture:
    """The pictures of a finished ``original`` or ``edited`` stage as a stack (n, height, width, 3)."""
    return np.stack([load_picture(path) for path in picture_paths(entry)])


def load_picture(path: Path) -> Picture:
    """A picture file as a float32 array (height, width, 3) in [0, 1]."""
    with Image.open(path) as image:
        return to_array(image)


def load_stack(folder: Path) -> Picture:
    """The numbered PNG files of a folder as a stack (n, height, width, 3) in [0, 1]."""
    return np.stack([load_picture(path) for path in sorted(folder.glob("*.png"))])


def weight_folder(weight: float) -> str:
    """Name of the folder that holds the pictures of one weight, exact to three decimals."""
    return f"{weight:+.3f}"


def strip_pictures(entry: Entry, draws: Draws) -> dict[float, Picture]:
    """The stacks of a finished ``draw`` stage by weight."""
    return {weight: load_stack(entry.path(weight_folder(weight))) for weight in draws.weights}


def plain_pictures(entry: Entry) -> Picture:
    """The stack of a finished ``draw`` stage that draws without a strip of weights."""
    return load_stack(entry.path(weight_folder(0.0)))
