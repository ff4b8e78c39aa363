"""``run``, ``demo``, ``generate`` and ``evaluate``: what they print, reuse, and keep when stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

RUN = ("run", "short.json", "--checkpoint", "base.safetensors", "--a", "a.png", "--edit", "grayscale")
STAGES = 10
"""a, b, copier, two draws and the gate, lora, two draws and the evaluation."""


def test_a_run_prints_figures_and_files_and_the_next_one_reuses_every_stage(
    copier: Any, folder: Path, worker: Any
) -> None:
    first = copier(*RUN)
    assert first.code == 0
    for word in ("gate", "Grayscale", "effect", "leakage", f"0 of {STAGES} stages reused", "out/report.html"):
        assert word in first.out
    assert "runs: not made before" in first.err
    made = len(worker.calls)
    assert made
    second = copier(*RUN)
    assert second.code == 0
    assert f"{STAGES} of {STAGES} stages reused" in second.out
    assert len(worker.calls) == made
    assert worker.alive == 0


def test_json_is_one_object_with_the_figures_of_the_report(copier: Any, folder: Path, worker: Any) -> None:
    done = copier(*RUN, "--control", "--json")
    assert done.code == 0
    data = done.json
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    (result,) = data["results"]
    theirs = next(one for one in report["results"][0]["control"]["weights"] if one["weight"] == 1)
    assert result["control"]["effect"] == theirs["effect"]
    assert data["gate"]["count"] == 2
    assert len(data["stages"]) == STAGES + 2
    assert data["reused"] == 0
    assert {"a", "b", "copier", "lora", "control"} <= set(data["files"][0])
    assert all(Path(path).is_file() for path in data["files"][0].values())
    assert Path(data["result"]) == Path("out/grayscale.safetensors")
    checks = data["checks"]
    assert checks["count"] == checks["passed"] + len(checks["missed"]) > 0


def test_a_recipe_file_has_sets_of_pictures_and_loras_of_its_own(
    copier: Any, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    recipe = json.loads((folder / "short.json").read_text(encoding="utf-8"))
    recipe["stages"].insert(0, {"kind": "file", "name": "look"})
    recipe["stages"].insert(1, {"kind": "train", "name": "extra", "pictures": "style"})
    recipe["stages"][1]["training"] = {"steps": 1, "resolution": 0, "optimiser": "adamw"}
    recipe["pictures"] = [{"name": "a"}, {"name": "b", "of": "a"}, {"name": "style"}]
    (folder / "mine.json").write_text(json.dumps(recipe), encoding="utf-8")
    doubles.write_small_lora(folder / "look.safetensors")
    for number, name in enumerate(("style/1.png", "style/2.png", "many/1.png", "many/2.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        doubles.write_picture(folder / name, seed=number)
    mine = ("run", "mine.json", *RUN[2:4], "--a", "many", "--edit", "grayscale")
    both = ("--pictures", "style=style", "--lora", "look=look.safetensors")
    assert copier(*mine, *both[:2]).code == 2
    refused = copier(*mine, *both[2:])
    assert refused.code == 2 and "'style'" in refused.err and "--pictures style=PATH" in refused.err
    twice = copier(*mine, *both, "--lora", "look=look.safetensors")
    assert twice.code == 2 and "given twice" in twice.err
    assert copier(*mine, *both, "--pictures", "b=a.png", "--b", "a.png").code == 2
    assert not (folder / "out").exists()
    done = copier(*mine, *both, "--json")
    assert done.code == 0, done.err
    assert {"a", "b", "style", "extra", "lora"} <= set(done.json["files"][0])
    assert (folder / "out" / "a-2.png").is_file() and (folder / "out" / "style-2.png").is_file()


def test_epochs_and_repeats_are_steps_by_the_pictures_and_the_batch_size(
    copier: Any, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    (folder / "many").mkdir()
    for number in range(3):
        doubles.write_picture(folder / "many" / f"{number}.png", seed=number)
    asked = (*RUN[:4], "--a", "many", "--edit", "grayscale", "--set", "lora.training.batch_size=2")
    refused = copier(*asked, "--repeats", "5")
    assert refused.code == 2 and "--epochs" in refused.err
    done = copier(*asked, "--epochs", "2", "--repeats", "5", "--json")
    assert done.code == 0, done.err
    recipe = json.loads((folder / "out" / "grayscale-recipe.json").read_text(encoding="utf-8"))
    steps = {one["name"]: one["training"]["steps"] for one in recipe["stages"] if one["kind"] == "train"}
    assert steps == {"copier": 2 * 15, "lora": 2 * 8}


def test_a_dry_run_says_what_would_run_and_why_and_writes_nothing(
    copier: Any, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    before = doubles.tree(folder)
    done = copier(*RUN, "--dry-run")
    assert done.code == 0
    assert "0 of 10 stages would be reused" in done.out
    assert done.out.count("not made before") == STAGES
    assert doubles.tree(folder) == before
    assert copier(*RUN).code == 0
    between = doubles.tree(folder)
    data = copier(*RUN, "--set", "lora.training.seed=5", "--dry-run", "--json").json
    status = {one["name"]: one["status"] for one in data["stages"]}
    assert status["copier"] == status["gate"] == "reuse"
    assert status["lora"] == status["evaluate"] == "run"
    assert "seed" in next(one["reason"] for one in data["stages"] if one["name"] == "lora")
    assert doubles.tree(folder) == between


def test_a_trainer_that_is_not_installed_is_named_with_both_remedies_before_anything_is_written(
    copier: Any, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    before = doubles.tree(folder.parent)
    done = copier("run", "copier-quick", "--checkpoint", "base.safetensors", "--a", "a.png", "--b", "b.png")
    assert done.code == 1 and done.out == ""
    assert "copier trainer install" in done.err and "--set trainer=builtin" in done.err
    assert doubles.tree(folder.parent) == before


def test_pictures_of_odd_sizes_are_fitted_where_that_is_asked_for(
    copier: Any, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    for seed, name in enumerate(("c", "d")):
        doubles.write_picture(folder / f"{name}.png", 70, 131, seed=seed)
    odd = (*RUN[:4], "--a", "c.png", "--b", "d.png")
    assert copier(*odd).code == 2
    done = copier(*odd, "--fit", "crop", "--json")
    assert done.code == 0, done.err
    with Image.open(folder / "out" / "a.png") as kept:
        assert kept.size == (64, 128)


def test_set_makes_a_recipe_for_the_other_trainer_run(copier: Any, folder: Path, worker: Any) -> None:
    done = copier(
        "run",
        "copier-quick",
        *RUN[2:],
        "--set",
        "trainer=builtin",
        "--set",
        "training.resolution=64",
        "--dry-run",
    )
    assert done.code == 0
    assert "not made before" in done.out


def test_without_a_checkpoint_the_embedded_one_is_used_with_a_note(copier: Any, worker: Any) -> None:
    arguments = ("run", "short.json", "--a-prompt", "x", "--a-seed", "4", "--edit", "blur", "--dry-run")
    done = copier(*arguments, "--json")
    assert done.code == 0
    assert "embedded pocket checkpoint" in done.err
    with_name = copier(*arguments, "--json", "--checkpoint", "base.safetensors")
    assert with_name.json == done.json
    assert "embedded" not in with_name.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_child_and_keeps_the_finished_stages(
    copier: Any, folder: Path, worker: Any, doubles: ModuleType, number: int
) -> None:
    def stop(self: Any, cancel: Any) -> None:
        if worker.calls[-1] == ("train", "lora"):
            os.kill(os.getpid(), number)
            doubles.until_cancelled(cancel)

    worker.on_train = stop
    handler = signal.getsignal(signal.SIGINT)
    done = copier(*RUN)
    assert done.code == 130
    assert done.out == ""
    assert f"finished stages are kept in {folder / 'data' / 'stages'}" in done.err
    assert "Traceback" not in done.err
    assert worker.alive == 0
    assert not list((folder / "data" / "stages").glob(".*"))
    assert list((folder / "out").iterdir()) == []
    worker.on_train = None
    again = copier(*RUN, "--json")
    assert again.code == 0
    assert next(one["name"] for one in again.json["stages"] if one["status"] == "run") == "lora"
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_signal_ends_it_at_once(copier: Any, worker: Any, doubles: ModuleType) -> None:
    def stop(self: Any, cancel: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        doubles.until_cancelled(cancel)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second signal did not interrupt")

    worker.on_train = stop
    done = copier(*RUN)
    assert done.code == 130
    assert worker.alive == 0


def test_an_unexpected_failure_is_one_line_and_a_traceback_only_if_asked(copier: Any, worker: Any) -> None:
    def fail(self: Any, cancel: Any) -> None:
        raise RuntimeError("boom")

    worker.on_train = fail
    done = copier(*RUN)
    assert done.code == 1
    assert "copier: RuntimeError: boom (--verbose shows where)" in done.err
    assert "Traceback" not in done.err
    verbose = copier("--verbose", *RUN)
    assert verbose.code == 1
    assert "Traceback" in verbose.err


def test_a_full_disk_in_the_middle_is_a_failure_not_bad_input(copier: Any, worker: Any) -> None:
    def fail(self: Any, cancel: Any) -> None:
        raise OSError(28, "No space left on device", "lora.safetensors")

    worker.on_train = fail
    done = copier(*RUN)
    assert done.code == 1
    assert "No space left on device (lora.safetensors)" in done.err


def test_threads_and_device_reach_the_worker_wherever_they_stand(copier: Any, worker: Any) -> None:
    assert copier("--threads", "3", *RUN, "--device", "cpu").code == 0
    assert worker.options["threads"] == 3
    assert worker.options["device"] == "cpu"


def test_the_demo_runs_its_constants_with_a_control(
    copier: Any, folder: Path, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from copier.app import demo
    from copier.codec import load_recipe

    monkeypatch.setattr(demo, "load_recipe", lambda name: load_recipe("short.json"))
    monkeypatch.setattr(demo, "DIFFERENCE_TITLE", "third")
    done = copier("demo", "--full", "--out", "shown", "--json")
    assert done.code == 0
    data = done.json
    assert [one["title"] for one in data["results"]] == ["Grayscale", "Outline", "third"]
    assert all(one["control"] for one in data["results"])
    assert worker.calls.count(("train", "copier")) == 1
    again = copier("demo", "--full", "--out", "shown")
    count = len(data["stages"])
    assert f"{count} of {count} stages reused" in again.out
    assert "shown/report.html" in again.out


def test_generate_draws_every_prompt_with_every_seed_and_replaces_nothing(
    copier: Any, folder: Path, worker: Any
) -> None:
    arguments = ("generate", "a cat", "a dog", "--seed", "5", "--count", "2", "--size", "64x128")
    done = copier(*arguments, "--lora", "small.safetensors=0.5")
    assert done.code == 0
    names = {Path(line).name for line in done.out.splitlines()}
    assert names == {f"a-{pet}-seed{n}-small+0.5.png" for pet in ("cat", "dog") for n in (5, 6)}
    assert {path.name for path in (folder / "pictures").iterdir()} == names
    plain = copier(*arguments, "--json").json["pictures"]
    assert [(one["prompt"], one["seed"]) for one in plain] == [
        ("a cat", 5),
        ("a cat", 6),
        ("a dog", 5),
        ("a dog", 6),
    ]
    assert len(list((folder / "pictures").iterdir())) == 8
    copier(*arguments)
    assert len(list((folder / "pictures").iterdir())) == 8


def test_evaluate_measures_effect_where_the_edit_is_known_and_change_elsewhere(
    copier: Any, folder: Path, worker: Any
) -> None:
    arguments = ("evaluate", "small.safetensors", "--prompt", "x", "--prompt", "y", "--weight", "1")
    known = copier(*arguments, "--edit", "brightness", "--edit-set", "amount=-0.0784", "--out", "e", "--json")
    assert known.code == 0
    (result,) = known.json["results"]
    # The worker's LoRA darkens by 20 of 255 levels, which is just what this edit does.
    assert result["measures"] == "effect"
    assert result["lora"]["effect"] > 0.95
    assert result["lora"]["leakage"] < 0.05
    assert result["lora"]["ceiling"] > 0.9
    for name in ("report.json", "report.html", "sheet.png"):
        assert (folder / "e" / name).is_file()
    plain = copier(*arguments, "--control", "small.safetensors", "--json").json["results"][0]
    assert plain["measures"] == "change"
    assert plain["lora"] == plain["control"]
    assert plain["lora"]["magnitude"] == pytest.approx(20 / 255, rel=0.02)
    assert "effect" not in plain["lora"]


def test_evaluate_takes_prompts_and_numbers_from_the_recipe_in_the_lora(
    copier: Any, folder: Path, worker: Any
) -> None:
    assert copier(*RUN).code == 0
    done = copier("evaluate", "out/grayscale.safetensors", "--edit", "grayscale")
    assert done.code == 0
    report = json.loads((folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
    (result,) = report["results"]
    assert [draw["prompt"] for draw in result["draws"]] == ["one", "two"]
    assert [one["weight"] for one in result["lora"]["weights"]] == [-1, 1]
    assert "at +1: effect" in done.out
