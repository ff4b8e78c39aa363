"""What a command gets besides its arguments, and what it gives back."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from copier.app.settings import Settings, default_data_folder
from copier.cli.bars import Progress
from copier.progress import CancelToken


@dataclass(frozen=True)
class Embedded:
    """What the command line itself may not import: the pocket checkpoint, and the tab as a page.

    ``checkpoint`` gives its path; ``install`` puts it into a WebUI's folder and gives what it wrote;
    ``serve`` serves the page until the user ends it.
    """

    checkpoint: Callable[[], Path]
    install: Callable[[Path], list[Path]]
    serve: Callable[[Session], None]


@dataclass(frozen=True)
class Answer:
    """The outcome of a command: one JSON object, and the same as text for a person."""

    data: dict[str, Any]
    text: str


@dataclass
class Session:
    """One invocation of the program."""

    arguments: argparse.Namespace
    embedded: Embedded
    progress: Progress = field(default_factory=lambda: Progress(sys.stderr))
    kept: str = "nothing was written"
    """What remains if the user stops the command now."""
    cancel: CancelToken | None = None

    @property
    def settings(self) -> Settings:
        """The data directory: --data, COPIER_DATA, or the platform's own."""
        return Settings(self.arguments.data or default_data_folder())

    def note(self, text: str) -> None:
        """One line on standard error."""
        self.progress.line(f"note: {text}")

    def stoppable(self) -> CancelToken:
        """The token that Ctrl-C sets from now on; without it Ctrl-C ends the command at once."""
        self.cancel = self.cancel or CancelToken()
        return self.cancel

    def checkpoint(self) -> Path:
        """--checkpoint, or the embedded one, with a note."""
        given: Path | None = self.arguments.checkpoint
        if given is not None:
            return given
        path = self.embedded.checkpoint()
        self.note(
            f"no --checkpoint given: using the embedded pocket checkpoint ({path.name}), which draws "
            "simple shapes; it is for trying things out"
        )
        return path


class StopSignals:
    """While the block runs, Ctrl-C and SIGTERM stop the session's command.

    The first one sets the token, where the command asked for one (``Session.stoppable``), so that it
    ends between two steps; without one, and from the second on, it raises KeyboardInterrupt.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        token = self._session.cancel
        if token is None or token.cancelled:
            raise KeyboardInterrupt
        token.cancel()
        # The signal may have interrupted a write to the same stream, which cannot be entered again.
        with contextlib.suppress(RuntimeError):
            self._session.progress.line("stopping after this step; once more ends it at once")
