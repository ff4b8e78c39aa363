"""Which prompt each picture is trained with, step by step."""

from __future__ import annotations

import random
from collections.abc import Sequence

from copier.errors import BadInput
from copier.recipe import CaptionPolicy, CaptionSpec


class CaptionSource:
    """Draws the prompts of a training, from a random stream of its own.

    ``per_picture`` are the texts of the caption files, for the policy ``files``: one a picture; of
    several lines one is drawn each time, as sd-scripts does with ``enable_wildcard``.

    Raises:
        BadInput: the policy is ``files`` and there is not one text for each picture.
    """

    def __init__(
        self, spec: CaptionSpec, per_picture: Sequence[str], *, pictures: int, seed: int
    ) -> None:
        self._spec = spec
        if spec.policy is CaptionPolicy.FILES:
            if len(per_picture) != pictures:
                raise BadInput(
                    f"there are {len(per_picture)} captions for {pictures} pictures: the caption "
                    "policy 'files' needs one for each"
                )
            self._choices = [caption_lines(text) for text in per_picture]
        else:
            self._choices = [spec.texts or ("",)] * pictures
        self._random = random.Random(f"{seed}/captions")

    def draw(self, picture: int) -> str:
        """The next prompt for the picture of that number."""
        if self._spec.dropout and self._random.random() < self._spec.dropout:
            return ""
        choices = self._choices[picture]
        text = choices[self._random.randrange(len(choices))] if len(choices) > 1 else choices[0]
        if not self._spec.shuffle:
            return text
        tags = [tag.strip() for tag in text.split(",")]
        kept, rest = tags[: self._spec.keep_tokens], tags[self._spec.keep_tokens :]
        self._random.shuffle(rest)
        return ", ".join((*kept, *rest))

    def all(self) -> list[str]:
        """Every prompt that can come, each once; with shuffled tags nothing, for they are many."""
        if self._spec.shuffle:
            return []
        left_away = [""] if self._spec.dropout else []
        return list(dict.fromkeys([text for choices in self._choices for text in choices] + left_away))


def caption_lines(text: str) -> tuple[str, ...]:
    """The choices that a caption file gives: its lines without those that are empty, or one empty text."""
    return tuple(line.strip() for line in text.splitlines() if line.strip()) or ("",)
