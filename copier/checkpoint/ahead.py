"""Reads parts of a safetensors file in a thread, a few ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

import torch

from copier.checkpoint.reader import TensorReader

DEPTH = 2
"""Parts that may wait for their use."""

Span = tuple[str, int, int]
"""A tensor's key, and the first and last byte (exclusive) of a part of it."""


class ReadAhead:
    """The bytes of ``spans`` in their order, uint8 tensors of one dimension; a context manager.

    The memory is that of the largest ``DEPTH`` + 2 parts: each is valid only until the next is asked
    for. While it is open nothing else may read from ``reader``.
    """

    def __init__(self, reader: TensorReader, spans: Sequence[Span]) -> None:
        self._reader, self._spans = reader, spans
        size = max((end - start for _, start, end in spans), default=0)
        self._free: queue.SimpleQueue[torch.Tensor | None] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[torch.Tensor | Exception] = queue.SimpleQueue()
        for _ in range(DEPTH + 2):
            self._free.put(torch.empty(size, dtype=torch.uint8))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._free.put(None)
        self._thread.join()

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Raises ``BadCheckpoint`` or ``OSError`` where a part cannot be read."""
        for _, start, end in self._spans:
            buffer = self._full.get()
            if isinstance(buffer, Exception):
                raise buffer
            yield buffer[: end - start]
            self._free.put(buffer)

    def _read(self) -> None:
        for key, start, end in self._spans:
            buffer = self._free.get()
            if buffer is None or self._closed.is_set():
                return
            try:
                self._reader.read_into(buffer.numpy().data[: end - start], key, start)
            except Exception as error:  # raised again where the part is asked for
                self._full.put(error)
                return
            self._full.put(buffer)
