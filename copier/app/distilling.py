"""Distillation: pictures drawn with a LoRA at a part of its weight; the good ones become a training set.

The character article's last step: a LoRA that also brings what it should not is applied at half weight, and
those of its pictures that came out right are what the next one is trained on, by any recipe.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.app.names import free_name
from copier.app.pictures import DrawRequest, check_loras, draw
from copier.app.service import check_checkpoint
from copier.app.settings import Settings
from copier.captioning import CAPTION_ENDING
from copier.codec import spec_to_json
from copier.digest import DigestMemory, file_digest
from copier.errors import BadInput
from copier.progress import CancelToken, Observer, ignore
from copier.temporary import copy_if_absent, create_file

WEIGHT = 0.5
"""Of the LoRA: "about half" (the character article)."""
LISTING = "candidates.json"
"""What the candidates in a folder were drawn from."""
_SCHEMA = "copier.candidates"
_NUMBERS = ("negative", "steps", "guidance", "width", "height")
"""Fields of a request that are written as they are."""
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Candidate:
    """A picture that may be picked: its number, from 1, and what it was drawn from."""

    number: int
    path: Path
    prompt: str
    seed: int


def candidates(
    request: DrawRequest,
    settings: Settings,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> tuple[Candidate, ...]:
    """Draw the pictures of ``request`` into its folder, or find those that an earlier call drew there.

    Raises:
        BadInput: the folder has candidates that were drawn otherwise, or some are missing or changed; and as
            ``app.pictures.draw``.
    """
    check_loras(request.loras, check_checkpoint(request.checkpoint, options=request.model))
    asked = _asked(request, settings)
    listing = request.out / LISTING
    if listing.exists():
        return _found(listing, asked)
    drawn = draw(request, settings, observer=observer, cancel=cancel)
    found = [Candidate(i, one.path, one.prompt, one.seed) for i, one in enumerate(drawn, start=1)]
    data = {
        "schema": _SCHEMA,
        "request": asked,
        "pictures": [
            {"file": one.path.name, "sha256": file_digest(one.path), "prompt": one.prompt, "seed": one.seed}
            for one in found
        ],
    }
    create_file(listing, (json.dumps(data, indent=1) + "\n").encode())
    return tuple(found)


def picked(text: str, count: int) -> tuple[int, ...]:
    """The numbers in a text such as ``all``, or ``1,4,7-9``, from 1 to ``count``, each once.

    Raises:
        BadInput: it is something else, or there is no such picture.
    """
    if text.strip().casefold() == "all":
        return tuple(range(1, count + 1))
    found: list[int] = []
    for word in text.split(","):
        match = _RANGE.fullmatch(word.strip())
        if match is None:
            raise BadInput(f"{word.strip()!r} names no pictures: write all, or numbers, as in 1,4,7-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= count:
            raise BadInput(f"there is no picture {word.strip()}: the numbers go from 1 to {count}")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def new_set(chosen: Sequence[Candidate], out: Path) -> Path:
    """Copy the candidates into a new folder ``set`` in ``out``, each with its prompt as its caption file.

    ``set-2`` and so on where there is one; it is there whole or not at all. Recipes read the captions with
    the policy ``files``.

    Raises:
        BadInput: no candidate was chosen.
    """
    if not chosen:
        raise BadInput("no picture was picked: a training set needs at least one")
    place = out / free_name("set", lambda name: (out / name).exists())
    work = out / f".{place.name}.making"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        for one in chosen:
            copy_if_absent(one.path, work / f"{one.number:04d}{one.path.suffix}")
            create_file(work / f"{one.number:04d}{CAPTION_ENDING}", f"{one.prompt}\n".encode())
        work.rename(place)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return place


def _asked(request: DrawRequest, settings: Settings) -> dict[str, Any]:
    """What the pictures depend on; files by their content."""
    digest = DigestMemory(settings.digests).digest
    return {
        "checkpoint": digest(request.checkpoint),
        "loras": [[digest(path), weight] for path, weight in request.loras],
        "model": {**spec_to_json(request.model), "vae": request.model.vae and digest(request.model.vae)},
        "prompts": list(request.prompts),
        "seeds": list(request.seeds),
        **{name: getattr(request, name) for name in _NUMBERS},
    }


def _found(listing: Path, asked: dict[str, Any]) -> tuple[Candidate, ...]:
    try:
        data = json.loads(listing.read_text(encoding="utf-8"))
        if data["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}")
        pictures = data["pictures"]
        found = tuple(
            Candidate(number, listing.parent / Path(one["file"]).name, one["prompt"], one["seed"])
            for number, one in enumerate(pictures, start=1)
        )
        digests = [one["sha256"] for one in pictures]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{listing} lists no candidates ({error}): choose another folder") from error
    if data["request"] != asked:
        raise BadInput(
            f"the candidates in {listing.parent} were drawn from another LoRA, other prompts, seeds or "
            "numbers: ask for the same, or choose another folder"
        )
    for one, known in zip(found, digests, strict=True):
        if not one.path.is_file() or file_digest(one.path) != known:
            raise BadInput(f"the candidate {one.path} is gone or was changed: choose another folder")
    return found
