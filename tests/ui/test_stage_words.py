"""What each stage does, in words: every stage of every built-in recipe has some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from copier.app.jobs import RUN, Job, JobState, run_payload
from copier.codec import builtin_recipes
from copier.recipe import EvaluateStage, Recipe, with_control
from copier.request import Edit, Generated, RunRequest
from copier.ui import words
from copier.ui.stage_words import said_of, stage_words

RECIPES = builtin_recipes()


def asked(recipe: Recipe) -> RunRequest:
    pictures = {one.name: Edit("grayscale", {}) if one.of else Generated("a star") for one in recipe.given}
    return RunRequest(recipe=recipe, checkpoint=Path("x"), pictures=pictures, out=Path("out"))


def job(recipe: Recipe) -> Job:
    request = asked(recipe)
    return Job("0001-aaaa", RUN, "", JobState.QUEUED, run_payload(request), Path(), 0.0)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_stage_of_the_built_in_recipes_has_words(name: str) -> None:
    recipe = RECIPES[name]
    made = asked(recipe).written_out().recipe
    if any(isinstance(stage, EvaluateStage) for stage in recipe.stages):
        made = with_control(made)
    known = stage_words(job(made))
    assert set(known) >= set(stage_words(job(recipe)))
    names = [one.name for one in (*made.stages, *made.pictures)]
    assert all(said_of(one, known) for one in names)


def test_a_pair_and_a_concept_are_not_learnt_by_heart() -> None:
    assert stage_words(job(RECIPES["direct-pair-pocket"]))["lora"] == words.LEARNS_CHANGE
    assert stage_words(job(RECIPES["move-pocket"]))["lora"] == words.LEARNS_CONCEPT
    of_sets = stage_words(job(RECIPES["character-pocket"]))
    assert (of_sets["look"], of_sets["base"]) == (words.LEARNS_SET, words.PICTURES_GIVEN)


def test_the_second_training_is_told_from_the_first() -> None:
    known = stage_words(job(RECIPES["copier-quick-pocket"]))
    assert known["copier"] == words.LEARNS_A and known["lora"] == words.LEARNS_CHANGE
    assert (known["gate"], known["second"]) == (words.CHECKS_A, words.CHECKS_B)
    assert said_of("evaluate.base", known) == said_of("gate.pictures", known) == words.DRAWS
    assert said_of("nothing.like.it", known) == said_of("else.base", known) == ""


def test_a_job_of_another_kind_or_another_version_has_none() -> None:
    run = job(RECIPES["copier-quick-pocket"])
    assert stage_words(replace(run, kind="operation")) == {}
    assert stage_words(replace(run, payload={"request": {"recipe": "?"}})) == {}
