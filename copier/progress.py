"""What a running stage tells about itself, and how it is asked to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from copier.errors import Cancelled

log = logging.getLogger(__name__)


class Phase(str, Enum):
    """What becomes of a stage of a run: all are planned first, then each is reused, or runs and is done."""

    PLANNED = "planned"
    REUSED = "reused"
    STARTED = "started"
    WORKING = "working"
    DONE = "done"


@dataclass(frozen=True)
class ProgressEvent:
    """One piece of news from a stage.

    ``step`` of ``steps`` are done; ``loss`` is that of the step (None where there is none) and
    ``rate`` the seconds a step takes (None until known). ``message`` is one line for a person.
    ``pictures`` are files that were just drawn; those of a stage that still works will be moved.
    """

    stage: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    rate: float | None = None
    message: str = ""
    phase: Phase = Phase.WORKING
    pictures: tuple[str, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the current rate; None until a rate is known."""
        return None if self.rate is None else self.rate * (self.steps - self.step)


Observer = Callable[[ProgressEvent], None]


def ignore(event: ProgressEvent) -> None:
    """The observer that does nothing."""


def guarded(observer: Observer) -> Observer:
    """``observer`` that cannot end a stage: its exceptions are logged, once, and it is then left out."""
    broken = False

    def observe(event: ProgressEvent) -> None:
        nonlocal broken
        if broken:
            return
        try:
            observer(event)
        except Exception:
            broken = True
            log.exception("a progress observer failed and is not called again")

    return observe


class CancelToken:
    """Set once, from any thread; the stage asks for it between steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the running stage to stop."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise ``Cancelled`` if ``cancel`` was called."""
        if self.cancelled:
            raise Cancelled("stopped")
