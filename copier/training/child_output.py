"""Follows what a child process says, until it ends or is to be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from copier.progress import CancelToken
from copier.training.process import Child

_POLL_SECONDS = 0.2
_END_SECONDS = 30.0
PIP_LINES = 4
"""Of pip's output, or of a child that checks it, that a message quotes."""


def _nothing() -> None:
    pass


def lines_of(
    child: Child, cancel: CancelToken | None, *, waiting: Callable[[], None] = _nothing
) -> Iterator[str]:
    """The lines of its standard output as they come; when there are no more, the child has ended.

    ``waiting`` is called now and then while none comes. However this ends, so does the child, with all that
    it started.

    Raises:
        Cancelled: ``cancel`` was set.
    """
    try:
        while True:
            if cancel is not None:
                cancel.check()
            try:
                line = child.read_line(_POLL_SECONDS)
            except TimeoutError:
                waiting()
                continue
            if line is None:
                break
            yield line
        child.wait(_END_SECONDS)
    finally:
        child.stop()
