"""A run whose recipe trains with sd-scripts: the real pipeline, and a script in place of theirs."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.app import cards, crew, service
from copier.app.settings import Settings
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.targets import trained_names
from copier.checkpoint.writer import write_tensors
from copier.codec import load_recipe, recipe_from_json, with_value
from copier.errors import BadInput, OutOfMemory, UnknownName
from copier.model_options import ModelOptions, Prediction
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.pipeline.store import StageStore
from copier.progress import Phase, ProgressEvent
from copier.recipe import Trainer
from copier.request import PictureFiles, RunRequest, ScriptOptions
from copier.training import scripts_trainer, sd_scripts
from copier.training.environment import TrainerEnvironment
from copier.training.interpreter import Interpreter
from copier.training.machine import Device
from copier.training.scripts_folder import ScriptsFolder
from tests.checkpoint.narrow_models import sdxl_file

FAKE = Path(__file__).parents[1] / "training" / "fake_sd_scripts.py"


@pytest.fixture
def lora(folder: Path) -> Path:
    """What the script "trains": a LoRA of rank 2 with every attention module."""
    checkpoint = read_header(folder / "base.safetensors")
    noise = torch.Generator().manual_seed(3)
    deltas = {}
    for name, target in trained_names(checkpoint, conv=False, text=False).items():
        out, *rest = checkpoint.tensors[target.key].shape
        up = torch.randn(out, 2, *([1] * len(rest[1:])), generator=noise)
        deltas[name] = LowRankDelta(up, torch.randn(2, *rest, generator=noise), 2.0)
    weights = LoraWeights(deltas)
    path = folder / "trained.safetensors"
    described = network_metadata(weights, name="trained", family=Family.SD1)
    # What sd-scripts writes of its arguments.
    write_lora(path, weights, {**described, "ss_training_comment": "a/secret/path"}, dtype="fp32")
    return path


@pytest.fixture
def kit(folder: Path, lora: Path, worker: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in is installed; its folder. COPIER_FAKE says what it does."""
    scripts = folder / "sd-scripts"
    (scripts / "networks").mkdir(parents=True)
    shutil.copy(FAKE, scripts / "train_network.py")
    interpreter = Interpreter(sys.executable, "3.10.0", "linux", "2.1.2+cpu", "", "", "pip")
    environment = TrainerEnvironment(interpreter, folder, None, folder / "tokenizers", eight_bit=False)
    found = crew.Kit(environment, ScriptsFolder(scripts, own=True, commit=""), Device("cpu"))
    for module in (crew, service):
        monkeypatch.setattr(module, "find_kit", lambda settings, *, device: found)
    monkeypatch.setenv("COPIER_FAKE", "")
    monkeypatch.setenv("COPIER_FAKE_LORA", str(lora))
    return scripts


@pytest.fixture
def request_(folder: Path, kit: Path) -> RunRequest:
    recipe = replace(load_recipe(str(folder / "short.json")), trainer=Trainer.SD_SCRIPTS)
    return RunRequest(
        recipe=recipe,
        checkpoint=folder / "base.safetensors",
        pictures={name: PictureFiles((folder / f"{name}.png",)) for name in ("a", "b")},
        out=folder / "out",
        device="cpu",
        threads=1,
    )


def run(request: RunRequest, folder: Path, events: list[ProgressEvent] | None = None) -> service.Outcome:
    observer = (lambda event: None) if events is None else events.append
    return service.execute((request,), Settings(folder / "data"), observer=observer)


