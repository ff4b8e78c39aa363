"""Jobs: submit, plan, estimate, watch, stop, repeat, fetch, forget."""

from __future__ import annotations

import mimetypes
from dataclasses import asdict
from pathlib import Path

from copier.api.bodies import changes_schema, run_schema
from copier.api.calls import Call, Endpoint, FileAnswer, Json, NotFound, StreamAnswer
from copier.app.job_json import job_json, use_json, view_json
from copier.app.job_results import result_files
from copier.app.jobs import Job, JobView
from copier.app.ports import allowed_path
from copier.app.submission import read_run
from copier.errors import NotNow, UnknownName

MOST_EVENTS = 2_000
"""Of one answer."""


def _job(call: Call) -> Job:
    try:
        return call.services.jobs.job(call.path["id"])
    except UnknownName as error:
        raise NotFound(error) from None


def _view(call: Call) -> JobView:
    return call.services.jobs.view(_job(call).id)


def _list(call: Call) -> Json:
    jobs = call.services.jobs
    return {"jobs": [job_json(job) for job in jobs.jobs()], "runner": jobs.runner()}


def _submit(call: Call) -> Json:
    services = call.services
    run = read_run(call.body, services.host, services.settings)
    job = services.jobs.submit(run.request, control=run.control, seeds=run.seeds)
    return {**job_json(job), "notes": list(run.notes)}


def _plan(call: Call) -> Json:
    from copier.app.figures import preview_json
    from copier.app.service import preview

    services = call.services
    run = read_run(call.body, services.host, services.settings)
    states = preview(run.request, services.settings, control=run.control, seeds=run.seeds)
    return {"recipe": run.request.recipe.name, **preview_json(states), "notes": list(run.notes)}


def _estimate(call: Call) -> Json:
    from copier.app.estimate import estimate

    services = call.services
    run = read_run(call.body, services.host, services.settings)
    found = estimate(run.request, services.settings, control=run.control, seeds=run.seeds)
    return {
        "seconds": found.seconds,
        "memory": found.memory,
        "unknown": list(found.unknown),
        "stages": [asdict(one) for one in found.stages],
        "notes": list(run.notes),
    }


def _show(call: Call) -> Json:
    return view_json(_view(call))


def _cancel(call: Call) -> Json:
    call.only()
    return job_json(call.services.jobs.cancel(_job(call).id))


def _retry(call: Call) -> Json:
    call.only("set")
    changes = call.value("set", tuple[str, ...], ())
    return job_json(call.services.jobs.retry(_job(call).id, changes=changes))


def _events(call: Call) -> Json:
    job = _job(call)  # first: once it has ended, all that happened is written
    page = call.services.jobs.events(
        job.id, call.whole("since", 0), most=max(1, call.whole("most", 500, most=MOST_EVENTS))
    )
    return {"events": list(page.events), "cursor": page.cursor, "state": job.state.value}


def _stream(call: Call) -> StreamAnswer:
    return StreamAnswer(_job(call).id, call.whole("since", 0))


def _result(call: Call) -> Json:
    job = _job(call)
    if not job.state.ended:
        raise NotNow(f"the job {job.id} is {job.state.value}: wait until it has ended")
    shown = job_json(job)
    return {name: shown[name] for name in ("id", "kind", "state", "outcome", "failure")}


def _files(call: Call) -> Json:
    rows = [
        {"name": name, "path": str(path), "bytes": path.stat().st_size, "type": _media_type(path)}
        for name, path in result_files(_view(call)).items()
    ]
    return {"files": rows}


def _file(call: Call) -> FileAnswer:
    files, name = result_files(_view(call)), call.path["name"]
    if name not in files:
        raise NotFound(UnknownName("file of this job", name, files or ["no file at all"]))
    # A job of someone at this machine may have written elsewhere than strangers may look.
    return FileAnswer(allowed_path(files[name], call.services.host), _media_type(files[name]))


def _disk(call: Call) -> Json:
    return use_json(call.services.jobs.disk_use(_job(call).id))


def _remove(call: Call) -> Json:
    output, stages = call.flag("output"), call.flag("stages")
    return use_json(call.services.jobs.remove(_job(call).id, output=output, stages=stages))


def _media_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


_REMOVING = {
    "output": "true: also the files that it wrote, those that nobody changed.",
    "stages": "true: also finished stages that only it used.",
}
_SINCE = "The cursor that an earlier answer gave; 0 or nothing: from the beginning."

ENDPOINTS = (
    Endpoint("GET", "/jobs", _list, "All jobs, the newest first, and who works the queue."),
    Endpoint(
        "POST",
        "/jobs",
        _submit,
        "Check a run and put it at the end of the queue. What is wrong is said before anything is queued.",
        body=run_schema,
        status=201,
        long=True,
    ),
    Endpoint(
        "POST",
        "/plan",
        _plan,
        "The stages of a run, which of them would be reused, and why; nothing is run.",
        body=run_schema,
        long=True,
    ),
    Endpoint(
        "POST",
        "/estimate",
        _estimate,
        "What a run would take, told from earlier ones: seconds and bytes, null where there were none.",
        body=run_schema,
        long=True,
    ),
    Endpoint("GET", "/jobs/{id}", _show, "One job: its stages, its log, pictures on the way."),
    Endpoint(
        "DELETE", "/jobs/{id}", _remove, "Forget a job that has ended; what was deleted.", query=_REMOVING
    ),
    Endpoint("POST", "/jobs/{id}/cancel", _cancel, "Stop it, soon. Finished stages stay."),
    Endpoint(
        "POST",
        "/jobs/{id}/retry",
        _retry,
        "A new job like it at the end of the queue, also with changed numbers; finished stages are reused.",
        body=changes_schema,
        status=201,
        long=True,
    ),
    Endpoint(
        "GET",
        "/jobs/{id}/events",
        _events,
        "What happened since a cursor: ask again with the new cursor until the state is one that has ended.",
        query={"since": _SINCE, "most": f"How many events at most: 500, or up to {MOST_EVENTS}."},
    ),
    Endpoint(
        "GET",
        "/jobs/{id}/stream",
        _stream,
        "The same as server-sent events, as they happen; the last one is end, with the job. The ids are "
        "cursors: Last-Event-ID goes on from there.",
        query={"since": _SINCE},
    ),
    Endpoint("GET", "/jobs/{id}/result", _result, "Files and figures of a job that has ended, or why not."),
    Endpoint("GET", "/jobs/{id}/files", _files, "The files that it made, and pictures on the way."),
    Endpoint("GET", "/jobs/{id}/files/{name:path}", _file, "One of these files."),
    Endpoint("GET", "/jobs/{id}/disk", _disk, "The bytes that it takes, and what DELETE would give back."),
)
