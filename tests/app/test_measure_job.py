"""Measuring as a job: its payload goes through JSON, and is checked before it is queued."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from copier.app.job_kinds import KINDS
from copier.app.measure_job import MEASURE, check_measure, measure_payload, work_measure
from copier.app.settings import Settings
from copier.errors import BadCheckpoint, BadInput, UnknownName
from copier.progress import CancelToken, ignore
from copier.request import Edit


@pytest.fixture
def payload(folder: Path, doubles: ModuleType) -> dict[str, Any]:
    lora = doubles.write_small_lora(folder / "lora.safetensors")
    made = measure_payload(lora, folder / "base.safetensors", folder / "out", edit=Edit("grayscale"))
    return dict(json.loads(json.dumps(made)))


def test_it_is_a_kind_of_job_and_ends_with_a_report(
    payload: dict[str, Any], folder: Path, worker: Any
) -> None:
    assert MEASURE in [kind.name for kind in KINDS]
    settings = Settings(folder / "data")
    check_measure(payload, settings)
    assert not (folder / "out").exists()
    outcome = work_measure(payload, settings, ignore, CancelToken())
    assert Path(outcome["report"]["html"]).is_file() and outcome["results"][0]["measures"] == "effect"


def test_what_cannot_be_measured_is_refused_before(payload: dict[str, Any], folder: Path) -> None:
    settings = Settings(folder / "data")
    with pytest.raises(BadInput, match="checkpoint"):
        check_measure({**payload, "checkpoint": str(folder / "gone.safetensors")}, settings)
    with pytest.raises(BadCheckpoint):
        check_measure({**payload, "checkpoint": payload["lora"]}, settings)
    with pytest.raises(BadInput, match="lora"):
        check_measure({name: value for name, value in payload.items() if name != "lora"}, settings)
    with pytest.raises(UnknownName, match="did you mean 'grayscale'"):
        check_measure({**payload, "edit": {"name": "greyscale", "parameters": {}}}, settings)
    with pytest.raises(UnknownName, match="device 'tpu'"):
        check_measure({**payload, "device": "tpu"}, settings)
