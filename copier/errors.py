"""Every failure of the program as an exception.

CopierError                 root; its message names the value, the limit and the remedy
├── BadInput                the user's input cannot be used (exit code 2)
│   ├── UnknownName         a name that is not known; offers the nearest ones
│   ├── BadCheckpoint       a file that is not a usable checkpoint or LoRA
│   ├── BadPicture          a file that is not a usable picture, or a pair that is none
│   └── NotNow              it could be used, but not while things are as they are
├── NotInstalled            the trainer's own packages, or sd-scripts, are not there (exit code 1)
├── InstallFailed           they could not be installed (exit code 1)
├── TrainingFailed          a trainer child ended without a LoRA that verifies (exit code 1)
│   └── OutOfMemory         its card's memory did not suffice; knows what to lower
├── TaggingFailed           the tagger ended without tags for every picture (exit code 1)
└── Cancelled               the user stopped it (exit code 130)
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class CopierError(Exception):
    """Root of all failures that the program raises on purpose.

    ``field`` names the field of the input that it is about, where that is known (``about``); else "".
    """

    exit_code = 1
    field = ""


class BadInput(CopierError):
    """The user's input cannot be used; the message says what would be accepted."""

    exit_code = 2


class UnknownName(BadInput):
    """A name that is not known: ``what`` it should name, the ``name`` given, and those ``known``."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        offer = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"there is no {what} {name!r}; {offer}")
        self.name = name
        self.near = near


class BadCheckpoint(BadInput):
    """A file that is not a usable checkpoint or LoRA."""


class BadPicture(BadInput):
    """A file that is not a usable picture, or two pictures that make no pair."""


class NotNow(BadInput):
    """What is asked for cannot be done at present: something runs, or has not ended."""


class NotInstalled(CopierError):
    """The trainer's own packages, or sd-scripts, are not there; the message says how to install them."""


class InstallFailed(CopierError):
    """The trainer's own packages could not be installed; what was there before is as it was."""


class TrainingFailed(CopierError):
    """A trainer child ended without a LoRA that verifies."""


class OutOfMemory(TrainingFailed):
    """The card's memory did not suffice; ``settings`` say what to lower, in order, as ``--set`` takes it."""

    def __init__(self, message: str, settings: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.settings = list(settings)


class TaggingFailed(CopierError):
    """The tagger ended without tags for every picture."""


class Cancelled(CopierError):
    """The user stopped it."""

    exit_code = 130


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Failures within are about that field of the input."""
    try:
        yield
    except CopierError as error:
        error.field = f"{field}.{error.field}" if error.field else field
        raise
