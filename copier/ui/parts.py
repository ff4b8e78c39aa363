"""What the tab is made of, handed in from outside, and what its handlers share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
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


class Stoppable:
    """One piece of work at a time that a button can stop: the pictures that are being drawn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token: CancelToken | None = None

    def begin(self) -> CancelToken:
        """The token of new work; what ran before is asked to stop."""
        with self._lock:
            if self._token is not None:
                self._token.cancel()
            self._token = CancelToken()
            return self._token

    def stop(self) -> None:
        """Ask the work to stop."""
        with self._lock:
            if self._token is not None:
                self._token.cancel()


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


def paths(values: Sequence[str] | None) -> tuple[Path, ...]:
    """What a page remembers of files, as far as they are still there."""
    return tuple(path for path in map(Path, values or ()) if path.is_file())


Check = Callable[[Mapping[Any, Any]], Answer]
