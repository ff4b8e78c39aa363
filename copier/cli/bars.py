"""Progress on standard error: a bar in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from copier.progress import ProgressEvent

_NAME_WIDTH = 18
_BAR_WIDTH = 24
_REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 10.0
"""Time between two lines where the output is no terminal."""


class Progress:
    """An observer that shows stage, bar, step, loss and time left on ``stream``."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._full, self._empty = _bar_characters(stream)
        self._stage = ""
        self._started = 0.0
        self._shown = 0.0
        self._drawn = ""
        self._last: ProgressEvent | None = None

    def __call__(self, event: ProgressEvent) -> None:
        if event.stage != self._stage:
            self.finish()
            self._stage, self._started = event.stage, self._clock()
            self._shown = self._started
        if event.message:
            self.line(f"{event.stage:<{_NAME_WIDTH}} {event.message}")
        if event.steps:
            self._last = event
            self._show(event)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._erase()
        print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """End the bar of the current stage with the time that it took. Harmless when repeated."""
        self._erase()
        if self._last is not None:
            loss = "" if self._last.loss is None else f", last loss {self._last.loss:.4f}"
            took = duration(self._clock() - self._started)
            done = self._last.step >= self._last.steps
            state = "done in" if done else f"ended at step {self._last.step} of {self._last.steps} after"
            print(f"{self._stage:<{_NAME_WIDTH}} {state} {took}{loss}", file=self._stream, flush=True)
        self._last, self._stage = None, ""

    def _show(self, event: ProgressEvent) -> None:
        now = self._clock()
        wait = _REDRAW_SECONDS if self._terminal else PLAIN_SECONDS
        if now - self._shown < wait:
            return
        self._shown = now
        text = self._text(event, now)
        if not self._terminal:
            print(text, file=self._stream, flush=True)
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        rest = " " * (len(self._drawn) - len(text))
        self._stream.write(f"\r{text}{rest}")
        self._stream.flush()
        self._drawn = text

    def _text(self, event: ProgressEvent, now: float) -> str:
        share = min(1.0, event.step / event.steps)
        filled = round(share * _BAR_WIDTH)
        bar = self._full * filled + self._empty * (_BAR_WIDTH - filled)
        parts = [f"{event.stage:<{_NAME_WIDTH}} {bar} {event.step:>5}/{event.steps}"]
        if event.loss is not None:
            parts.append(f"loss {event.loss:.4f}")
        left = event.seconds_left
        if left is None and 0 < event.step < event.steps:
            left = (now - self._started) * (event.steps - event.step) / event.step
        if left is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write("\r" + " " * len(self._drawn) + "\r")
            self._drawn = ""


def duration(seconds: float) -> str:
    """Seconds as people say them: ``0.4 s``, ``42 s``, ``3:07``, ``1:02:03``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar_characters(stream: TextIO) -> tuple[str, str]:
    try:
        "█░".encode(getattr(stream, "encoding", None) or sys.getdefaultencoding())
    except (UnicodeEncodeError, LookupError):
        return "#", "."
    return "█", "░"
