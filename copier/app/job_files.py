"""Jobs on the disk: a folder each, whole or absent; changes are made under one short lock.

    <root>/<id>/job.json     the job, replaced in one step
    <root>/.new-<random>     a job that is being made, or whose maker was killed
    <root>/.gone-<random>    one that is being deleted
    <root>/queue.lock        held while a job is made, changed or deleted
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from copier.app.job_values import Failure, Job, JobState
from copier.errors import CopierError
from copier.lock import FileLock
from copier.temporary import remove_leftovers, replace_file

EVENTS = "events.jsonl"
STOP = "stop"
SAMPLES = "samples"
_JOB = "job.json"
_FORMAT = "copier-job"
_VERSION = 1
_NEW, _GONE = ".new-", ".gone-"
_LOCK_SECONDS = 10.0
"""Changes take milliseconds; who waits longer waits for a process that was halted."""


class JobFiles:
    """The jobs under ``root``. Several objects and processes may use one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._line = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int, int], Job]] = {}

    def create(self, kind: str, title: str, payload: Mapping[str, Any], *, retry_of: str = "") -> Job:
        """A queued job at the end of the queue. Raises OSError, CopierError."""
        with self._changing():
            self._sweep()
            number = 1 + max((job.number for job in self.every()), default=0)
            id = f"{number:04d}-{secrets.token_hex(2)}"
            job = Job(
                id=id,
                kind=kind,
                title=title,
                state=JobState.QUEUED,
                payload=payload,
                folder=self.root / id,
                created=time.time(),
                retry_of=retry_of,
            )
            making = self.root / f"{_NEW}{secrets.token_hex(4)}"
            making.mkdir()
            replace_file(making / _JOB, _to_bytes(job))
            os.rename(making, job.folder)
        return job

    def every(self) -> list[Job]:
        """All jobs in the order of submission; what cannot be read is left out."""
        if not self.root.is_dir():
            return []
        names = [name for name in os.listdir(self.root) if not name.startswith(".")]
        found = [job for job in map(self.read, names) if job is not None]
        known = self._known  # other threads replace it, but take nothing out of it
        self._known = {job.id: known[job.id] for job in found if job.id in known}
        return sorted(found, key=lambda job: (job.number, job.id))

    def read(self, id: str) -> Job | None:
        """The job of exactly that id; None where there is none that can be read."""
        path = self.root / id / _JOB
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._known.get(id)
            if known is not None and known[0] == stamp:
                return known[1]
            job = _from_json(json.loads(path.read_text(encoding="utf-8")), path.parent)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        self._known[id] = (stamp, job)
        return job

    def change(self, id: str, change: Callable[[Job], Job]) -> Job | None:
        """Replace the job by what ``change`` makes of it; None where it is gone. Raises OSError."""
        with self._changing():
            job = self.read(id)
            if job is None:
                return None
            changed = change(job)
            if changed != job:
                replace_file(job.folder / _JOB, _to_bytes(changed))
            return changed

    def claim(self) -> Job | None:
        """The first job of the queue, which runs from now on; None where the queue is empty."""
        if not any(job.state is JobState.QUEUED for job in self.every()):
            return None
        with self._changing():
            for job in self.every():
                if job.state is JobState.QUEUED:
                    running = replace(job, state=JobState.RUNNING, started=time.time())
                    replace_file(job.folder / _JOB, _to_bytes(running))
                    return running
        return None

    def delete(self, id: str, allowed: Callable[[Job], None]) -> Job | None:
        """Delete the job, gone in one step, unless ``allowed`` raises; None where it is gone already."""
        with self._changing():
            job = self.read(id)
            if job is None:
                return None
            allowed(job)
            aside = self.root / f"{_GONE}{secrets.token_hex(4)}"
            os.rename(job.folder, aside)
            shutil.rmtree(aside, ignore_errors=True)
        return job

    def recover(self) -> None:
        """Called by who works the queue, before the first job: what a killed process left is put right."""
        for job in self.every():
            if job.state is JobState.RUNNING:
                self.change(job.id, interrupted)
            remove_leftovers(job.folder / _JOB)
        with self._changing():
            self._sweep()

    def _sweep(self) -> None:
        for pattern in (_NEW, _GONE):
            for leftover in self.root.glob(f"{pattern}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        # The threads of this object wait in line for each other: of many that look at a file again and
        # again, one may be passed over for long.
        with self._line:
            # One lock object a call: several objects of one process may use one root.
            lock = FileLock(self.root / "queue.lock")
            if not lock.acquire(_LOCK_SECONDS):
                raise CopierError(
                    f"the queue in {self.root} has been locked for {_LOCK_SECONDS:.0f} s: another process "
                    "that changes it was halted; end that process, then try again"
                )
            try:
                yield
            finally:
                lock.release()


def interrupted(job: Job) -> Job:
    """The job as it is when its process has ended while it ran."""
    if job.state is not JobState.RUNNING:
        return job
    asked = (job.folder / STOP).exists()
    return replace(job, state=JobState.STOPPED if asked else JobState.INTERRUPTED)


def _to_bytes(job: Job) -> bytes:
    data = asdict(job)
    del data["folder"]
    # Escaped: file names that are no text survive it.
    text = json.dumps({"format": _FORMAT, "version": _VERSION, **data}, indent=1, ensure_ascii=True)
    return text.encode("ascii")


def _from_json(data: Mapping[str, Any], folder: Path) -> Job:
    """Raises KeyError, TypeError or ValueError for what is no job of a version that is known."""
    if data["format"] != _FORMAT or not 1 <= data["version"] <= _VERSION or data["id"] != folder.name:
        raise ValueError("no job")
    values = {name: value for name, value in data.items() if name not in ("format", "version")}
    failure = values["failure"]
    if failure is not None:
        failure = Failure(failure["error"], failure["message"], tuple(failure["settings"]))
    job = Job(**{**values, "folder": folder, "failure": failure, "state": JobState(values["state"])})
    if not isinstance(job.payload, dict) or job.number < 1:
        raise TypeError("no job")
    return job
