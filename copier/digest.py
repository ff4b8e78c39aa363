"""Digests: of files, remembered by size and time, and of JSON values in one canonical form."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_CHUNK = 4 * 1024 * 1024


def json_digest(value: Any) -> str:
    """SHA-256, in hex, of ``value`` as JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256, in hex, of the file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class DigestMemory:
    """File digests remembered in one JSON file, so that a big checkpoint is hashed once.

    An entry counts as long as the file's size and modification time (ns) are the same. The memory
    is only a shortcut: an unreadable one is an empty one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list[Any]] = known if isinstance(known, dict) else {}

    def digest(self, path: str | os.PathLike[str]) -> str:
        """SHA-256, in hex, of the file's content."""
        name = os.path.realpath(path)
        status = os.stat(name)
        entry = self._known.get(name)
        stamp = [status.st_size, status.st_mtime_ns]
        if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
            return str(entry[2])
        found = file_digest(name)
        self._known[name] = [*stamp, found]
        self._save()
        return found

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
        os.replace(temporary, self._path)
