"""Digests: of files, remembered by size and time, and of JSON values in one canonical form."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from copier.progress import CancelToken
from copier.writepoints import write_point

log = logging.getLogger(__name__)

_CHUNK = 4 * 1024 * 1024
_HEX_DIGITS = 64
_WAIT = 0.1
"""Seconds between two looks at whether a wait was given up."""


def json_digest(value: Any) -> str:
    """SHA-256, in hex, of ``value`` as JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str], *, cancel: CancelToken | None = None) -> str:
    """SHA-256, in hex, of the file's content. Raises ``Cancelled`` where ``cancel`` is set."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if cancel is not None:
                cancel.check()
    return digest.hexdigest()


def wait_for(running: Sequence[Future[Any]], cancel: CancelToken | None) -> None:
    """Return when all are done, however they ended; raises ``Cancelled`` soon after ``cancel`` was set."""
    unfinished = True
    while unfinished:
        if cancel is not None:
            cancel.check()
        unfinished = bool(wait(running, timeout=_WAIT).not_done)


class DigestMemory:
    """File digests remembered in a file, so that a big checkpoint is hashed once.

    The file has one JSON list a line: [path, size in bytes, modification time in ns, SHA-256]; the
    last line of a path counts, as long as size and time are the same. Lines are only ever appended,
    so that processes may share it. The memory is only a shortcut: lines that cannot be read are
    skipped. With ``write`` false nothing is remembered beyond this object: for a dry run, which
    writes nothing.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self._path = path
        self._write = write
        self._known: dict[str, tuple[int, int, str]] = {}
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def digest(self, path: str | os.PathLike[str], *, cancel: CancelToken | None = None) -> str:
        """SHA-256, in hex, of the file's content. Raises OSError where it cannot be read."""
        known = self.known(path)
        if known is not None:
            return known
        status = os.stat(path)
        found = file_digest(path, cancel=cancel)
        self.remember(path, status, found)
        return found

    def known(self, path: str | os.PathLike[str]) -> str | None:
        """The file's digest, if it is remembered. Raises OSError where there is no such file."""
        status = os.stat(path)
        known = self._known.get(os.path.realpath(path))
        same = known is not None and known[:2] == (status.st_size, status.st_mtime_ns)
        return known[2] if known is not None and same else None

    def remember(self, path: str | os.PathLike[str], status: os.stat_result, digest: str) -> None:
        """The file had this digest when its ``os.stat`` was ``status``."""
        name = os.path.realpath(path)
        self._known[name] = (status.st_size, status.st_mtime_ns, digest)
        if self._write:
            self._append([name, *self._known[name]])

    def _read(self, line: str) -> None:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            name, size, time, digest = json.loads(line)
            if isinstance(name, str) and isinstance(digest, str) and len(digest) == _HEX_DIGITS:
                self._known[name] = (size, time, digest)

    def _append(self, entry: list[str | int]) -> None:
        # A line feed comes first too: a process that was killed may have left half a line.
        line = f"\n{json.dumps(entry)}\n".encode()
        write_point("digests-append")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            log.warning("the digest of %s is not remembered: %s", entry[0], error)
        write_point("digests-done")


class DigestsAhead:
    """Digests of files, those not in ``memory`` computed in threads from now on, each file in one.

    A context manager: where its block ends, what is not finished is given up, and what is known is
    remembered, unless the block failed.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]], memory: DigestMemory) -> None:
        self._memory, self._cancel = memory, CancelToken()
        self._threads = ThreadPoolExecutor(thread_name_prefix="digest")
        self._found = {
            name: self._threads.submit(self._digest, name) for name in {os.fspath(path) for path in paths}
        }

    def __enter__(self) -> DigestsAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cancel.cancel()
        self._threads.shutdown()
        if kind is None:
            for name, one in self._found.items():
                if one.exception() is None and self._memory.known(name) is None:
                    self._memory.remember(name, *one.result())

    def digest(self, path: str | os.PathLike[str], *, cancel: CancelToken | None = None) -> str:
        """SHA-256, in hex, of the file's content. Raises OSError where it cannot be read."""
        found = self._found[os.fspath(path)]
        wait_for([found], cancel)
        return found.result()[1]

    def _digest(self, path: str) -> tuple[os.stat_result, str]:
        status = os.stat(path)
        return status, self._memory.known(path) or file_digest(path, cancel=self._cancel)