def test_a_recipe_for_sd_scripts_is_trained_by_it_and_drawn_by_the_worker(
    request_: RunRequest, folder: Path, worker: Any
) -> None:
    events: list[ProgressEvent] = []
    alive_while_training = []
    done = service.execute(
        (request_,),
        Settings(folder / "data"),
        observer=lambda event: (
            events.append(event),
            alive_while_training.append(worker.alive) if event.loss is not None else None,
        ),
    )
    assert not [stage for operation, stage in worker.calls if operation == "train"]
    assert {stage for operation, stage in worker.calls if operation == "sample"} >= {"gate.pictures"}
    assert set(alive_while_training) == {0}, "no two checkpoints in memory"
    assert worker.alive == 0
    train = {one.stage.name: one.entry for one in done.runs[0].stages if one.stage.kind == "train"}
    assert set(train) == {"copier", "lora"}
    for entry in train.values():
        assert json.loads(entry.path("losses.json").read_text()) == [0.5, 0.25, 0.167]
        assert "avr_loss" in entry.path("train.log").read_text(), "the log is kept with the stage"
        assert not entry.path("work").exists()
    assert {"training", "saving"} <= {event.message for event in events}


def test_without_cuda_adamw_takes_the_place_of_its_8_bit_form_and_that_is_told(
    request_: RunRequest, folder: Path
) -> None:
    events: list[ProgressEvent] = []
    asked = replace(request_, recipe=with_value(request_.recipe, "copier.training.optimiser=adamw8bit"))
    run(asked, folder, events)
    told = [event.stage for event in events if "adamw takes its place" in event.message]
    assert told == ["copier"]


