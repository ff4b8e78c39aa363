"""Captions of the sets of a recipe, as a page holds them: kept as caption files, which a run reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from copier.app.checks import check_data_folder
from copier.app.settings import Settings
from copier.captioning import CAPTION_ENDING
from copier.digest import json_digest
from copier.fields import check_text
from copier.pipeline.plan import caption_folder, read_captions
from copier.temporary import create_file, replace_file

CaptionSets = Mapping[str, Mapping[str, str]]
"""By the name of the set, and by the name of the picture without its ending."""


def keep_caption_sets(sets: CaptionSets, settings: Settings) -> Path:
    """A folder for ``RunRequest.captions`` in the data directory; the same captions are kept once.

    Raises:
        BadInput: a caption that no file can hold, or the data folder cannot be written.
    """
    texts = {name: dict(captions) for name, captions in sets.items()}
    for captions in texts.values():
        for stem, text in captions.items():
            check_text(f"the caption of {stem}", text)
    check_data_folder(settings.data)
    folder = settings.captions / json_digest(texts)[:16]
    for place, content in _files(texts, folder):
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, content)
    return folder


def write_caption_sets(sets: CaptionSets, folder: Path) -> None:
    """The same as new files in ``folder``: what is there stays.

    Raises:
        OSError: it cannot be written.
    """
    for place, content in _files(sets, folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        create_file(place, content)


def _files(sets: CaptionSets, folder: Path) -> list[tuple[Path, bytes]]:
    # An empty line, not an empty file: that is an error to sd-scripts.
    return [
        (folder / name / f"{stem}{CAPTION_ENDING}", f"{text}\n".encode())
        for name, captions in sets.items()
        for stem, text in captions.items()
    ]


def caption_in(folder: Path, set_name: str, stem: str) -> str:
    """The caption of a picture in a folder of captions, or "" where there is none.

    Raises:
        BadInput: its file cannot be read.
    """
    place = caption_folder(folder, set_name) / f"{stem}{CAPTION_ENDING}"
    return caption_text(place) if place.is_file() else ""


def caption_text(file: Path) -> str:
    """The text of a caption file. Raises BadInput where it cannot be read."""
    return read_captions(file).rstrip("\r\n")
