"""Recipes that train on pairs, end to end on the pocket checkpoint, in less than they are made for.

docs/methods.md has what the whole recipes reach.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from copier.app.demo import PROMPT
from copier.app.figures import outcome_json
from copier.app.pictures import DrawRequest, draw
from copier.app.service import execute
from copier.app.settings import Settings
from copier.codec import load_recipe, with_values
from copier.pocket.checkpoint import checkpoint_path
from copier.recipe import EvaluateStage, GateStage, Recipe
from copier.request import Edit, PictureFiles, RunRequest

pytestmark = pytest.mark.slow

LESS = ("copier.training.steps=60", "lora.training.steps=30", "evaluate.weights=[1]")
PAIRS = 6
"""Of prompts and seeds, on which the LoRA is measured."""


def in_less(name: str) -> Recipe:
    """The recipe with fewer steps, without gates, measured on fewer pictures."""
    recipe = with_values(load_recipe(name), LESS)
    stages = [
        replace(stage, prompts=stage.prompts[:PAIRS], seeds=stage.seeds[:PAIRS])
        if isinstance(stage, EvaluateStage)
        else stage
        for stage in recipe.stages
        if not isinstance(stage, GateStage)
    ]
    return replace(recipe, stages=tuple(stages))


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("several-originals-pocket", (PROMPT, "a yellow ring on purple background")),
        ("framing-pocket", (PROMPT,)),
    ],
)
def test_the_lora_makes_the_change_and_leaks_less_than_a_plain_one(
    tmp_path: Path, name: str, prompts: tuple[str, ...]
) -> None:
    settings = Settings(tmp_path / "data")
    drawn = draw(DrawRequest(checkpoint_path(), prompts, (7,), tmp_path / "a", device="cpu"), settings)
    pictures = {"a": PictureFiles(tuple(one.path for one in drawn)), "b": Edit("grayscale")}
    request = RunRequest(in_less(name), checkpoint_path(), pictures, tmp_path / "out", device="cpu")
    (found,) = outcome_json(execute([request], settings, control=True))["results"]
    ours, control = found["lora"], found["control"]
    assert ours["projection"] >= 0.15
    assert ours["effect"] - control["effect"] >= 0.2
    assert ours["leakage"] <= 0.7 * control["leakage"]
