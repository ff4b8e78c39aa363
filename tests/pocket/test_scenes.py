"""Scenes, captions and the judge that reads them back."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from copier.images.effects import EFFECTS
from copier.pocket import scenes
from copier.pocket.judge import Verdict, judge, lab, nearest_colour
from copier.pocket.scenes import COLOURS, SHAPES, STYLES, Scene


def test_the_same_scene_is_drawn_the_same_and_another_place_is_not() -> None:
    scene = Scene("star", "red", "white")
    assert np.array_equal(scenes.render(scene), scenes.render(scene))
    assert not np.array_equal(scenes.render(scene), scenes.render(replace(scene, x=0.45)))


@pytest.mark.parametrize("style", [None, *STYLES])
@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_whole_and_in_range(shape: str, style: str | None) -> None:
    picture = scenes.render(Scene(shape, "orange", "cyan", style=style))
    assert picture.shape == (scenes.SIZE, scenes.SIZE, 3)
    assert picture.dtype == np.float32
    assert 0.0 <= picture.min() < picture.max() <= 1.0


def test_the_style_grayscale_is_the_edit_grayscale() -> None:
    scene = Scene("heart", "purple", "yellow")
    expected = EFFECTS["grayscale"].function(scenes.render(scene))
    assert np.allclose(scenes.render(replace(scene, style="grayscale")), expected, atol=1e-6)


def test_captions_follow_the_grammar() -> None:
    scene = Scene("star", "red", "white")
    assert scenes.caption(scene) == "a red star on white background"
    assert scenes.caption(replace(scene, style="3d")) == "a red star on white background, 3d"


def test_one_training_caption_in_ten_is_empty_and_most_are_full() -> None:
    rng = np.random.default_rng(0)
    scene = Scene("star", "red", "white")
    texts = [scenes.training_caption(scene, rng) for _ in range(4000)]
    assert 0.08 < texts.count("") / 4000 < 0.12
    assert 0.57 < texts.count(scenes.caption(scene)) / 4000 < 0.63
    assert {"a red star", "white background", "a star"} <= set(texts)


def test_training_never_sees_a_held_out_combination_and_the_gate_sees_no_other() -> None:
    rng = np.random.default_rng(1)
    assert not any(scenes.held_out(scenes.random_scene(rng)) for _ in range(500))
    assert all(scenes.held_out(scenes.random_scene(rng, training=False)) for _ in range(100))


def test_every_pair_of_words_is_seen_in_training() -> None:
    for shape, colour in itertools.product(SHAPES, COLOURS):
        backgrounds = [b for b in COLOURS if b != colour]
        assert not all(scenes.held_out(Scene(shape, colour, b)) for b in backgrounds)
    for colour, background in itertools.permutations(COLOURS, 2):
        assert not all(scenes.held_out(Scene(s, colour, background)) for s in SHAPES)
    for shape, background in itertools.product(SHAPES, COLOURS):
        colours = [c for c in COLOURS if c != background]
        assert not all(scenes.held_out(Scene(shape, c, background)) for c in colours)


def test_about_fifteen_percent_have_a_style() -> None:
    rng = np.random.default_rng(2)
    styled = sum(scenes.random_scene(rng).style is not None for _ in range(2000))
    assert 0.12 < styled / 2000 < 0.18


def test_the_judge_reads_rendered_scenes_without_error() -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        scene = scenes.random_scene(rng, training=False, styles=0.0)
        expected = Verdict(scene.shape, scene.colour, scene.background)
        assert judge(scenes.render(scene)) == expected


def test_a_speck_in_a_corner_is_no_part_of_the_shape() -> None:
    picture = scenes.render(scenes.Scene("circle", "yellow", "purple"))
    picture[5:12, 5:12] = 0.0
    assert judge(picture) == Verdict("circle", "yellow", "purple")


def test_the_judge_sees_no_shape_on_a_plain_picture() -> None:
    plain = np.full((128, 128, 3), COLOURS["blue"], dtype=np.float32) / 255.0
    assert judge(plain) == Verdict("", "", "blue")


def test_lab_knows_white_black_and_red() -> None:
    known = lab(np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert np.allclose(known, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]], atol=0.1)


def test_every_palette_colour_is_its_own_nearest() -> None:
    for name, rgb in COLOURS.items():
        assert nearest_colour(np.array(rgb) / 255.0) == name


def test_edited_scenes_stay_in_range_and_mostly_change() -> None:
    rng = np.random.default_rng(4)
    picture = scenes.render(Scene("cross", "green", "pink"))
    changed = 0
    for _ in range(40):
        target = scenes.edited(picture, rng)
        assert target.dtype == np.float32
        assert 0.0 <= target.min() <= target.max() <= 1.0
        changed += not np.allclose(target, picture, atol=0.01)
    assert changed > 25
