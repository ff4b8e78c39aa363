"""Locks between processes: on open files, and gone with the process that holds them, however it ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from copier.errors import CopierError

_WAIT = 0.02
"""Seconds between two tries."""
_FAR = 1 << 30
"""Where Windows locks a byte: beyond what anyone reads."""


def flock(handle: int, *, shared: bool = False) -> bool:
    """Lock the open file or folder until it is closed; false where someone else has it locked.

    Raises:
        ImportError: on Windows.
        OSError: the file system has no locks.
    """
    import fcntl

    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class FileLock:
    """A lock that one object at a time holds, of all processes. The file stays, and is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object has it."""
        return self._handle is not None

    def acquire(self, timeout: float = 0.0) -> bool:
        """Whether it was taken within ``timeout`` seconds; true also where this object has it already.

        Raises:
            CopierError: the file cannot be made, or its file system has no locks.
        """
        limit = time.monotonic() + timeout
        while self._handle is None:
            self._handle = self._opened(shared=False)
            if self._handle is None:
                if time.monotonic() >= limit:
                    return False
                time.sleep(_WAIT)
        return True

    def release(self) -> None:
        """Give it back. Harmless when repeated."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def taken(self) -> bool:
        """Whether anyone has it. Those who ask do not hinder each other."""
        if self.held:
            return True
        if not self._path.exists():
            return False
        handle = self._opened(shared=True)
        if handle is not None:
            os.close(handle)
        return handle is None

    def _opened(self, *, shared: bool) -> int | None:
        """The file, open and locked; None where someone else has it."""
        handle = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            if _locked(handle, shared=shared):
                return handle
            os.close(handle)
        except OSError as error:
            if handle is not None:
                os.close(handle)
            raise CopierError(
                f"{self._path} cannot be locked ({error.strerror}): choose a data folder on a disk of this "
                "machine, which can be written, with --data"
            ) from error
        return None


def _locked(handle: int, *, shared: bool) -> bool:
    if sys.platform != "win32":
        return flock(handle, shared=shared)
    import msvcrt

    os.lseek(handle, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    return True
