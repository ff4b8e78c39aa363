"""``copier run`` with the recipes on sets: how they are given, what is trained on what, what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

Copier = Callable[..., Any]
SMALL = (
    *("--set", "training.steps=2", "--set", "training.rank=2"),
    *("--set", "training.resolution=0", "--checkpoint", "base.safetensors", "--json"),
)
MEASURED = ("--set", 'gate.prompts=["one"]', "--set", "gate.seeds=[1]", "--set", 'evaluate.prompts=["two"]',
            "--set", "evaluate.seeds=[1]", "--set", "evaluate.weights=[1]")  # fmt: skip


@pytest.fixture
def trained(worker: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests of all trainings."""
    found: list[Any] = []
    train = worker.train

    def seen(self: Any, request: Any, **more: Any) -> Any:
        found.append(request)
        return train(self, request, **more)

    monkeypatch.setattr(worker, "train", seen)
    return found


def pictures(folder: Path, doubles: ModuleType, count: int, *captions: str) -> Path:
    folder.mkdir()
    for number in range(count):
        doubles.write_picture(folder / f"{number}.png", 128, 128, seed=number)
        if captions:
            (folder / f"{number}.txt").write_text(captions[number % len(captions)], encoding="utf-8")
    return folder


def names(data: Any, kind: str) -> list[str]:
    return [one["name"] for one in data["stages"] if one["kind"] == kind]


def test_several_originals_are_two_folders(
    copier: Copier, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    pictures(folder / "mine", doubles, 2)
    given = ("run", "several-originals-pocket", "--a", "mine", "--edit", "grayscale", *SMALL, *MEASURED)
    data = copier(*given, "--control", "--set", "mean.agreement=1").json
    assert names(data, "train") == [
        *("copier-1", "copier-2", "lora-1", "lora-2", "control"),
    ]
    assert names(data, "combine") == ["mean"]
    notes = json.loads(Path(data["report"]["json"]).read_text(encoding="utf-8"))["notes"]
    assert any(note.startswith("mean adds 2 LoRAs; the cosines") for note in notes)
    assert data["disagreements"][0].startswith("lora-1 and lora-2 disagree: the cosine")
    assert Path(data["result"]).name == "grayscale.safetensors"
    published = {path.name for path in (folder / "out").iterdir()}
    assert {"a-1.png", "a-2.png"} <= published
    assert not any(name.startswith("a-1-") for name in published)
    changed = ("--set", "resized.ranks.rank=1", "--set", "mean.agreement=-1")
    again = copier(*given, "--control", *changed).json
    assert again["disagreements"] == []
    assert {one["name"] for one in again["stages"] if one["status"] == "run" and one["kind"] != "draw"} == {
        "resized",
        "evaluate",
    }


def test_the_sum_goes_by_way_of_a_checkpoint(
    copier: Copier, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    pictures(folder / "mine", doubles, 2)
    given = ("run", "several-originals-pocket", "--a", "mine", "--edit", "grayscale", *SMALL, *MEASURED)
    done = copier(*given, "--set", "mean.route=checkpoint-fp32")
    assert done.code == 0, done.err
    assert {"mean", "resized"} <= set(done.json["files"][0])


def test_framing_trains_on_the_same_views_of_both(
    copier: Copier, folder: Path, worker: Any, doubles: ModuleType
) -> None:
    pictures(folder / "mine", doubles, 1)
    given = ("run", "framing-pocket", "--a", "mine/0.png", "--edit", "grayscale", *SMALL, *MEASURED)
    data = copier(*given).json
    assert names(data, "derived") == ["views-a", "views-b"]
    out = folder / "out"
    for number in range(1, 9):
        a = np.asarray(Image.open(out / f"views-a-{number}.png").convert("L"), dtype=float)
        b = np.asarray(Image.open(out / f"grayscale-views-b-{number}.png"), dtype=float)[..., 0]
        assert np.abs(a - b).mean() < 6.0
    notes = json.loads((out / "report.json").read_text(encoding="utf-8"))["notes"]
    assert any("8 views of each picture of a: 128 x 128 px at 0, 0;" in note for note in notes)


CAPTIONS = ("a red circle, white background, 3d", "a blue star, white background, 3d")


def test_a_character_has_constant_captions_and_its_base_what_varies(
    copier: Copier, folder: Path, trained: list[Any], doubles: ModuleType
) -> None:
    pictures(folder / "others", doubles, 2, *CAPTIONS)
    pictures(folder / "hero", doubles, 1, *CAPTIONS)
    given = ("--pictures", "base=others", "--pictures", "character=hero")
    done = copier("run", "character-pocket", *given, *SMALL)
    assert done.code == 0, done.err
    assert [list(one.captions) for one in trained] == [
        ["a red circle", "a blue star"],
        ["white background"],
    ]
    assert [len(one.base) for one in trained] == [0, 1]
    edited = copier("run", "character-pocket", *given, *SMALL, "--set", 'lora.training.captions.keep=["3d"]')
    assert [list(one.captions) for one in trained[2:]] == [["3d"]]
    assert {one["name"]: one["status"] for one in edited.json["stages"]} == {
        "base": "reused",
        "character": "reused",
        "look": "reused",
        "lora": "run",
    }


def test_a_subject_is_trained_on_its_style(
    copier: Copier, folder: Path, trained: list[Any], doubles: ModuleType
) -> None:
    pictures(folder / "style", doubles, 2, "a house")
    pictures(folder / "subject", doubles, 1, "a cat")
    given = ("--pictures", "style=style", "--pictures", "subject=subject")
    done = copier("run", "style-subject-pocket", *given, *SMALL)
    assert done.code == 0, done.err
    assert [list(one.captions) for one in trained] == [["a house"] * 2, ["a cat"]]
    assert trained[1].base[0][1] == 1.0
    missing = copier("run", "style-subject-pocket", *given[:2], *SMALL)
    assert missing.code == 2
    assert "--pictures subject=PATH" in missing.err
