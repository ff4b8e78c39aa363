"""The store of finished stages: one folder a key, whole or absent.

    <root>/<key>/record.json    what was made from what; digests of the files beside it
    <root>/<key>/...            the stage's files
    <root>/.tmp-<key>-<random>  a stage that runs, or that was killed

A stage runs in its temporary folder; ``record.json`` is written last and the folder is then renamed.
The process that made a temporary folder holds a lock on it; a leftover of one that was killed has
none, and is swept. An entry that does not verify is a miss; it is replaced when its stage is made anew.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from copier.digest import file_digest
from copier.lock import flock
from copier.writepoints import write_point

log = logging.getLogger(__name__)

RECORD = "record.json"
_TEMPORARY = ".tmp-"
_OLD_SECONDS = 86_400.0
"""Age of a leftover where folders cannot be locked (Windows): no stage runs longer."""


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


_RECORD_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("key", "kind", "name"), str),
    **dict.fromkeys(("ingredients", "outcome", "files"), dict),
    **dict.fromkeys(("seconds", "created"), (int, float)),
}


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
        """Bytes on disk; 0 where another process has deleted the stage meanwhile."""
        try:
            return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        except FileNotFoundError:
            return 0


class StageStore:
    """Finished stages under ``root``, by key. Several processes may use one root at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks: dict[Path, int] = {}

    def find(self, key: str) -> Entry | None:
        """The finished stage of that key, verified; None is a miss. Nothing is written.

        Every file must be there with the digest that the record says, and no other file.
        """
        folder = self.root / key
        if not folder.is_dir():
            return None
        record = _read_record(folder)
        if record is not None and record.key == key and _digests(folder) == record.files:
            return Entry(folder, record)
        log.warning("the stored stage %s is damaged: it does not count, and is made anew", key[:12])
        return None

    def begin(self, key: str) -> Path:
        """A fresh temporary folder, locked, for what will have that key; its leftovers are swept."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep(f"{_TEMPORARY}{key}-*")
        while True:
            folder = self.root / f"{_TEMPORARY}{key}-{secrets.token_hex(4)}"
            folder.mkdir()
            try:
                lock = _lock(folder)
            except FileNotFoundError:
                continue
            except OSError:
                break
            # Between creation and lock another process may have taken it for a leftover.
            if lock is not None and folder.is_dir():
                self._locks[folder] = lock
                break
            _unlock(lock)
        write_point("store-begin")
        return folder

    def discard(self, folder: Path) -> None:
        """Delete a temporary folder that ``begin`` gave. Harmless when repeated."""
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(self._locks.pop(folder, None))

    @contextlib.contextmanager
    def scratch(self, what: str) -> Iterator[Path]:
        """A temporary folder for work that leaves no stage; what a killed process left of it is swept."""
        folder = self.begin(what)
        try:
            yield folder
        finally:
            self.discard(folder)

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
        """Make the temporary ``folder`` the entry of ``key``.

        Where another run was faster its entry stays, and is the answer. Raises OSError where the
        folder cannot be written or renamed.
        """
        files = _digests(folder)
        if files is None:
            raise OSError(f"the files of the stage {name!r} cannot be read back from {folder}")
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
            found = self.find(key)
            if found is not None:
                self.discard(folder)
                return found
            if not final.exists():
                raise
            self._delete(final)
            os.rename(folder, final)
        _unlock(self._locks.pop(folder, None))
        write_point("store-done")
        return Entry(final, record)

    def entries(self) -> list[Entry]:
        """All finished stages, the newest first; not verified."""
        if not self.root.is_dir():
            return []
        folders = [folder for folder in self.root.iterdir() if not folder.name.startswith(".")]
        records = [(folder, _read_record(folder)) for folder in folders]
        found = [Entry(folder, record) for folder, record in records if record is not None]
        return sorted(found, key=lambda entry: -entry.record.created)

    def remove(self, entry: Entry) -> bool:
        """Delete one finished stage; False where another process has just done so."""
        try:
            self._delete(entry.folder)
        except FileNotFoundError:
            return False
        return True

    def in_use(self) -> bool:
        """Whether a run is at work here: one that makes a stage holds the lock of its folder.

        Where folders cannot be locked (Windows), a temporary folder younger than a day counts.
        """
        for folder in self.root.glob(f"{_TEMPORARY}*"):
            try:
                lock = _lock(folder)
            except FileNotFoundError:
                continue
            except OSError:
                if _age(folder) < _OLD_SECONDS:
                    return True
                continue
            if lock is None:
                return True
            _unlock(lock)
        return False

    def remove_leftovers(self) -> int:
        """Delete the temporary folders of runs that no longer live; returns how many."""
        return self._sweep(f"{_TEMPORARY}*")

    def _delete(self, folder: Path) -> None:
        """Delete an entry; it is gone in one step, even if the process is killed meanwhile."""
        aside = self.root / f"{_TEMPORARY}{folder.name}-{secrets.token_hex(4)}"
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self, pattern: str) -> int:
        count = 0
        for folder in list(self.root.glob(pattern)):
            try:
                lock = _lock(folder)
            except OSError:
                if _age(folder) < _OLD_SECONDS:
                    continue
                lock = None
            else:
                if lock is None:
                    continue
            shutil.rmtree(folder, ignore_errors=True)
            _unlock(lock)
            count += 1
        return count


def _read_record(folder: Path) -> Record | None:
    try:
        record = Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sound = all(isinstance(getattr(record, name), kind) for name, kind in _RECORD_TYPES.items())
    return record if sound else None


def _digests(folder: Path) -> dict[str, str] | None:
    """SHA-256 of every file but the record, by its name in ``folder``; None where one is unreadable."""
    try:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in paths}
        return {name: file_digest(path) for name, path in names.items() if name != RECORD}
    except OSError:
        return None


def _lock(folder: Path) -> int | None:
    """A descriptor that locks ``folder`` until it is closed; None where someone else has the lock.

    Raises OSError where there is no such folder, or where folders cannot be locked.
    """
    if os.name == "nt":
        raise OSError("folders cannot be locked on Windows")
    handle = os.open(folder, os.O_RDONLY)
    try:
        if flock(handle):
            return handle
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _age(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - folder.stat().st_mtime
    return 0.0