def test_a_set_of_several_sizes_reaches_the_script_as_copies_in_a_folder_for_each(
    request_: RunRequest, folder: Path, doubles: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((64, 64), (128, 64), (64, 64))
    for name in ("many", "changed"):
        (folder / name).mkdir()
        for number, (width, height) in enumerate(sizes):
            seed = number + 9 * (name == "many")
            doubles.write_picture(folder / name / f"{number}.png", width, height, seed=seed)
    before = doubles.tree(folder / "many"), doubles.tree(folder / "changed")
    seen = []
    plain = scripts_trainer.script_job

    def watched(*given: Any, **options: Any) -> Any:
        seen.append(plain(*given, **options))
        return seen[-1]

    monkeypatch.setattr(scripts_trainer, "script_job", watched)
    pictures = {"a": PictureFiles.at(folder / "many"), "b": PictureFiles.at(folder / "changed")}
    done = run(replace(request_, pictures=pictures), folder)
    assert done.result.is_file()
    for job, copies in seen:
        counts = {(one.width, one.height): len(one.names) for one in job.pictures}
        assert counts == {(64, 64): 2, (128, 64): 1}
        assert [copy.place.parent.name for copy in copies] == ["pictures-64x64"] * 2 + ["pictures-128x64"]
    assert len(seen) == 2
    assert (doubles.tree(folder / "many"), doubles.tree(folder / "changed")) == before


def test_a_second_edit_costs_no_training_of_the_original(
    request_: RunRequest, folder: Path, doubles: ModuleType, worker: Any
) -> None:
    run(request_, folder)
    other = doubles.write_picture(folder / "c.png", seed=9)
    again = run(replace(request_, pictures={**request_.pictures, "b": PictureFiles((other,))}), folder)
    reused = {one.stage.name: one.reused for one in again.runs[0].stages}
    assert reused["copier"] and reused["gate"] and not reused["lora"]


def test_what_the_checkpoint_is_said_to_be_changes_the_keys_and_reaches_the_script(
    request_: RunRequest, folder: Path
) -> None:
    plain = service.preview(request_, Settings(folder / "data"))
    skipped = replace(request_, model=ModelOptions(clip_skip=2, prediction=Prediction.VELOCITY))
    keys = {one.stage.name: one.stage.key for one in plain}
    for one in service.preview(skipped, Settings(folder / "data")):
        same = keys[one.stage.name] == one.stage.key
        assert same is (one.stage.kind in ("original", "edited")), one.stage.name
    done = run(skipped, folder)
    trained = [one.entry for one in done.runs[0].stages if one.stage.kind == "train"]
    for log in (entry.path("train.log").read_text() for entry in trained):
        assert "--clip_skip 2" in log and "--v_parameterization" in log


def test_a_training_that_fails_keeps_its_log_and_offers_what_to_lower(
    request_: RunRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPIER_FAKE", "oom")
    events: list[ProgressEvent] = []
    with pytest.raises(OutOfMemory) as caught:
        run(request_, folder, events)
    assert "training.precision=fp16" in caught.value.settings
    kept = folder / "data" / "logs" / "sd-scripts-copier.log"
    assert "CUDA out of memory" in kept.read_text()
    assert any(str(kept) in event.message for event in events)
    stored = {entry.record.kind for entry in StageStore(folder / "data" / "stages").entries()}
    assert stored == {"original", "edited"}


def test_a_training_ends_with_what_it_saved_as_soon_as_the_gate_holds(
    request_: RunRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPIER_FAKE", "slow")
    data = json.loads((folder / "short.json").read_text())
    data["trainer"] = "sd-scripts"
    (copier, gate) = (stage for stage in data["stages"] if stage["name"] in ("copier", "gate"))
    copier["check_every"], copier["training"]["steps"] = 1, 15
    gate |= {"median_limit": 2.0, "single_limit": 2.0}
    recipe = recipe_from_json(data)
    events: list[ProgressEvent] = []
    done = run(replace(request_, recipe=recipe), folder, events)
    ended = next(one for one in done.runs[0].stages if one.stage.name == "copier")
    assert ended.entry.record.outcome["steps"] < 15
    assert any(event.message.startswith("gate after") for event in events if event.stage == "copier")
    order = [stage.name for stage in done.runs[0].plan.stages]
    assert order.index("gate.base") < order.index("copier"), "what the check measures by comes first"
    monkeypatch.setenv("COPIER_FAKE", "")
    unreached = json.loads(json.dumps(data))
    unreached["stages"][1] |= {"median_limit": 0.0, "single_limit": 0.0}
    whole = run(replace(request_, recipe=recipe_from_json(unreached)), folder)
    ended = next(one for one in whole.runs[0].stages if one.stage.name == "copier")
    assert ended.entry.record.outcome["steps"] == 15 and not ended.reused


def test_what_was_saved_is_judged_also_when_the_script_is_faster_than_the_gate(
    request_: RunRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script has ended when the first LoRA is looked at, and the first that passes is taken."""
    monkeypatch.setattr(sd_scripts, "SCAN_SECONDS", 1e6)
    data = json.loads((folder / "short.json").read_text()) | {"trainer": "sd-scripts"}
    data["stages"][0]["check_every"], data["stages"][0]["training"]["steps"] = 2, 10
    data["stages"][1] |= {"median_limit": 2.0, "single_limit": 2.0}
    asked = replace(request_, recipe=recipe_from_json(data), scripts=ScriptOptions(save_every=3))
    done = run(asked, folder)
    ended = next(one.entry for one in done.runs[0].stages if one.stage.name == "copier")
    assert ended.record.outcome["steps"] == 2
    saved = {path.name for path in ended.path("saved").iterdir()}
    assert saved == {f"lora-step{step:08d}.safetensors" for step in range(1, 11)}, "and none of them is lost"


@pytest.mark.parametrize("trainer", ["builtin", "sd-scripts"])
def test_a_check_without_a_gate_is_refused(folder: Path, trainer: str) -> None:
    data = json.loads((folder / "short.json").read_text()) | {"trainer": trainer}
    data["stages"][0]["check_every"] = 5
    recipe_from_json(data)
    del data["stages"][1]
    with pytest.raises(BadInput, match="no gate for its LoRA"):
        recipe_from_json(data)


def test_samples_on_the_way_stay_with_the_stage(request_: RunRequest, folder: Path) -> None:
    shown = []

    def see(event: ProgressEvent) -> None:
        if event.pictures and event.phase is Phase.WORKING:
            shown.extend((event.stage, Path(picture).is_file()) for picture in event.pictures)

    request = replace(request_, scripts=ScriptOptions(sample_every=2))
    done = service.execute((request,), Settings(folder / "data"), observer=see)
    assert set(shown) == {("copier", True), ("lora", True)}, "the observer is told while they are there"
    entry = next(one.entry for one in done.runs[0].stages if one.stage.name == "copier")
    assert [path.suffix for path in entry.path("samples").iterdir()] == [".png"]


def test_extra_arguments_are_checked_by_the_scripts_own_parser_and_travel_nowhere(
    request_: RunRequest, folder: Path, lora: Path
) -> None:
    with pytest.raises(UnknownName, match="--network_dimension"):
        run(replace(request_, scripts=ScriptOptions(extra=("--network_dimension", "4"))), folder)
    with pytest.raises(BadInput, match="set rank in the recipe"):
        run(replace(request_, scripts=ScriptOptions(extra=("--network_dim", "4"))), folder)
    secret = "a/secret/path"
    done = run(replace(request_, scripts=ScriptOptions(extra=("--sample_prompts_file", secret))), folder)
    for path in [*(folder / "out").rglob("*"), *(folder / "data").rglob("*.json*")]:
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert done.result.is_file()
    lora = read_lora(done.result).metadata
    assert "ss_training_comment" not in lora and lora["ss_network_dim"] == "2"
    builtin = replace(request_.recipe, trainer=Trainer.BUILTIN)
    with pytest.raises(BadInput, match="trainer=sd-scripts"):
        run(replace(request_, recipe=builtin, scripts=ScriptOptions(extra=("--a",))), folder)


def test_the_device_is_that_of_the_python_which_trains(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = Interpreter(sys.executable, "3.10.0", "linux", "2.1.2+cpu", "", "", "pip")
    environment = TrainerEnvironment(interpreter, folder, None, folder, eight_bit=False)
    monkeypatch.setattr(crew, "ask_interpreter", lambda python: interpreter)
    monkeypatch.setattr(crew, "require_environment", lambda root, python: environment)
    monkeypatch.setattr(crew, "find_sd_scripts", lambda own: ScriptsFolder(folder, own=True, commit="abc"))
    settings = replace(Settings(folder / "data"), accelerate=folder / "short.json", silent_seconds=5.0)
    with pytest.raises(BadInput, match="COPIER_PYTHON"):
        crew.find_kit(settings, device="cuda")
    found = crew.find_kit(settings, device="cpu")
    scripts = found.scripts(settings, threads=2)
    assert scripts.silent_seconds == 5.0 and scripts.environment()["ACCELERATE_USE_CPU"] == "true"
    assert scripts.environment()["CUDA_VISIBLE_DEVICES"] == "-1"
    assert crew.find_kit(settings, device="auto").device == Device("cpu")
    engine = found.engine(settings, load_recipe("copier-quick"))
    assert "accelerate " in engine and "sd-scripts abc" in engine and "adamw for adamw8bit" in engine
    alone = replace(settings, accelerate=None)
    assert found.engine(alone, load_recipe("copier-thorough")) == "sd-scripts abc"


def test_only_sdxl_is_fitted_to_a_card(folder: Path, narrow_sdxl: Path) -> None:
    recipe, settings = load_recipe("copier-quick"), Settings(folder / "data")
    same, note = cards.fitted(recipe, folder / "base.safetensors", settings, device="cpu", card=None)
    assert same == recipe and note == ""
    with pytest.raises(BadInput, match="only trainings of SDXL"):
        cards.fitted(recipe, folder / "base.safetensors", settings, device="cpu", card=8)
    small, note = cards.fitted(recipe, narrow_sdxl, settings, device="cpu", card=8)
    assert all(one.training.fp8_base and one.training.resolution == 1024 for one in small.trainings())
    assert "8 GB" in note
    with pytest.raises(BadInput, match="needs 8 GB"):
        cards.fitted(recipe, narrow_sdxl, settings, device="cpu", card=6)
    on_the_processor, _ = cards.fitted(recipe, narrow_sdxl, settings, device="cpu", card=None)
    assert {one.training.precision for one in on_the_processor.trainings()} == {"fp32"}
    assert {one.training.resolution for one in on_the_processor.trainings()} == {1024}


@pytest.fixture
def narrow_sdxl(folder: Path) -> Path:
    path = folder / "xl.safetensors"
    write_tensors(path, {name: torch.zeros(shape) for name, shape in sdxl_file().items()})
    return path
