"""What a concept's LoRA is measured with: prompts that no recipe trains on, and counts of what is seen."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from copier.codec import builtin_recipes
from copier.pocket.concepts import PICTURES, SETS, counts
from copier.pocket.judge import Verdict


def test_the_prompts_are_those_of_no_training() -> None:
    trained = {
        text
        for name in ("erase-pocket", "move-pocket")
        for stage in builtin_recipes()[name].trainings()
        for prompt in (stage.concept.target, stage.concept.leading, stage.concept.neutral)
        for text in stage.concept.in_contexts(prompt)
    }
    measured = {prompt for asked in SETS.values() for prompt in asked}
    assert len(trained) > 12 and not measured & trained
    assert {len(asked) for asked in SETS.values()} == {PICTURES}
    assert len(set(SETS["others"])) == PICTURES, "colours and backgrounds turn at different paces"


def test_counts_are_of_what_was_asked_and_of_what_is_seen() -> None:
    asked = ("a red star on yellow background", "a star on gray background")
    seen = [Verdict("star", "blue", "yellow"), Verdict("heart", "red", "white")]
    assert counts(asked, seen) == {
        "pictures": 2, "red": 1, "star": 1, "heart": 1,
        "shape as asked": 1, "colour as asked": 0, "background as asked": 1,
    }  # fmt: skip
