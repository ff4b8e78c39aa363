"""Work on a file in stages that run side by side: each is an iterator that a thread of its own drives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

Item = TypeVar("Item")


class Closed(Exception):
    """Nobody wants what a stage would do next."""


class Buffers:
    """A few uint8 tensors of one size, used in turn; memory that is used again costs no page faults."""

    def __init__(self, count: int, size: int) -> None:
        self._free: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
        with torch.inference_mode(False):  # a host's, which the stages' threads do not share
            for _ in range(count):
                self._free.put(torch.empty(size, dtype=torch.uint8))

    def take(self) -> torch.Tensor:
        """One that nobody uses; waits for it. Raises ``Closed`` once they are closed."""
        buffer = self._free.get()
        if buffer is None:
            self._free.put(None)
            raise Closed
        return buffer

    def give(self, buffer: torch.Tensor) -> None:
        """It may be taken again."""
        self._free.put(buffer)

    def close(self) -> None:
        """End whoever waits for one, now or later."""
        self._free.put(None)


class _Stage(Generic[Item]):
    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._done: queue.SimpleQueue[tuple[Item | None, Exception | None]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._drive, name="stage", daemon=True)

    def __iter__(self) -> Iterator[Item]:
        while True:
            item, error = self._done.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def _drive(self) -> None:
        try:
            for item in self._items:
                self._done.put((item, None))
            self._done.put((None, None))
        except Exception as error:  # raised again where the next item is asked for
            self._done.put((None, error))


@contextmanager
def in_thread(items: Iterator[Item], *buffers: Buffers) -> Iterator[Iterator[Item]]:
    """The same items, none of them None, made in a thread, ahead of their use.

    What keeps it from running far ahead is that it waits for one of ``buffers``; they are closed at the
    end, so that the thread ends too. Its errors are raised where the next item is asked for.
    """
    stage = _Stage(items)
    stage.thread.start()
    try:
        yield iter(stage)
    finally:
        for one in buffers:
            one.close()
        stage.thread.join()
