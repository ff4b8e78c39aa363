"""Estimates: what was measured here for stages of a like kind, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from copier.app import service
from copier.app.crew import Crew
from copier.app.estimate import estimate
from copier.app.settings import Settings
from copier.codec import load_recipe, with_value
from copier.errors import BadInput
from copier.pipeline.store import StageStore
from copier.request import Edit, PictureFiles, RunRequest
from copier.training.protocol import TrainResult


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(folder / "data")


@pytest.fixture
def request_(folder: Path, worker: Any, monkeypatch: pytest.MonkeyPatch) -> RunRequest:
    plain = worker.train
    monkeypatch.setattr(
        worker,
        "train",
        lambda self, request, **given: replace_memory(plain(self, request, **given), request.stage),
    )
    return RunRequest(
        recipe=load_recipe("short.json"),
        checkpoint=folder / "base.safetensors",
        pictures={"a": PictureFiles((folder / "a.png",)), "b": Edit("grayscale")},
        out=folder / "out",
    )


def replace_memory(result: TrainResult, stage: str) -> TrainResult:
    return replace(result, memory={"copier": 1_000, "lora": 3_000}[stage])


def changed(request: RunRequest, *assignments: str) -> RunRequest:
    recipe = request.recipe
    for one in assignments:
        recipe = with_value(recipe, one)
    return replace(request, recipe=recipe)


def test_without_a_run_of_a_like_kind_nothing_is_known(request_: RunRequest, settings: Settings) -> None:
    found = estimate(request_, settings)
    assert (found.seconds, found.memory) == (None, None)
    assert set(found.unknown) >= {"copier", "lora", "gate.pictures"}


def test_after_a_run_more_steps_take_as_much_longer(
    request_: RunRequest, settings: Settings, worker: Any
) -> None:
    service.execute([request_], settings)
    done = estimate(request_, settings)
    assert (done.seconds, done.memory, done.unknown) == (0.0, 0, ())
    records = {entry.record.name: entry.record for entry in StageStore(settings.stages).entries()}
    per_step = [records[name].seconds / 3 for name in ("copier", "lora")]
    more = estimate(changed(request_, "training.steps=300"), settings)
    trained = {one.name: one for one in more.stages if one.kind == "train"}
    for one in trained.values():
        assert one.seconds == pytest.approx(300 * sum(per_step) / 2)
        assert one.measured == 2
    assert more.memory == 3_000
    assert more.seconds == pytest.approx(sum(one.seconds or 0 for one in more.stages))
    assert more.seconds > sum(one.seconds or 0 for one in trained.values())
    twice = estimate(changed(request_, "training.steps=600"), settings)
    assert {one.name: one.seconds for one in twice.stages}["lora"] == pytest.approx(
        2 * (trained["lora"].seconds or 0)
    )
    assert not [call for call in worker.calls if call[0] == "train"][2:], "nothing is trained for it"


def test_stages_of_another_installation_of_the_trainer_are_not_taken_for_reused(
    request_: RunRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crew, "engine", lambda self, recipe: "sd-scripts abc")
    service.execute([request_], settings)
    assert estimate(request_, settings).seconds == 0.0
    monkeypatch.setattr(Crew, "engine", lambda self, recipe: "")
    assert {one.name for one in estimate(request_, settings).stages if not one.reused} >= {"copier", "lora"}


def test_what_costs_more_or_another_size_is_not_taken_for_alike(
    request_: RunRequest, settings: Settings, folder: Path, doubles: ModuleType
) -> None:
    service.execute([request_], settings)
    for one in ("training.batch_size=2", "training.rank=64", "training.text_encoder=true"):
        found = estimate(changed(request_, one), settings)
        assert found.seconds is None, one
        assert {"copier", "lora"} <= set(found.unknown)
    large = PictureFiles((doubles.write_picture(folder / "large.png", 128, 128),))
    found = estimate(replace(request_, pictures={**request_.pictures, "a": large}), settings)
    assert {"copier", "lora", "gate.pictures"} <= set(found.unknown)
    same = PictureFiles((doubles.write_picture(folder / "other.png", seed=9),))
    found = estimate(replace(request_, pictures={**request_.pictures, "a": same}), settings)
    assert found.unknown == ()
    assert found.seconds is not None and found.seconds > 0


def test_of_several_sizes_their_mix_decides_the_time_and_the_largest_the_memory(
    request_: RunRequest, settings: Settings, folder: Path, doubles: ModuleType
) -> None:
    def asked(name: str, *sides: int) -> RunRequest:
        (folder / name).mkdir()
        for number, side in enumerate(sides):
            doubles.write_picture(folder / name / f"{number}.png", side, 64, seed=number)
        return replace(request_, pictures={**request_.pictures, "a": PictureFiles.at(folder / name)})

    service.execute([asked("mixed", 64, 128)], settings)
    same = estimate(asked("same", 128, 64, 64, 128), settings)
    assert same.unknown == () and same.seconds is not None
    assert (same.memory, same.largest) == (3_000, (128, 64))
    other = estimate(asked("other", 64, 64, 128), settings)
    assert set(other.unknown) == {"copier", "lora"}, "three steps of four are of other sizes"
    assert (other.memory, other.largest) == (3_000, (128, 64))
    wide = estimate(asked("wide", 128), settings)
    assert wide.seconds is None and (wide.memory, wide.largest) == (3_000, None)
    assert estimate(asked("larger", 64, 192), settings).memory is None


def test_bad_input_has_no_estimate(request_: RunRequest, settings: Settings, folder: Path) -> None:
    with pytest.raises(BadInput):
        estimate(replace(request_, checkpoint=folder / "none.safetensors"), settings)


def test_a_pair_takes_two_passes_a_step_and_is_not_told_from_one_that_takes_one(
    request_: RunRequest, settings: Settings, worker: Any
) -> None:
    service.execute([request_], settings)
    longer = changed(request_, "lora.training.steps=7")
    assert "lora" not in estimate(longer, settings).unknown
    assert "lora" in estimate(changed(longer, "lora.training.target=pair"), settings).unknown
