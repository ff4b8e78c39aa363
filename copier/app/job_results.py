"""The files that a job left: what may be fetched of it, by names that do not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from copier.app.jobs import RUN, Job, JobView
from copier.app.names import free_name


def result_files(view: JobView) -> dict[str, Path]:
    """LoRAs, pictures and reports that are still there, by their places in the output folder.

    What was drawn on the way is in ``samples/``.
    """
    found: dict[str, Path] = {}
    folder = _folder(view.job)
    for path in _paths(view.job):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        found.setdefault(name, path)
    for label, path in view.samples:
        names = {Path(one).with_suffix("").as_posix() for one in found}
        found[f"{free_name(f'samples/{label}', names.__contains__)}{path.suffix}"] = path
    return {name: path for name, path in found.items() if path.is_file()}


def result_lora(job: Job) -> Path | None:
    """The LoRA that the job made; None where it made none."""
    outcome = job.outcome or {}
    made = outcome.get("result") or outcome.get("output")
    return Path(made) if isinstance(made, str) else None


def _folder(job: Job) -> Path:
    given: Mapping[str, Any] = job.payload.get("request") or {} if job.kind == RUN else job.payload
    return Path(str(given.get("out", job.folder)))


def _paths(job: Job) -> Iterator[Path]:
    outcome = job.outcome or {}
    lora = result_lora(job)
    if lora is not None:
        yield lora
    for files in outcome.get("files") or ():
        yield from map(Path, files.values())
    yield from map(Path, (outcome.get("report") or {}).values())
    yield from map(Path, outcome.get("written") or ())
