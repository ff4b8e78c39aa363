"""The kinds of jobs that the program knows: runs of recipes, and the operations on files.

What carries them out is imported when a job runs: a front end lists jobs without torch.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copier.app.job_values import RUN, JobKind, Json, Needs
from copier.app.measure_job import MEASURE, check_measure, work_measure
from copier.app.operation_arguments import FILES, OUT, WEIGHTED, find_operation, read_arguments
from copier.app.request_json import absolute, request_from_json
from copier.app.settings import Settings
from copier.errors import BadInput, about
from copier.progress import CancelToken, Observer

OPERATION = "operation"
"""The kind of a job that makes a file from files; its payload is made by ``operation_payload``."""
INSTALL = "install"
"""The kind of a job that installs the trainer: {"tagger": bool, "again": bool}."""

_CLOCK_SECONDS = 0.05
"""By which the time of a file may be behind the clock."""


def check_run(payload: Mapping[str, Any], settings: Settings) -> None:
    """Raise as ``app.service.check`` unless the run can begin; nothing is written."""
    from copier.app import service

    service.check_runs([_request(payload)], settings, control=payload["control"], seeds=payload["seeds"])


def work_run(payload: Mapping[str, Any], settings: Settings, observer: Observer, cancel: CancelToken) -> Json:
    """Run the recipe; main figures, and the files that were written with their SHA-256."""
    from copier.app import figures, service
    from copier.digest import file_digest

    began = time.time()
    outcome = service.execute(
        [_request(payload)],
        settings,
        control=payload["control"],
        seeds=payload["seeds"],
        observer=observer,
        cancel=cancel,
    )
    data = figures.outcome_json(outcome)
    paths = {*map(str, outcome.places), *(data["report"] or {}).values()}
    # What was there already, with the same content, is someone else's.
    ours = [path for path in sorted(paths) if os.stat(path).st_mtime >= began - _CLOCK_SECONDS]
    return {**data, "written": {path: file_digest(path) for path in ours}}


def _request(payload: Mapping[str, Any]) -> Any:
    control, seeds = payload.get("control"), payload.get("seeds")
    if not isinstance(control, bool) or not isinstance(seeds, int) or isinstance(seeds, bool):
        raise BadInput(f"control is {control!r} and seeds is {seeds!r}: give true or false, and a number")
    return request_from_json(payload.get("request"))


def operation_payload(operation: str, **arguments: Any) -> Json:
    """The payload of a job of the kind ``OPERATION``: the arguments of that function, paths made absolute."""
    made: Json = dict(arguments)
    for name in (*FILES, OUT):
        if name in made:
            made[name] = absolute(Path(made[name]))
    if WEIGHTED in made:
        made[WEIGHTED] = [[absolute(Path(path)), weight] for path, weight in made[WEIGHTED]]
    return {"operation": operation, "arguments": made}


def check_operation(payload: Mapping[str, Any], settings: Settings) -> None:
    """Raise unless the operation is known, takes the arguments, and could write its output."""
    from copier.app.checks import check_tensors_output

    given = read_arguments(payload.get("operation", ""), payload.get("arguments"))
    for name in FILES:
        if name in given and not Path(given[name]).is_file():
            with about(name):
                raise BadInput(f"there is no file {given[name]}: give the path of a .safetensors file")
    for path, _ in given.get(WEIGHTED, ()):
        if not Path(path).is_file():
            with about(WEIGHTED):
                raise BadInput(f"there is no file {path}: give the path of a LoRA")
    with about(OUT):
        check_tensors_output(Path(given[OUT]), overwrite=bool(given.get("overwrite")))


def work_operation(
    payload: Mapping[str, Any], settings: Settings, observer: Observer, cancel: CancelToken
) -> Json:
    """Carry the operation out; its report as JSON."""
    from copier.digest import DigestMemory

    function = find_operation(payload.get("operation"))
    arguments = read_arguments(payload["operation"], payload.get("arguments"))
    taken = inspect.signature(function).parameters
    more = {"observer": observer, "cancel": cancel, "digest": DigestMemory(settings.digests).digest}
    known = {name: value for name, value in more.items() if name in taken}
    report: Json = function(**arguments, **known).to_json()
    return report


def work_install(
    payload: Mapping[str, Any], settings: Settings, observer: Observer, cancel: CancelToken
) -> Json:
    """Install the trainer; whether packages were installed, and what was said about sd-scripts."""
    from copier.app.trainer import install_trainer

    installed, said = install_trainer(
        settings,
        tagger=bool(payload.get("tagger")),
        again=bool(payload.get("again")),
        observer=observer,
        cancel=cancel,
    )
    return {"installed": installed, "sd_scripts": said}


KINDS = (
    JobKind(RUN, work_run, check_run),
    JobKind(OPERATION, work_operation, check_operation, Needs.TURN),
    JobKind(INSTALL, work_install, needs=Needs.NOTHING),
    JobKind(MEASURE, work_measure, check_measure),
)
