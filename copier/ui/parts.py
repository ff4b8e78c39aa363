"""What the tab is made of, handed in from outside, and what its handlers share."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.app.jobs import JobService
from copier.app.ports import HostServices
from copier.app.settings import Settings
from copier.errors import CopierError
from copier.progress import CancelToken
from copier.ui.gradio_versions import Answer, Handler
from copier.ui.pieces import note

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The host, the queue of jobs, and where the program keeps its files."""

    host: HostServices
    jobs: JobService
    settings: Settings

    def pictures(self, values: Any) -> tuple[Path, ...]:
        """The picture files that a page remembers, as far as they are still there and were given to it.

        A page can send any path: only what lies in the data and output folders was ever put into one.
        """
        folders = [self.settings.data.resolve(), self.host.folders().output.resolve()]
        found = [Path(one) for one in values or () if isinstance(one, str) and "\0" not in one]
        return tuple(
            one for one in found if one.is_file() and any(one.resolve().is_relative_to(f) for f in folders)
        )


class Stoppable:
    """Work that a button can stop: the pictures that are being drawn, for whichever page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: list[CancelToken] = []

    @contextlib.contextmanager
    def work(self) -> Iterator[CancelToken]:
        """The token of what is done in the block."""
        token = CancelToken()
        with self._lock:
            self._tokens.append(token)
        try:
            yield token
        finally:
            with self._lock:
                self._tokens.remove(token)

    def stop(self) -> None:
        """Ask all of it to stop."""
        with self._lock:
            for token in self._tokens:
                token.cancel()


def saying(handler: Handler, place: Any) -> Handler:
    """``handler``, whose failures are shown in the HTML component ``place``, not in a popup."""

    def guarded(data: dict[Any, Any]) -> Answer:
        try:
            answer = dict(handler(data))
        except CopierError as error:
            return {place: note(str(error), "bad")}
        except Exception as error:  # a bug must not leave the page without a word
            log.exception("a handler of the tab failed")
            return {place: note(f"{type(error).__name__}: {error}", "bad")}
        answer.setdefault(place, "")
        return answer

    return guarded
