"""The store of finished stages: one folder a key, whole or absent.

    <root>/<key>/record.json    what was made from what; digests of the files beside it
    <root>/<key>/...            the stage's files
    <root>/.tmp-<key>-<pid>-*   a stage that runs, or that was killed

A stage runs in its temporary folder; ``record.json`` is written last and the folder is then renamed.
An entry that does not verify is a miss and is removed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from copier.digest import file_digest
from copier.writepoints import write_point

log = logging.getLogger(__name__)

RECORD = "record.json"
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class Record:
    """What a finished stage says about itself.

    ``ingredients`` is all that its key was made from; ``outcome`` its figures; ``files`` the SHA-256
    of each file by name; ``seconds`` what it took; ``created`` the time, seconds since 1970.
    """

    key: str
    kind: str
    name: str
    ingredients: Mapping[str, Any]
    outcome: Mapping[str, Any]
    files: Mapping[str, str]
    seconds: float
    created: float


@dataclass(frozen=True)
class Entry:
    """A finished stage in the store."""

    folder: Path
    record: Record

    def path(self, name: str) -> Path:
        """The stage's file of that name."""
        return self.folder / name

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


class StageStore:
    """Finished stages under ``root``, by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Entry | None:
        """The finished stage of that key, verified; None is a miss.

        A damaged entry is removed and counts as a miss.
        """
        folder = self.root / key
        if not folder.is_dir():
            return None
        record = _read_record(folder)
        if record is not None and record.key == key and _verifies(folder, record):
            return Entry(folder, record)
        log.warning("the stored stage %s is damaged and is made anew", key[:12])
        shutil.rmtree(folder)
        return None

    def begin(self, key: str) -> Path:
        """A fresh temporary folder for the stage; leftovers of killed runs of it are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(f"{_TEMPORARY}{key}-*"):
            if not _alive(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        folder = self.root / f"{_TEMPORARY}{key}-{os.getpid()}-{secrets.token_hex(3)}"
        folder.mkdir()
        return folder

    def commit(
        self,
        folder: Path,
        *,
        key: str,
        kind: str,
        name: str,
        ingredients: Mapping[str, Any],
        outcome: Mapping[str, Any],
        seconds: float,
    ) -> Entry:
        """Make the temporary ``folder`` the entry of ``key``."""
        files = {
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        record = Record(key, kind, name, ingredients, outcome, files, seconds, time.time())
        write_point("store-record")
        with open(folder / RECORD, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        write_point("store-rename")
        final = self.root / key
        try:
            os.rename(folder, final)
        except OSError:
            # Another run finished the same stage first: what it made serves as well.
            found = self.find(key)
            if found is None:
                raise
            shutil.rmtree(folder)
            return found
        write_point("store-done")
        return Entry(final, record)

    def entries(self) -> list[Entry]:
        """All finished stages, the newest first; not verified."""
        if not self.root.is_dir():
            return []
        found = []
        for folder in self.root.iterdir():
            if folder.is_dir() and not folder.name.startswith("."):
                record = _read_record(folder)
                if record is not None:
                    found.append(Entry(folder, record))
        return sorted(found, key=lambda entry: -entry.record.created)

    def remove(self, entry: Entry) -> None:
        """Delete one finished stage."""
        shutil.rmtree(entry.folder)

    def remove_leftovers(self) -> int:
        """Delete the temporary folders of runs that no longer live; returns how many."""
        count = 0
        for folder in self.root.glob(f"{_TEMPORARY}*") if self.root.is_dir() else ():
            if not _alive(folder):
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        return count


def _read_record(folder: Path) -> Record | None:
    try:
        return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _verifies(folder: Path, record: Record) -> bool:
    try:
        return all(file_digest(folder / name) == digest for name, digest in record.files.items())
    except OSError:
        return False


def _alive(folder: Path) -> bool:
    """Whether the process that made the temporary folder still runs."""
    try:
        pid = int(folder.name.rsplit("-", 2)[1])
    except (ValueError, IndexError):
        return False
    if pid == os.getpid():
        return True
    if os.name == "nt":
        # os.kill would end the process there: only age tells.
        return time.time() - folder.stat().st_mtime < 86_400
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
