"""Jobs as JSON, the same for `copier jobs --json` and the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from copier.app.jobs import DiskUse, Job, JobView


def job_json(job: Job) -> dict[str, Any]:
    """A job without its payload."""
    failure = job.failure
    return {
        "id": job.id,
        "kind": job.kind,
        "title": job.title,
        "state": job.state.value,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "seconds": job.seconds,
        "retry_of": job.retry_of,
        "failure": None
        if failure is None
        else {"error": failure.error, "message": failure.message, "settings": list(failure.settings)},
        "outcome": job.outcome,
        "folder": str(job.folder),
    }


def view_json(view: JobView) -> dict[str, Any]:
    """A job with its payload, its stages without their curves, its samples and its log."""
    names = ("name", "round", "state", "reason", "step", "steps", "loss", "rate", "left", "seconds")
    return {
        **job_json(view.job),
        "payload": view.job.payload,
        "stages": [{name: getattr(stage, name) for name in names} for stage in view.stages],
        "samples": [{"label": label, "path": str(path)} for label, path in view.samples],
        "log": list(view.log),
        "cursor": view.cursor,
    }


def use_json(use: DiskUse) -> dict[str, Any]:
    """Bytes, and the files."""
    return {
        "job": use.job,
        "output": use.output,
        "stages": use.stages,
        "bytes": use.total,
        "files": [str(path) for path in use.files],
    }
