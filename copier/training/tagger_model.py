"""The model of a WD14 tagger: two files in a folder of the user's, or in the place for the usual one."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput, NotInstalled

REPOSITORY = "SmilingWolf/wd-v1-4-convnext-tagger-v2"
"""The model that sd-scripts' tagger takes by itself (v0.10.1), and the one that may be downloaded."""
MODEL, TAGS = "model.onnx", "selected_tags.csv"
_HEADER = ["tag_id", "name", "category"]
_RATING, _GENERAL = "9", "0"
_RATINGS = 4
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class TaggerModel:
    """A folder with the two files; ``here`` is false where the script has to download them first."""

    folder: Path
    here: bool = True


def usual_place(models: Path) -> Path:
    """The folder of the usual model in ``models``, by sd-scripts' own name for it."""
    return models / REPOSITORY.replace("/", "_")


def has_model(folder: Path) -> bool:
    """Whether both files are in the folder."""
    return not _missing(folder)


def find_model(models: Path, own: Path | None = None, *, allow_download: bool = False) -> TaggerModel:
    """The model in the user's folder ``own``, else the usual one in ``models``.

    Raises:
        NotInstalled: it is not there, and may not be downloaded; the message says where to put it.
        BadInput: a folder of the user's without the two files, or files that are no such model.
    """
    folder = own or usual_place(models)
    if missing := _missing(folder):
        if own is not None:
            raise BadInput(
                f"the folder {own} has no {' and no '.join(missing)}: name one that has both files of a WD14 "
                "tagger in the format ONNX"
            )
        if not allow_download:
            raise NotInstalled(
                f"the tagger's model is not there: put {MODEL} and {TAGS} of {REPOSITORY} into {folder}, "
                "name a folder with another WD14 tagger (--model), or let it be downloaded "
                "(--allow-download, several hundred MB)"
            )
        return TaggerModel(folder, here=False)
    check_model(folder)
    return TaggerModel(folder)


def check_model(folder: Path) -> None:
    """Refuse a model that sd-scripts would read wrongly, without a word, or late.

    It takes the first 4 numbers that the model gives for ratings and those that follow for the tags of the
    category general, wherever these are in the table of tags.

    Raises:
        BadInput: the files are placeholders, cannot be read, or the table is in another order.
    """
    model, table = folder / MODEL, folder / TAGS
    try:
        with open(model, "rb") as file:
            start = file.read(len(_POINTER))
        with open(table, encoding="utf-8", newline="") as text:
            header, *rows = list(csv.reader(text)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise BadInput(f"the tagger's model in {folder} cannot be read ({error}): copy it anew") from error
    if not start or start == _POINTER:
        raise BadInput(
            f"{model} is {'a placeholder of Git LFS' if start else 'empty'}, not the model: download the "
            "file itself"
        )
    if header[: len(_HEADER)] != _HEADER or any(len(row) < len(_HEADER) for row in rows):
        raise BadInput(
            f"{table} does not have the columns {', '.join(_HEADER)}: take the table that belongs to the "
            "model"
        )
    categories = [row[2] for row in rows]
    general = categories.count(_GENERAL)
    if not general or categories[: _RATINGS + general] != [_RATING] * _RATINGS + [_GENERAL] * general:
        raise BadInput(
            f"the tags in {table} are not in the order that sd-scripts reads ({_RATINGS} ratings, category "
            f"{_RATING}; then the general tags, {_GENERAL}; then others): take another WD14 tagger"
        )


def keep_download(made: Path, model: TaggerModel) -> None:
    """Move the two files that were downloaded into the folder ``made`` to the model's own place.

    Only where both are there: they bear their names once they are whole. A file that is there already stays.
    Raises OSError.
    """
    if _missing(made):
        return
    model.folder.mkdir(parents=True, exist_ok=True)
    for name in (TAGS, MODEL):
        if not (model.folder / name).exists():
            os.replace(made / name, model.folder / name)


def _missing(folder: Path) -> list[str]:
    return [name for name in (MODEL, TAGS) if not (folder / name).is_file()]
