"""The services: what a request is refused for, where data lies, and what the demo asks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from copier import disk
from copier.app import room, service
from copier.app.demo import DIFFERENCE_RECIPE, EDIT, RECIPE, SECOND_EDIT, demo_requests
from copier.app.request_json import request_from_json, request_to_json
from copier.app.settings import Settings, default_data_folder
from copier.checkpoint.writer import write_tensors
from copier.codec import load_recipe, with_value
from copier.errors import BadInput, BadPicture, Cancelled
from copier.model_options import ModelOptions, Prediction
from copier.pipeline.plan import plan
from copier.progress import CancelToken
from copier.recipe import (
    EvaluateStage,
    FileStage,
    ResizeStage,
    TrainingSpec,
    TrainStage,
    with_control,
)
from copier.request import Edit, Fit, Generated, PictureFiles, RunRequest, Source


@pytest.fixture
def request_(folder: Path) -> RunRequest:
    return RunRequest(
        recipe=load_recipe("short.json"),
        checkpoint=folder / "base.safetensors",
        pictures={"a": PictureFiles((folder / "a.png",)), "b": Edit("grayscale")},
        out=folder / "out" / "deeper",
    )


def given(request: RunRequest, **pictures: Source) -> RunRequest:
    """``request`` with other pictures."""
    return replace(request, pictures={**request.pictures, **pictures})


def test_check_and_preview_write_nothing(
    folder: Path, request_: RunRequest, doubles: ModuleType, worker: Any
) -> None:
    settings = Settings(folder / "data" / "deeper")
    before = doubles.tree(folder)
    service.check(request_, settings)
    states = service.preview(request_, settings)
    assert {state.entry for state in states} == {None}
    assert doubles.tree(folder) == before


def test_of_several_requests_one_bad_one_stops_all_before_anything_is_written(
    folder: Path, request_: RunRequest, doubles: ModuleType, worker: Any
) -> None:
    bad = given(request_, b=PictureFiles((folder / "none.png",)))
    before = doubles.tree(folder)
    with pytest.raises(BadInput, match=r"none\.png"):
        service.execute([request_, bad], Settings(folder / "data"))
    assert doubles.tree(folder) == before
    assert worker.calls == []


def test_a_token_that_is_set_stops_before_the_first_stage(
    folder: Path, request_: RunRequest, worker: Any
) -> None:
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        service.execute([request_], Settings(folder / "data"), cancel=token)
    assert worker.calls == []


def test_several_seeds_train_all_of_it_anew_and_report_mean_and_range(
    folder: Path, request_: RunRequest, worker: Any
) -> None:
    outcome = service.execute([request_], Settings(folder / "data"), control=True, seeds=3)
    trained = [stage for operation, stage in worker.calls if operation == "train"]
    assert trained == ["copier", "lora", "control"] * 3
    base_drawn = [call for call in worker.calls if call == ("sample", "evaluate.base")]
    assert len(base_drawn) == 1
    assert outcome.report is not None
    report = json.loads(outcome.report.json.read_text(encoding="utf-8"))
    (result,) = report["results"]
    assert result["seeds"]["seeds"] == [1, 2, 3]
    rows = {row["label"]: row for row in result["seeds"]["rows"]}
    for label in ("Gate: median distance", "Effect at +1", "Leakage at +1 over the control's"):
        assert rows[label]["lora"]["count"] == 3
    outcomes = [run.entries["evaluate"].record.outcome for run in outcome.everything]
    effects = [next(one["effect"] for one in each["lora"] if one["weight"] == 1) for each in outcomes]
    row = rows["Effect at +1"]["lora"]
    assert row["low"] == pytest.approx(min(effects), abs=1e-5)
    assert row["mean"] == pytest.approx(sum(effects) / 3, abs=1e-5)
    assert row["low"] < row["mean"] < row["high"]
    assert rows["Effect at +1"]["control"]["mean"] != row["mean"]
    assert len(report["stages"]) == len({one.stage.key for run in outcome.everything for one in run.stages})
    assert len(list(request_.out.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("seeds", [0, 3])
def test_seeds_that_cannot_be_are_refused_before_anything_is_trained(
    folder: Path, request_: RunRequest, worker: Any, seeds: int
) -> None:
    last = replace(request_, recipe=with_value(request_.recipe, "training.seed=4294967294"))
    with pytest.raises(BadInput, match="seed"):
        service.execute([last], Settings(folder / "data"), seeds=seeds)
    assert worker.calls == []
    assert not request_.out.exists()


def test_files_are_there_as_soon_as_the_first_seed_is_done(
    folder: Path, request_: RunRequest, doubles: ModuleType, worker: Any
) -> None:
    token = CancelToken()

    def cancel_in_the_second(self: object, cancel: CancelToken) -> None:
        if len([call for call in worker.calls if call[0] == "train"]) > 2:
            token.cancel()

    worker.on_train = cancel_in_the_second
    with pytest.raises(Cancelled):
        service.execute([request_], Settings(folder / "data"), seeds=2, cancel=token)
    assert (request_.out / "grayscale.safetensors").is_file()


def test_an_observer_that_fails_does_not_fail_the_run(
    folder: Path, request_: RunRequest, worker: Any
) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("a broken front end")

    outcome = service.execute([request_], Settings(folder / "data"), observer=broken)
    assert outcome.result.is_file()


def test_the_worker_is_not_started_where_every_stage_is_there(
    folder: Path, request_: RunRequest, worker: Any
) -> None:
    settings = Settings(folder / "data")
    service.execute([request_], settings)
    worker.__init__ = None  # starting one would now be an error
    outcome = service.execute([request_], settings)
    assert all(one.reused for one in outcome.runs[0].stages)


def test_the_room_is_asked_of_the_disk_that_the_folder_would_be_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    usage = disk.shutil.disk_usage(tmp_path)

    def ask(path: Path) -> Any:
        asked.append(path)
        return usage._replace(free=room.ROOM - 1)

    monkeypatch.setattr(disk.shutil, "disk_usage", ask)
    with pytest.raises(BadInput, match="255 MB free, a run needs 256 MB"):
        room.check_room(tmp_path / "not" / "there")
    assert asked == [tmp_path]
    assert not (tmp_path / "not").exists()


def test_the_data_folder_is_what_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COPIER_DATA", str(tmp_path))
    assert default_data_folder() == tmp_path
    monkeypatch.delenv("COPIER_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert default_data_folder() != tmp_path
    assert default_data_folder().name in ("copier",)


@pytest.mark.parametrize(
    ("a", "size"), [(PictureFiles((Path("a.png"),)), "64 x 64"), (Generated("x", size=128), "128 x 128")]
)
def test_pictures_of_another_size_than_the_resolution_are_refused_before_anything_is_written(
    folder: Path, request_: RunRequest, doubles: ModuleType, worker: Any, a: Any, size: str
) -> None:
    settings = Settings(folder / "data")
    request = given(request_, a=a)
    service.check(request, settings)
    recipe = with_value(request.recipe, "lora.training.resolution=256")
    before = doubles.tree(folder)
    message = rf"{size} px.*'lora'.*256 px.*, or add --set training\.resolution=0"
    with pytest.raises(BadPicture, match=message):
        service.execute([replace(request, recipe=recipe)], settings)
    assert doubles.tree(folder) == before
    assert worker.calls == []


def test_the_longer_side_is_the_one_that_has_the_resolution(
    folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    wide = PictureFiles((doubles.write_picture(folder / "wide.png", 128, 64),))
    request = given(request_, a=wide)
    for resolution in (0, 128):
        recipe = with_value(request.recipe, f"training.resolution={resolution}")
        service.check(replace(request, recipe=recipe), Settings(folder / "data"))
    with pytest.raises(BadPicture, match=r"128 x 64 px.*64 px, the limit.*scale the pictures"):
        recipe = with_value(request.recipe, "training.resolution=64")
        service.check(replace(request, recipe=recipe), Settings(folder / "data"))


def folder_of(folder: Path, doubles: ModuleType, *files: tuple[str, int, int]) -> PictureFiles:
    """A new folder of pictures: name, side and seed of each."""
    folder.mkdir()
    for name, side, seed in files:
        doubles.write_picture(folder / name, side, side, seed=seed)
    return PictureFiles.at(folder)


BAD_SETS = {
    "not as many": ([("1.png", 64, 1)], [("1.png", 64, 2), ("2.png", 64, 3)], "1 originals and 2 changed"),
    "other names": (
        [("1.png", 64, 1), ("2.png", 64, 2)],
        [("1.png", 64, 3), ("3.png", 64, 4)],
        r"2\.png and 3\.png.*same name",
    ),
    "a pair of two sizes": (
        [("1.png", 64, 1), ("2.png", 128, 2)],
        [("1.png", 64, 3), ("2.png", 64, 4)],
        r"A of 2\.png is 128 x 128 px and B is 64 x 64 px",
    ),
    "sets of two sizes": (
        [("1.png", 64, 1), ("2.png", 64, 2)],
        [("1.png", 128, 3), ("2.png", 128, 4)],
        "64 x 64 px and B is 128 x 128",
    ),
    "an equal pair": (
        [("1.png", 64, 1), ("2.png", 64, 2)],
        [("1.png", 64, 3), ("2.png", 64, 2)],
        r"A and B of 2\.png are identical",
    ),
}


@pytest.mark.parametrize("case", BAD_SETS)
def test_paired_sets_that_are_none_are_refused(
    case: str, folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    first, second, message = BAD_SETS[case]
    a, b = folder_of(folder / "first", doubles, *first), folder_of(folder / "second", doubles, *second)
    before = doubles.tree(folder)
    with pytest.raises(BadPicture, match=message):
        service.check(given(request_, a=a, b=b), Settings(folder / "data"))
    assert doubles.tree(folder) == before


def test_pictures_of_a_set_may_have_several_sizes_the_largest_is_the_resolution(
    folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    a = folder_of(folder / "first", doubles, ("1.png", 64, 1), ("2.png", 128, 2), ("3.png", 64, 3))
    b = folder_of(folder / "second", doubles, ("1.png", 64, 4), ("2.png", 128, 5), ("3.png", 64, 6))
    doubles.write_picture(folder / "first" / "3.png", 64, 128, seed=3)
    doubles.write_picture(folder / "second" / "3.png", 64, 128, seed=6)
    request = given(request_, a=a, b=b)
    sizes = ((64, 64), (128, 128), (64, 128))
    assert service.set_sizes(request) == {"a": sizes, "b": sizes}
    for resolution in (0, 128):
        recipe = with_value(request.recipe, f"training.resolution={resolution}")
        service.check(replace(request, recipe=recipe), Settings(folder / "data"))
    with pytest.raises(BadPicture, match=r"'a' are 64 x 64, 128 x 128, 64 x 128 px.*resolution of 64 px"):
        recipe = with_value(request.recipe, "training.resolution=64")
        service.check(replace(request, recipe=recipe), Settings(folder / "data"))


def test_several_originals_are_cropped_or_padded_each_by_itself(
    folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    a = folder_of(folder / "first", doubles, ("1.png", 100, 1), ("2.png", 130, 2))
    with pytest.raises(BadPicture, match=r"1\.png is 100 x 100 px.*--fit crop"):
        service.set_sizes(given(request_, a=a))
    for fit, sides in ((Fit.CROP, (64, 128)), (Fit.PAD, (128, 192))):
        found = service.set_sizes(given(request_, a=replace(a, fit=fit)))
        assert found["a"] == found["b"] == tuple((side, side) for side in sides)


def test_the_output_folder_is_none_from_which_pictures_come(
    folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    a = folder_of(folder / "many", doubles, ("1.png", 64, 1), ("2.png", 64, 2))
    request = given(replace(request_, out=folder / "many" / "."), a=a)
    with pytest.raises(BadInput, match="holds the pictures 'a': choose another"):
        service.check(request, Settings(folder / "data"))


def test_a_lora_of_a_higher_rank_is_no_start_and_one_of_no_numbers_is_refused(
    folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    path = doubles.write_small_lora(folder / "look.safetensors", rank=5)
    start = TrainStage("more", "b", start="look", training=TrainingSpec(rank=4, resolution=0))
    recipe = replace(request_.recipe, stages=(FileStage("look"), *request_.recipe.stages, start))
    request = replace(request_, recipe=recipe, loras={"look": path})
    with pytest.raises(BadInput, match=r"look\.safetensors has rank 5.*'more'.*has 4"):
        service.check(request, Settings(folder / "data"))
    nothing = {f"{doubles.BLOCK}proj_in.lora_{side}.weight": torch.full(shape, torch.nan)
               for side, shape in (("up", (8, 1, 1, 1)), ("down", (1, 8, 1, 1)))}  # fmt: skip
    write_tensors(folder / "nan.safetensors", nothing)
    with pytest.raises(BadInput, match=r"nan\.safetensors: .*NaN or infinite"):
        service.check(replace(request, loras={"look": folder / "nan.safetensors"}), Settings(folder / "data"))


def test_seeds_need_a_training(request_: RunRequest) -> None:
    stages = (FileStage("look"), ResizeStage("lora", "look"), EvaluateStage("evaluate", "lora", ("p",)))
    recipe = replace(request_.recipe, stages=stages, result="lora")
    with pytest.raises(BadInput, match="trains nothing: leave out --seeds"):
        service.repetitions(replace(request_, recipe=recipe, loras={"look": Path("x")}), 2)


def test_a_lora_that_the_recipe_starts_from_must_fit_the_checkpoint(
    folder: Path, request_: RunRequest, doubles: ModuleType
) -> None:
    stages = (FileStage("look"), *request_.recipe.stages)
    path = doubles.write_small_lora(folder / "look.safetensors")
    settings = Settings(folder / "data")
    recipe = replace(request_.recipe, stages=stages)
    service.check(replace(request_, recipe=recipe, loras={"look": path}), settings)
    with pytest.raises(BadInput, match=r"base\.safetensors: "):
        service.check(replace(request_, recipe=recipe, loras={"look": request_.checkpoint}), settings)
    with pytest.raises(BadInput, match=r"none\.safetensors"):
        missing = folder / "none.safetensors"
        service.check(replace(request_, recipe=recipe, loras={"look": missing}), settings)


def test_a_generated_original_has_the_resolution(folder: Path, request_: RunRequest) -> None:
    recipe = with_value(request_.recipe, "training.resolution=256")
    request = given(replace(request_, recipe=recipe), a=Generated("x"))
    service.check(request, Settings(folder / "data"))


def test_the_full_demo_shares_the_copier_between_its_runs(folder: Path) -> None:
    requests = demo_requests(folder / "base.safetensors", folder / "demo", full=True)
    assert [one.recipe.name for one in requests] == [RECIPE, RECIPE, DIFFERENCE_RECIPE]
    assert [one.pictures["b"] for one in requests] == [Edit(EDIT), Edit(SECOND_EDIT), Edit(EDIT)]
    assert demo_requests(folder / "base.safetensors", folder / "demo") == requests[:1]
    first, second, third = (
        plan(replace(one, recipe=with_control(one.recipe)), lambda path: path.name) for one in requests
    )
    keys = [{stage.name: stage.key for stage in one.stages} for one in (first, second, third)]
    assert keys[0]["a"] == keys[1]["a"] == keys[2]["a"]
    assert keys[0]["copier"] == keys[1]["copier"]
    assert keys[0]["gate"] == keys[1]["gate"]
    assert keys[0]["b"] == keys[2]["b"] != keys[1]["b"]
    assert keys[0]["lora"] != keys[1]["lora"]


def test_losses_that_the_pictures_or_the_checkpoint_do_not_allow_are_refused_before_anything_is_trained(
    folder: Path, request_: RunRequest, worker: Any
) -> None:
    settings = Settings(folder / "data")
    masked = replace(request_, recipe=with_value(request_.recipe, "copier.training.masked_loss=true"))
    with pytest.raises(BadInput, match="'copier' counts the loss by masks, but no picture of 'a'"):
        service.execute([masked], settings)
    semantic = replace(request_, recipe=with_value(request_.recipe, "lora.training.target=semantic"))
    service.check(semantic, settings)
    velocity = replace(semantic, model=ModelOptions(prediction=Prediction.VELOCITY))
    with pytest.raises(BadInput, match=r"base\.safetensors predicts velocity: choose the target 'pair'"):
        service.execute([velocity], settings)
    assert worker.calls == [] and not request_.out.exists()


def test_a_recipe_by_text_alone_runs_without_pictures_and_its_request_survives_json(
    folder: Path, request_: RunRequest, worker: Any
) -> None:
    asked = replace(request_, recipe=load_recipe("move-pocket"), pictures={})
    assert request_from_json(json.loads(json.dumps(request_to_json(asked)))) == asked
    outcome = service.execute([asked], Settings(folder / "data"))
    assert worker.calls == [("train", "lora")] and outcome.report is None
    assert outcome.result == request_.out / "move-pocket.safetensors"
