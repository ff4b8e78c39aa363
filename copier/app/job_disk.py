"""What a job takes on the disk: its folder, the files that it handed over, and stages that are its alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from copier.app.job_values import DiskUse, Job
from copier.digest import file_digest
from copier.pipeline.store import Entry, StageStore


def disk_use(job: Job, others: Iterable[Job], store: StageStore) -> DiskUse:
    """Bytes of each; ``others`` are the other jobs of the queue."""
    others = list(others)
    files = files_of(job, others)
    return DiskUse(
        job=_size(path for path in job.folder.rglob("*")),
        output=_size(files),
        stages=sum(entry.size for entry in stages_of(job, others, store)),
        files=tuple(files),
    )


def files_of(job: Job, others: Iterable[Job]) -> list[Path]:
    """The files in its output folder that are still as the job wrote them, and that no other job shares."""
    shared = {name for other in others for name in _written(other)}
    found = []
    for name, digest in _written(job).items():
        if name in shared:
            continue
        with contextlib.suppress(OSError):
            if file_digest(name) == digest:
                found.append(Path(name))
    return found


def stages_of(job: Job, others: Iterable[Job], store: StageStore) -> list[Entry]:
    """The finished stages that it used and that no other job did.

    A job that did not get done does not say what it used: its stages are found by pruning the store.
    """
    mine = _keys(job) - {key for other in others for key in _keys(other)}
    return [entry for entry in store.entries() if entry.record.key in mine]


def _written(job: Job) -> dict[str, str]:
    written: dict[str, str] = (job.outcome or {}).get("written", {})
    return written


def _keys(job: Job) -> set[str]:
    stages: Sequence[dict[str, str]] = (job.outcome or {}).get("stages", ())
    return {stage["key"] for stage in stages}


def _size(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
