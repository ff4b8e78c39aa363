"""Measuring a finished LoRA on a checkpoint, also another than it was trained on, as a job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copier.app.request_json import absolute
from copier.app.settings import Settings
from copier.errors import BadInput
from copier.progress import CancelToken, Observer
from copier.request import Edit

if TYPE_CHECKING:
    from copier.app.measuring import MeasureRequest

MEASURE = "measure"
"""The kind of the job; its payload is made by ``measure_payload``."""

Json = dict[str, Any]


def measure_payload(
    lora: Path,
    checkpoint: Path,
    out: Path,
    *,
    edit: Edit | None,
    device: str = "auto",
    threads: int | None = None,
) -> Json:
    """The payload of a measurement as the LoRA's own recipe measures; without an edit only of the change."""
    known = None if edit is None else {"name": edit.name, "parameters": dict(edit.parameters)}
    return {
        "lora": absolute(lora),
        "checkpoint": absolute(checkpoint),
        "out": absolute(out),
        "edit": known,
        "device": device,
        "threads": threads,
    }


def check_measure(payload: Mapping[str, Any], settings: Settings) -> None:
    """Raise as ``measuring.check`` unless the measurement can begin; nothing is written."""
    from copier.app.measuring import check

    check(_request(payload), settings)


def work_measure(
    payload: Mapping[str, Any], settings: Settings, observer: Observer, cancel: CancelToken
) -> Json:
    """Measure; main figures, and where the report is."""
    from copier.app.figures import measured_json
    from copier.app.measuring import measure

    files = measure(_request(payload), settings, observer=observer, cancel=cancel)
    return measured_json(files)


def _request(payload: Mapping[str, Any]) -> MeasureRequest:
    from copier.app.measuring import MeasureRequest, suggested_spec

    try:
        lora, checkpoint, out = (Path(str(payload[name])) for name in ("lora", "checkpoint", "out"))
    except KeyError as error:
        raise BadInput(f"a measurement has no {error}: give lora, checkpoint and out") from None
    known = payload.get("edit")
    return MeasureRequest(
        lora=lora,
        checkpoint=checkpoint,
        out=out,
        spec=suggested_spec(lora, checkpoint),
        edit=None if known is None else Edit(str(known["name"]), dict(known["parameters"])),
        device=str(payload.get("device") or "auto"),
        threads=payload.get("threads"),
    )
