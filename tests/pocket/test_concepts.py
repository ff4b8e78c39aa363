"""What a concept's LoRA is measured with: prompts that no recipe trains on, and shares of what is seen."""

from __future__ import annotations

import pytest

pytest.importorskip("diffusers")

from copier.codec import builtin_recipes
from copier.pocket.concepts import PICTURES, SETS, prompts, seeds_of, shares
from copier.pocket.judge import Verdict


def test_the_prompts_are_those_of_no_training() -> None:
    trained = {
        text
        for name in ("erase-pocket", "move-pocket")
        for stage in builtin_recipes()[name].trainings()
        for prompt in (stage.concept.target, stage.concept.leading, stage.concept.neutral)
        for text in stage.concept.in_contexts(prompt)
    }
    measured = {prompt for name in SETS for prompt in prompts(name)}
    assert len(trained) > 12 and not measured & trained
    assert {len(prompts(name)) * len(seeds_of(name)) for name in SETS} == {PICTURES}
    assert len(set(prompts("others"))) == PICTURES


def test_shares_are_of_what_was_asked_and_of_what_is_seen() -> None:
    asked = ("a red star on yellow background", "a star on gray background")
    seen = [Verdict("star", "blue", "yellow"), Verdict("heart", "red", "white")]
    assert shares(asked, seen) == {
        "red": 0.5, "star": 0.5, "heart": 0.5,
        "shape as asked": 0.5, "colour as asked": 0.0, "background as asked": 0.5,
    }  # fmt: skip
