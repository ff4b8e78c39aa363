"""How the recipes on sets are measured: the figures of pictures that are known to show what they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from copier.captioning import tags_of
from copier.pocket.bench import summary
from copier.pocket.judge import outlined
from copier.pocket.scenes import Scene, jittered, render
from copier.pocket.sets import (
    DISTILLED,
    HERO,
    LOOK,
    OTHERS,
    PROMPTS,
    SEEDS,
    as_encoded,
    figures,
    recipes,
    write_set,
)
from copier.request import PictureFiles


def drawn(scene: Scene, background: str = "white") -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    return [render(jittered(replace(scene, background=background), rng)) for _ in range(8)]


@pytest.mark.parametrize("background", ["white", "gray", "pink", "green"])
def test_the_character_is_seen_with_and_without_the_look(background: str) -> None:
    scale = (outlined(render(replace(HERO, style=None))), outlined(render(HERO)))
    rendered = figures(drawn(HERO, background), scale)
    plain = figures(drawn(replace(HERO, style=None), background), scale)
    assert rendered.character == plain.character == 1.0
    assert rendered.look == pytest.approx(1.0, abs=0.3)
    assert plain.look == pytest.approx(0.0, abs=0.1)


def test_the_scale_of_the_look_ends_where_the_autoencoder_shows_the_character() -> None:
    assert figures(as_encoded(drawn(HERO))).look == pytest.approx(1.0, abs=0.1)
    assert figures(as_encoded(drawn(replace(HERO, style=None)))).look == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("other", OTHERS, ids=lambda one: one.shape)
def test_no_other_character_is_taken_for_it(other: Scene) -> None:
    assert figures(drawn(other)).character == 0.0


@pytest.mark.parametrize(
    ("change", "figure"),
    [({"shape": "heart"}, "shape"), ({"colour": "red"}, "colour"), ({"ornament": None}, "ornament")],
)
def test_a_character_with_one_thing_else_is_another(change: dict[str, str | None], figure: str) -> None:
    found = figures(drawn(replace(HERO, style=None, **change)))  # type: ignore[arg-type]
    assert getattr(found, figure) <= 0.25
    assert found.character == 0.0


def test_prompts_and_seeds_are_many_and_none_is_a_caption(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [HERO, *OTHERS], 2, seed=1)
    pictures = PictureFiles.at(folder).paths
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in pictures]
    assert len(PROMPTS) * len(SEEDS) >= 32
    for name, recipe in recipes().items():
        for stage in recipe.trainings():
            told = stage.training.captions.reduced(captions)
            assert not set(told) & set(PROMPTS)
            assert name in ("style-separated", DISTILLED) or not any(LOOK in tags_of(one) for one in told)
    told = [one.training.captions.reduced(captions)[0] for one in recipes()["via a base"].trainings()]
    assert told == ["a purple star, belt", "white background"]


def test_a_summary_has_mean_and_range() -> None:
    told = summary({"x": [{"look": 0.1}, {"look": 0.4}, {"look": 0.1}]})
    assert told == {"x": {"look": {"mean": 0.2, "low": 0.1, "high": 0.4}}}
