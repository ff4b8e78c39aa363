"""The host's interrogators as captioners. They load, and may fetch, their models when first asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from copier.errors import TaggingFailed
from copier.host.webui.turns import Turns, Watch
from copier.images.pairs import read_picture
from copier.progress import CancelToken, Observer, ProgressEvent

TITLE = "Copier captions"
CLIP, DEEPBOORU = "CLIP (the WebUI's)", "DeepBooru (the WebUI's)"
_STAGE = "captions"
_FAILED = "<error>"
"""What the hosts' CLIP interrogator answers, or ends its answer with, when it failed."""
_REMEDY = (
    "its console says why (it fetches its models when it is first asked); see whether it works in img2img, "
    "or use the tagger of sd-scripts"
)


class Interrogator:
    """A ``Captioner`` that asks the host, under its queue lock."""

    def __init__(self, turns: Turns, ask: Callable[[Any], str]) -> None:
        self._turns, self._ask = turns, ask

    def __call__(
        self, pictures: Sequence[Path], *, observer: Observer, cancel: CancelToken
    ) -> Sequence[str]:
        """A text for each picture.

        Raises:
            TaggingFailed: the host failed. Cancelled: ``cancel`` was set, or Interrupt pressed.
        """
        found = []
        with self._turns.turn(TITLE, Watch(interrupted=cancel.cancel)):
            for i, path in enumerate(pictures):
                cancel.check()
                found.append(self._said(path))
                observer(ProgressEvent(_STAGE, i + 1, len(pictures)))
        return found

    def _said(self, path: Path) -> str:
        try:
            text = self._ask(read_picture(path).convert("RGB"))
        except Exception as error:
            raise TaggingFailed(
                f"the WebUI's interrogator failed on {path.name} ({type(error).__name__}: {error}): {_REMEDY}"
            ) from error
        if text.endswith(_FAILED):
            raise TaggingFailed(f"the WebUI's interrogator failed on {path.name}: {_REMEDY}")
        return text


def interrogators(turns: Turns) -> dict[str, Interrogator]:
    """Those that the host has, by label."""
    from modules import shared

    found = {}
    if getattr(shared, "interrogator", None) is not None:
        found[CLIP] = Interrogator(turns, lambda image: str(shared.interrogator.interrogate(image)))
    found[DEEPBOORU] = Interrogator(turns, _deepbooru)
    return found


def _deepbooru(image: Any) -> str:
    from modules import deepbooru

    booru = deepbooru.model
    if booru.model is not None and not booru.model.tags:
        # Its weights could not be fetched or read, but the host takes it for loaded, and it finds nothing on
        # any picture. Without it the host tries again.
        booru.model = None
    return str(booru.tag(image))
