"""Captions from tags: what a caption keeps of the tags of its picture, as pure functions.

A tag is a few words, such as ``white background``; a caption is tags with commas between them. Two spellings
name one tag where only capitals, underscores or the backslashes before brackets differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

from copier.errors import BadInput
from copier.progress import CancelToken, Observer

CAPTION_ENDING = ".txt"
"""Of caption files, which have the names of their pictures."""
ZOOM_LEVELS = ("close-up", "portrait", "upper body", "cowboy shot", "full body", "wide shot")
"""How much of a body a picture shows, in the words of the WD14 taggers' vocabulary (Danbooru's)."""
FRAMING = ("from behind", *ZOOM_LEVELS)
"""What the captions of a base set have beside what varies in it: the recipe "character via a base"."""
CONSTANT = ("white background", "arms at sides", *FRAMING)
"""To what that recipe reduces the captions of the character that is trained on the base."""


class Policy(str, Enum):
    """What a caption keeps of what is said about its picture.

    ``all`` takes it as it is; ``varies`` is ``naming_what_varies``, ``constant`` is ``naming_only``.
    """

    ALL = "all"
    VARIES = "varies"
    CONSTANT = "constant"


DEFAULT_KEEP = {Policy.ALL: (), Policy.VARIES: FRAMING, Policy.CONSTANT: CONSTANT}
"""The tags that a policy keeps on whichever picture they are."""


class Captioner(Protocol):
    """Says what is on pictures: a tagger, caption files that are there, an interrogator of a WebUI."""

    def __call__(
        self, pictures: Sequence[Path], *, observer: Observer, cancel: CancelToken
    ) -> Sequence[str]:
        """A text for each picture, in their order: tags with commas between them, or a sentence.

        Raises:
            CopierError: there is none for a picture; the message says why. ``Cancelled`` where ``cancel`` was
                set.
        """


def tags_of(text: str) -> tuple[str, ...]:
    """The tags of a caption, without surrounding space, each once, in their order.

    The lines of a text with several count as one: as much as all of them say is on the picture.
    """
    found: dict[str, str] = {}
    for part in text.replace("\n", ",").split(","):
        if tag := part.strip():
            found.setdefault(same_tag(tag), tag)
    return tuple(found.values())


def caption_of(tags: Iterable[str]) -> str:
    """The caption that consists of the tags."""
    return ", ".join(tags)


def same_tag(tag: str) -> str:
    """The spelling by which tags are compared: ``White_Background`` and ``white background`` are one."""
    return " ".join(tag.replace("_", " ").replace("\\", "").casefold().split())


def on_every_picture(pictures: Sequence[Sequence[str]]) -> frozenset[str]:
    """The tags, as ``same_tag`` spells them, that are on each of the ``pictures``."""
    return frozenset.intersection(*map(_names, pictures)) if pictures else frozenset()


def naming_what_varies(
    pictures: Sequence[Sequence[str]], *, keep: Iterable[str] = FRAMING
) -> list[tuple[str, ...]]:
    """The tags of each picture that are not on all of them, and those in ``keep``; in their order.

    For a base set: what all of its pictures share is left unnamed, and goes into the LoRA whatever the
    prompt. Of one picture alone nothing varies.
    """
    unnamed = on_every_picture(pictures) - _names(keep)
    return [tuple(tag for tag in tags if same_tag(tag) not in unnamed) for tags in pictures]


def naming_only(
    pictures: Sequence[Sequence[str]], *, keep: Iterable[str] = CONSTANT
) -> list[tuple[str, ...]]:
    """The tags of each picture that are in ``keep``, in their order.

    For what is trained on a base: what is left unnamed, a character for instance, goes into the LoRA.
    """
    named = _names(keep)
    return [tuple(tag for tag in tags if same_tag(tag) in named) for tags in pictures]


def captions_by(policy: Policy, texts: Sequence[str], keep: Sequence[str] | None = None) -> list[str]:
    """The captions of a set of pictures, from what is said about each of them.

    Args:
        texts: one for each picture of the set.
        keep: in place of the policy's own list (``DEFAULT_KEEP``).

    Raises:
        BadInput: ``keep`` is given to the policy ``all``, which keeps everything, or has a comma in a tag.
    """
    kept = DEFAULT_KEEP[policy] if keep is None else tuple(keep)
    if policy is Policy.ALL:
        if kept:
            raise BadInput("the policy 'all' keeps every tag: name tags to keep with another one only")
        return list(texts)
    for tag in kept:
        if tags_of(tag) != (tag.strip(),):
            raise BadInput(f"{tag!r} is not one tag: give a single tag without a comma, several one by one")
    reduced: Callable[..., list[tuple[str, ...]]]
    reduced = naming_what_varies if policy is Policy.VARIES else naming_only
    return [caption_of(tags) for tags in reduced([tags_of(text) for text in texts], keep=kept)]


def _names(tags: Iterable[str]) -> frozenset[str]:
    return frozenset(map(same_tag, tags))
