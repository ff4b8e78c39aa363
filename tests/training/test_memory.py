"""Presets by the memory of a card, and what to lower where a training does not fit."""

from __future__ import annotations

import pytest

from copier.checkpoint.family import Family
from copier.codec import builtin_recipes, with_value
from copier.recipe import Optimiser, Precision, Recipe, Trainer, TrainingSpec, TrainStage
from copier.training.memory import PRESETS, preset_for, savings, with_preset

QUICK = builtin_recipes()["copier-quick"]
THOROUGH = builtin_recipes()["copier-thorough"]


@pytest.mark.parametrize(
    ("gigabytes", "chosen"),
    [(6.0, None), (7.6, 8), (8.0, 8), (10.0, 8), (11.9, 12), (16.0, 12), (23.6, 24), (80.0, 24)],
)
def test_the_largest_card_that_is_no_larger_decides(gigabytes, chosen):
    preset = preset_for(Family.SDXL, gigabytes)
    assert (preset and preset.gigabytes) == chosen
    assert preset_for(Family.SD1, gigabytes) is None


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset.gigabytes} GB")
@pytest.mark.parametrize("recipe", [QUICK, THOROUGH], ids=lambda recipe: recipe.name)
def test_a_preset_changes_every_training_and_leaves_what_is_trained(recipe, preset):
    fitted = with_preset(recipe, preset)
    for before, after in zip(recipe.trainings(), fitted.trainings(), strict=True):
        assert (after.training.resolution, after.training.gradient_checkpointing) == (1024, True)
        assert after.training.fp8_base == (preset.gigabytes == 8)
        for name in ("steps", "rank", "alpha", "learning_rate", "captions", "seed", "schedule"):
            assert getattr(after.training, name) == getattr(before.training, name)
    kept = [stage for stage in recipe.stages if not isinstance(stage, TrainStage)]
    assert [stage for stage in fitted.stages if not isinstance(stage, TrainStage)] == kept


def test_a_large_card_keeps_the_recipes_optimiser_and_smaller_ones_take_the_8_bit_one():
    fitted = [with_preset(THOROUGH, preset) for preset in PRESETS]
    optimisers = [{stage.training.optimiser for stage in recipe.trainings()} for recipe in fitted]
    assert optimisers == [{Optimiser.ADAMW_8BIT}, {Optimiser.ADAMW_8BIT}, {Optimiser.ADAMW}]


LARGE = TrainingSpec(
    batch_size=8,
    rank=64,
    alpha=32.0,
    text_encoder=True,
    optimiser=Optimiser.ADAMW,
    precision=Precision.FP32,
    resolution=1024,
)


def test_what_saves_memory_is_ordered_by_what_it_costs():
    assert [one.split(".")[1].split("=")[0] for one in savings(LARGE)] == [
        *("precision", "gradient_checkpointing", "batch_size", "optimiser", "fp8_base"),
        *("text_encoder", "resolution", "rank", "alpha"),
    ]


def test_the_savings_can_be_set_one_on_top_of_the_other_until_none_is_left():
    recipe = Recipe("r", "R", (TrainStage("x", "a", training=LARGE),), "x", trainer=Trainer.SD_SCRIPTS)
    scale = LARGE.alpha / LARGE.rank
    for _ in range(20):
        (stage,) = recipe.trainings()
        assignments = savings(stage.training)
        if not assignments:
            break
        for assignment in assignments:
            recipe = with_value(recipe, assignment)
    least = next(recipe.trainings()).training
    assert savings(least) == ()
    assert (least.batch_size, least.resolution, least.rank) == (1, 256, 16)
    assert least.alpha / least.rank == scale
    assert (least.precision, least.fp8_base, least.text_encoder) == (Precision.FP16, True, False)
