"""Recipes that train on sets, end to end on the pocket checkpoint.

What is drawn is read back by ``copier.pocket.judge``; docs/methods.md has three training seeds.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")

from copier.codec import load_recipe, with_values
from copier.pocket.bench import Bench
from copier.pocket.sets import GUIDANCE, PROMPTS, SEEDS, STEPS, distilled_set, figures, measure
from copier.request import PictureFiles

pytestmark = pytest.mark.slow

SHORTER = ("training.steps=240",)
"""Of the trainings that are compared. After much fewer the look is not apart."""
LESS = ("training.steps=60",)
"""Of the training on distilled pictures."""
MEASURED = ("via a base", "without a base", "style-separated")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def found(bench: Bench) -> dict[str, Any]:
    """The figures of every recipe, and of the checkpoint alone, by name."""
    told, _ = measure(bench, 1, MEASURED, SHORTER)
    return {name: seeds[0] for name, seeds in told.items()}


@pytest.mark.parametrize("name", ["via a base", "style-separated"])
def test_what_was_trained_on_a_base_comes_with_less_of_its_look(found: dict[str, Any], name: str) -> None:
    ours, plain, nothing = found[name], found["without a base"], found["the checkpoint"]
    assert min(ours["shape"], plain["shape"]) >= nothing["shape"] + 0.4
    assert ours["look"] <= plain["look"] - 0.2


def test_the_character_comes_without_the_look_that_a_plain_lora_brings(found: dict[str, Any]) -> None:
    ours, plain = found["via a base, weight 1.4"], found["without a base"]
    assert min(ours["character"], plain["character"]) >= 0.25 > found["the checkpoint"]["character"] + 0.2
    assert ours["look"] <= plain["look"] - 0.15


def test_what_is_distilled_at_half_weight_is_learnt_again(bench: Bench, found: dict[str, Any]) -> None:
    (lora,) = bench.work.glob("runs/picture-set-pocket-*/picture-set-pocket.safetensors")
    pictures = PictureFiles.at(distilled_set(bench, lora, "half"))
    assert len(pictures.paths) >= 2
    again = bench.trained(with_values(load_recipe("picture-set-pocket"), LESS), {"set": pictures})
    seen = figures(bench.drawn(again, PROMPTS, SEEDS, "again", steps=STEPS, guidance=GUIDANCE))
    assert seen.shape >= found["the checkpoint"]["shape"] + 0.3
