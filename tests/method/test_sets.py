"""The recipes on sets, end to end on the pocket checkpoint: minutes each, so they are asked for by name.

    COPIER_METHOD=1 python -m pytest tests/method/test_sets.py

``tests/cli/test_run_sets.py`` runs the same recipes in seconds, with a worker that draws and trains nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from copier.app.demo import PROMPT
from copier.app.figures import outcome_json
from copier.app.pictures import DrawRequest, draw
from copier.app.service import execute
from copier.app.settings import Settings
from copier.codec import load_recipe, with_value
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.methods import Bench, measure
from copier.recipe import EvaluateStage
from copier.request import Edit, PictureFiles, RunRequest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("COPIER_METHOD"), reason="takes minutes: set COPIER_METHOD=1"),
]

SHORT = ("copier.training.steps=120", "evaluate.weights=[-1, 1]")


@pytest.mark.parametrize("name", ["several-originals-pocket", "framing-pocket"])
def test_the_lora_makes_the_change_and_leaks_less_than_a_plain_one(tmp_path: Path, name: str) -> None:
    settings = Settings(tmp_path / "data")
    prompts = (PROMPT, "a yellow ring on purple background") if "several" in name else (PROMPT,)
    drawn = draw(DrawRequest(checkpoint_path(), prompts, (7,), tmp_path / "a", device="cpu"), settings)
    recipe = load_recipe(name)
    for change in SHORT:
        recipe = with_value(recipe, change)
    stages = tuple(
        replace(stage, prompts=stage.prompts[:4], seeds=stage.seeds[:4])
        if isinstance(stage, EvaluateStage)
        else stage
        for stage in recipe.stages
        if type(stage).__name__ != "GateStage"
    )
    pictures = {"a": PictureFiles(tuple(one.path for one in drawn)), "b": Edit("grayscale")}
    request = RunRequest(
        replace(recipe, stages=stages), checkpoint_path(), pictures, tmp_path / "out", device="cpu"
    )
    (found,) = outcome_json(execute([request], settings, control=True))["results"]
    ours, control = found["lora"], found["control"]
    assert ours["projection"] >= 0.15
    assert ours["effect"] - control["effect"] >= 0.2
    assert ours["leakage"] <= 0.7 * control["leakage"]


def test_a_character_via_a_base_comes_without_the_look(tmp_path: Path) -> None:
    found, _ = measure(Bench(tmp_path), 1)
    via, plain = found["via a base"][0], found["without a base"][0]
    nothing = found["the checkpoint"][0]
    assert min(via["shape"], plain["shape"]) >= nothing["shape"] + 0.4
    assert nothing["look"] <= via["look"] <= plain["look"] - 0.1
