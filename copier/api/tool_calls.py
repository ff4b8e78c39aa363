"""Operations on files, measuring and looking into a file."""

from __future__ import annotations

import functools

from copier.api.bodies import inspect_schema, measure_schema, operation_schema
from copier.api.calls import Call, Endpoint, Json
from copier.app.job_json import job_json
from copier.app.job_kinds import OPERATION, operation_payload
from copier.app.measure_job import MEASURE, measure_payload
from copier.app.operation_arguments import OPERATIONS
from copier.app.submission import checked_path, checkpoint_path, lora_path, new_output_folder, read_operation
from copier.codec import value_from_json
from copier.errors import BadInput, about
from copier.request import Edit

_TEXTS = {
    "difference": "B - A of two LoRAs that were trained apart: what remains is the change.",
    "combine": "The weighted sum of LoRAs as one file; negative weights subtract.",
    "resize": "The same LoRA with fewer ranks.",
    "merge": "A checkpoint with LoRAs in its weights, as a new file.",
    "extract": "The LoRA that turns one checkpoint into another.",
}


def _operate(operation: str, call: Call) -> Json:
    title = call.value("title", str, "")
    given = {name: value for name, value in call.body.items() if name != "title"}
    arguments = read_operation(operation, given, call.services.host)
    title = title or f"{operation}: {arguments['out'].stem}"
    payload = operation_payload(operation, **arguments)
    return job_json(call.services.jobs.submit_work(OPERATION, payload, title=title))


def _inspect(call: Call) -> Json:
    from copier.app.operations import inspect
    from copier.digest import DigestMemory

    call.only("lora", "checkpoint")
    services, body = call.services, call.body
    if len(body) != 1:
        raise BadInput("give either a LoRA or a checkpoint")
    (name,) = body
    with about(name):
        find = lora_path if name == "lora" else checkpoint_path
        path = find(value_from_json(name, str, body[name]), services.host)
        return inspect(path, DigestMemory(services.settings.digests).digest)


def _measure(call: Call) -> Json:
    call.only("lora", "checkpoint", "edit", "out", "title", "device", "threads")
    services, body = call.services, call.body
    with about("lora"):
        lora = lora_path(body.get("lora"), services.host)
    with about("checkpoint"):
        checkpoint = checkpoint_path(body.get("checkpoint"), services.host)
    edit = call.value("edit", Edit | None, None)
    title = call.value("title", str, "") or f"{lora.stem} on {checkpoint.stem}"
    with about("out"):
        given = body.get("out")
        out = new_output_folder(title, services.host) if given is None else checked_path(given, services.host)
    payload = measure_payload(
        lora,
        checkpoint,
        out,
        edit=edit,
        device=call.value("device", str, "auto"),
        threads=call.value("threads", int | None, None),
    )
    return job_json(services.jobs.submit_work(MEASURE, payload, title=title))


ENDPOINTS = (
    *(
        Endpoint(
            "POST",
            f"/tools/{name}",
            functools.partial(_operate, name),
            f"{_TEXTS[name]} As a job.",
            body=functools.partial(operation_schema, name),
            status=201,
        )
        for name in OPERATIONS
    ),
    Endpoint(
        "POST",
        "/tools/measure",
        _measure,
        "A weight strip with effect and leakage of a LoRA, also on another checkpoint. As a job.",
        body=measure_schema,
        status=201,
        long=True,
    ),
    Endpoint(
        "POST",
        "/tools/inspect",
        _inspect,
        "What a file is and holds, where a LoRA acts, and the recipe that it carries. At once.",
        body=inspect_schema,
        long=True,
    ),
)
