"""Writes a long file from several threads, past the system's cache of files where there is a way past it.

Written the ordinary way, every byte is copied into that cache by the processor, which takes most of the time
of a merge and pushes out of memory what other programs have there. Linux writes straight from a program's
memory (``O_DIRECT`` in open(2)) where place, length and address are multiples of a block; where a file
system cannot, and on other systems, the ordinary way is taken.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from typing import BinaryIO

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 4096
"""What is written straight has multiples of this: no disk in use has larger sectors."""

LONG = 64 << 20
"""Files from this size on are written straight: shorter ones fit into any cache, and are often read next."""


def block_memory(size: int) -> torch.Tensor:
    """``size`` bytes (size,) of uint8 whose address is a multiple of ``BLOCK``."""
    return torch.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=torch.uint8)[:size]


class StraightFile:
    """An open unbuffered file that gets ``size`` bytes, in pieces, each at its place, in any order.

    ``write`` may be called from several threads; ``settle`` before the file is used otherwise. Room on the
    disk is taken at once. Raises OSError.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._lock = file, threading.Lock()
        self._edges: list[tuple[int, bytes]] = []
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        self._straight = size >= LONG and _turn(file, straight=True)

    def write(self, data: torch.Tensor, place: int) -> None:
        """Write ``data`` (n,) of uint8 at the byte ``place``.

        Raises ValueError where its address is not as far from a multiple of ``BLOCK`` as the place is.
        """
        if (data.data_ptr() - place) % BLOCK:
            raise ValueError(f"the address {data.data_ptr()} does not fit the place {place}")
        straight, whole = self._straight, data.numpy().data
        first, last = 0, len(data)
        if straight:
            first = min(-place % BLOCK, len(data))
            last = max(first, len(data) - (place + len(data)) % BLOCK)
            # Two pieces may share a block: what they have of it is written the ordinary way, in the end.
            self._edges += [(place, bytes(whole[:first])), (place + last, bytes(whole[last:]))]
        try:
            self._write(whole[first:last], place + first)
        except OSError as error:
            if not (straight and error.errno == errno.EINVAL):
                raise
            # This file system has rules of its own for it, or no way past the cache at all.
            self._straight = not _turn(self._file, straight=False)
            self._write(whole[first:last], place + first)

    def settle(self) -> None:
        """Write what is left; the file is an ordinary one then. Harmless when repeated."""
        _turn(self._file, straight=False)
        self._straight = False
        for place, data in self._edges:
            self._write(memoryview(data), place)
        self._edges.clear()

    def _write(self, data: memoryview, place: int) -> None:
        while data:
            if hasattr(os, "pwrite"):
                count = os.pwrite(self._file.fileno(), data, place)
            else:
                with self._lock:
                    self._file.seek(place)
                    count = self._file.write(data)
            data, place = data[count:], place + count


def _turn(file: BinaryIO, *, straight: bool) -> bool:
    """Switch writing past the cache on or off; did the system take it?"""
    flag = getattr(os, "O_DIRECT", 0)
    if fcntl is None or not flag:
        return False
    with contextlib.suppress(OSError):
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, flags | flag if straight else flags & ~flag)
        return True
    return False
