"""Requests as JSON: there and back, absolute, and refused where something is amiss."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from copier.app.request_json import request_from_json, request_to_json
from copier.codec import builtin_recipes, recipe_from_json, recipe_to_json
from copier.errors import BadInput
from copier.model_options import ModelOptions, Prediction, Switch
from copier.recipe import FileStage
from copier.request import Edit, Fit, Generated, PictureFiles, RunRequest, ScriptOptions

QUICK = builtin_recipes()["copier-quick"]
RECIPE = replace(QUICK, stages=(FileStage("look"), *QUICK.stages))
FULL = RunRequest(
    recipe=RECIPE,
    checkpoint=Path("/models/ein Mödell.safetensors"),
    pictures={"a": Generated("a “red” star", 7, 20, 3.5, 512), "b": Edit("outline", {"width": 5.0})},
    out=Path("/out/前"),
    loras={"look": Path("/loras/look.safetensors")},
    title="Umriß",
    device="cpu",
    threads=3,
    model=ModelOptions(Path("/vae.safetensors"), 2, Prediction.VELOCITY, Switch.ON),
    scripts=ScriptOptions(("--max_grad_norm", "0.5"), 100),
    captions=Path("/captions"),
)
FILES = replace(
    FULL,
    pictures={
        "a": PictureFiles((Path("/a/1.png"), Path("/a/2.png")), Fit.CROP),
        "b": PictureFiles((Path("/b/1.png"), Path("/b/2.png"))),
    },
    model=ModelOptions(),
    threads=None,
    captions=None,
)


@pytest.mark.parametrize("request_", [FULL, FILES], ids=["everything", "files and defaults"])
def test_a_request_survives_json(request_: RunRequest) -> None:
    text = json.dumps(request_to_json(request_), allow_nan=False)
    assert request_from_json(json.loads(text)) == request_
    assert json.dumps(request_to_json(request_from_json(json.loads(text)))) == text


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    near = replace(
        FILES,
        checkpoint=Path("m.safetensors"),
        pictures={"a": PictureFiles((Path("a.png"),)), "b": PictureFiles((Path("x/../b.png"),))},
        out=Path("out"),
        loras={"look": Path("look.safetensors")},
        model=ModelOptions(Path("vae.safetensors")),
        captions=Path("texts"),
    )
    monkeypatch.chdir(tmp_path)
    data = request_to_json(near)
    monkeypatch.chdir("/")
    far = request_from_json(data)
    assert far.checkpoint == tmp_path / "m.safetensors"
    assert far.pictures["b"] == PictureFiles((tmp_path / "b.png",))
    paths = [far.out, far.loras["look"], far.model.vae, far.captions]
    assert paths == [tmp_path / name for name in ("out", "look.safetensors", "vae.safetensors", "texts")]


def test_a_file_name_that_is_no_text_survives(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"/models/\xff.safetensors"))
    text = json.dumps(request_to_json(replace(FULL, checkpoint=odd)), ensure_ascii=True)
    assert request_from_json(json.loads(text.encode("ascii"))).checkpoint == odd


def test_extra_arguments_are_not_in_the_recipe_which_travels() -> None:
    data = request_to_json(FULL)
    assert "max_grad_norm" in json.dumps(data)
    assert "max_grad_norm" not in json.dumps(data["recipe"])
    assert recipe_from_json(data["recipe"]) == FULL.recipe == recipe_from_json(recipe_to_json(FULL.recipe))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "version is 2"),
    "no version": ({"version": None}, "no request"),
    "unknown field": ({"chekpoint": "x"}, "did you mean 'checkpoint'"),
    "path": ({"checkpoint": 5}, "checkpoint is 5: give a text"),
    "threads": ({"threads": "two"}, "threads is 'two': give a whole number"),
    "true threads": ({"threads": True}, "threads is True"),
    "device": ({"device": "tpu"}, "no device 'tpu'"),
    "kind of pictures": ({"pictures": {"a": {"kind": "film"}, "b": {}}}, "'film'"),
    "no source": ({"pictures": {"a": "a.png"}}, "give a JSON object"),
    "pictures": ({"pictures": []}, "pictures is \\[\\]"),
    "prediction": ({"model": {"prediction": "noise"}}, "'noise'"),
    "parameter": ({"pictures": {"b": {"kind": "edit", "name": "x", "parameters": {"width": "5"}}}}, "number"),
    "extra": ({"scripts": {"extra": "--x"}}, "give a list"),
    "recipe": ({"recipe": {}}, "no recipe"),
    "loras": ({"loras": {}}, "'look' of the recipe is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_amiss_is_refused_by_name(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(BadInput, match=message):
        request_from_json({**request_to_json(FULL), **changes})


@pytest.mark.parametrize("name", ["recipe", "checkpoint", "pictures", "out"])
def test_what_is_needed_is_missed_by_name(name: str) -> None:
    data = request_to_json(FULL)
    del data[name]
    with pytest.raises(BadInput, match=f"no '{name}'"):
        request_from_json(data)
