"""What each stage does, in words: every stage of every built-in recipe has some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from copier.app.jobs import RUN, Job, JobState, run_payload
from copier.codec import builtin_recipes
from copier.recipe import Recipe, with_control
from copier.request import Edit, Generated, RunRequest
from copier.ui import words
from copier.ui.stage_words import said_of, stage_words

RECIPES = builtin_recipes()


def job(recipe: Recipe) -> Job:
    pictures = {"a": Generated("a star"), "b": Edit("grayscale", {})}
    request = RunRequest(recipe=recipe, checkpoint=Path("x"), pictures=pictures, out=Path("out"))
    return Job("0001-aaaa", RUN, "", JobState.QUEUED, run_payload(request), Path(), 0.0)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_stage_of_the_built_in_recipes_has_words(name: str) -> None:
    recipe = with_control(RECIPES[name])
    known = stage_words(job(recipe))
    stages = [stage.name for stage in recipe.stages]
    assert all(said_of(one, known) for one in (*stages, "a", "b"))


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
