"""Puts a LoRA into a host's LoRA folder, with the card and the preview that hosts show beside it.

    <name>.safetensors   the LoRA; ``ss_output_name``, its alias in prompts, is the name
    <name>.json          the card: A1111 and Forge read "activation text", "preferred weight", ...
    <name>.png           the preview, which carries the recipe
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from PIL import PngImagePlugin

from copier.app.names import check_name, free_name
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import Header, read_header
from copier.codec import RECIPE_KEY
from copier.errors import BadInput
from copier.fields import check_text
from copier.images.pairs import read_picture
from copier.ops.restate import restate
from copier.temporary import create_file

_VERSIONS: Mapping[Family, str] = MappingProxyType(
    {Family.SD1: "SD1", Family.SD2: "SD2", Family.SDXL: "SDXL", Family.FLUX: "Flux"}
)
"""What hosts call a family in "sd version"; others are Unknown."""
_NAME_KEYS = ("ss_output_name", "modelspec.title")


@dataclass(frozen=True)
class Card:
    """What a host shows of a LoRA, and puts into a prompt when it is clicked.

    ``weight`` is the preferred one; 0 leaves it to the host.

    Raises on construction:
        BadInput: a text that no file can hold, or a weight that is not finite.
    """

    activation: str = ""
    weight: float = 1.0
    notes: str = ""
    description: str = ""
    negative: str = ""

    def __post_init__(self) -> None:
        for name in ("activation", "notes", "description", "negative"):
            check_text(f"the card's {name}", getattr(self, name))
        if not math.isfinite(self.weight):
            raise BadInput(f"the preferred weight is {self.weight}: give a finite number")


@dataclass(frozen=True)
class Installed:
    """The files that were written; no preview where there was no picture."""

    lora: Path
    card: Path
    preview: Path | None


def install_lora(
    source: Path, folder: Path, name: str, *, card: Card, preview: Path | None = None
) -> Installed:
    """Copy the LoRA ``source`` into ``folder`` under a new name, with its card and preview.

    Nothing is ever replaced: hosts do not read a LoRA again that was overwritten, and of two LoRAs of one
    name in two subfolders one vanishes from their lists.

    Args:
        preview: a picture file.

    Raises:
        BadInput, BadCheckpoint, BadPicture: the name is none or is taken, ``source`` is no LoRA, the preview
            no picture, or the folder cannot be written; nothing is left there.
    """
    check_name(name, "the LoRA's name")
    header = read_header(source)
    if detect(header).kind is not Kind.LORA:
        raise BadInput(f"{source.name} is no LoRA: give the file of one")
    picture = None if preview is None else _preview(preview, header)
    taken = names_in(folder) if folder.is_dir() else set()
    if name.casefold() in taken:
        other = free_name(name, lambda one: one.casefold() in taken)
        raise BadInput(f"there is a LoRA {name!r} in {folder}: choose another name, such as {other!r}")
    target = folder / f"{name}.safetensors"
    files: list[tuple[Path, Callable[[Path], bool]]] = [
        (target, lambda place: _copied(source, place, name)),
        (folder / f"{name}.json", lambda place: create_file(place, _card(card, header))),
    ]
    if picture is not None:
        content = picture
        files.append((folder / f"{name}.png", lambda place: create_file(place, content)))
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place, write in files:
            if not write(place):
                raise BadInput(f"there is a file {place} already: choose another name")
            written.append(place)
    except BaseException as error:
        for place in written:
            place.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise BadInput(
                f"the LoRA folder {folder} cannot be written ({error.strerror}): check rights and disk"
            ) from error
        raise
    return Installed(target, written[1], written[2] if picture is not None else None)


def names_in(folder: Path) -> set[str]:
    """The names that are taken in a LoRA folder and below it, in small letters: files, cards, previews."""
    found = set()
    for path in folder.rglob("*"):
        if path.suffix.casefold() in (".safetensors", ".pt", ".ckpt") or (
            path.parent == folder and path.suffix.casefold() in (".json", ".png")
        ):
            found.add(path.stem.casefold())
    return found


def _copied(source: Path, target: Path, name: str) -> bool:
    restate(source, target, dict.fromkeys(_NAME_KEYS, name))
    return True


def _card(card: Card, header: Header) -> bytes:
    """As the hosts' own editor for LoRA metadata writes it."""
    data = {
        "description": card.description,
        "sd version": _VERSIONS.get(detect(header).family, "Unknown"),
        "activation text": card.activation,
        "preferred weight": card.weight,
        "negative text": card.negative,
        "notes": card.notes,
    }
    return (json.dumps(data, indent=4, ensure_ascii=False) + "\n").encode("utf-8")


def _preview(picture: Path, header: Header) -> bytes:
    """The picture as PNG, with the recipe that the LoRA carries."""
    info = PngImagePlugin.PngInfo()
    recipe = header.metadata.get(RECIPE_KEY)
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, recipe)
    content = io.BytesIO()
    read_picture(picture).save(content, format="PNG", pnginfo=info)
    return content.getvalue()
