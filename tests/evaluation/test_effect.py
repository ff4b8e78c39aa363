"""Effect, leakage and projection: their laws, worked values and a second route to each."""

from __future__ import annotations

import numpy as np
import pytest

from copier.errors import BadInput
from copier.evaluation.comparison import compare, spread
from copier.evaluation.effect import (
    PairFigures,
    StripResult,
    WeightFigures,
    change_strip,
    effect_strip,
    target,
    to_pairs,
)
from copier.images.effects import brightness, grayscale, high_contrast

WEIGHTS = (-1.0, -0.5, 0.5, 1.0, 1.5)


@pytest.fixture
def x() -> np.ndarray:
    """Four dull pictures: no ideal of theirs is clipped."""
    return np.random.default_rng(4).uniform(0.35, 0.65, (4, 16, 16, 3)).astype(np.float32)


def ideal_lora(x, f=grayscale):
    return {weight: target(x, f(x), weight) for weight in WEIGHTS}


def across(x, f, size):
    """For every picture a change orthogonal to f(x) - x, ``size`` times as long."""
    rng = np.random.default_rng(9)
    out = []
    for picture in x:
        axis = (f(picture) - picture).astype(np.float64)
        noise = rng.standard_normal(axis.shape)
        noise -= np.vdot(noise, axis) / np.vdot(axis, axis) * axis
        out.append(noise * size * np.linalg.norm(axis) / np.linalg.norm(noise))
    return np.stack(out)


def test_the_ideal_is_clipped_and_at_weight_one_it_is_the_edit(x):
    assert np.allclose(target(x, grayscale(x), 1.0), grayscale(x), atol=1e-6)
    bright = target(x, brightness(x, amount=0.2), 4.0)
    assert bright.max() == 1.0 and np.allclose(bright, np.clip(x + 0.8, 0, 1), atol=1e-6)
    assert np.array_equal(target(x, grayscale(x), 0.0), x)


def test_the_ideal_picture_has_effect_one_and_no_leakage_at_every_weight(x):
    result = effect_strip(x, grayscale, ideal_lora(x), 0.02)
    assert [figures.weight for figures in result.weights] == list(WEIGHTS)
    for figures in result.weights:
        assert figures.effect == pytest.approx(1)
        assert figures.leakage == pytest.approx(0, abs=1e-5)
        assert (figures.counted, figures.left_out) == (4, 0)


def test_an_unchanged_picture_has_effect_leakage_and_projection_zero(x):
    for figures in effect_strip(x, grayscale, dict.fromkeys(WEIGHTS, x), 0.02).weights:
        assert (figures.effect, figures.leakage, figures.projection) == (0, 0, 0)


def test_a_flipped_sign_is_minus_one(x):
    flipped = {weight: ideal_lora(x)[-weight] for weight in (-1.0, -0.5, 0.5, 1.0) if weight}
    for figures in effect_strip(x, grayscale, flipped, 0.02).weights:
        assert figures.effect == pytest.approx(-1, abs=1e-4)
        assert figures.projection == pytest.approx(-figures.weight, abs=1e-4)


def test_the_projection_is_the_weight_where_nothing_is_clipped_and_rises(x):
    result = effect_strip(x, grayscale, ideal_lora(x), 0.02)
    assert [f.projection for f in result.weights] == pytest.approx(WEIGHTS, abs=1e-4)
    assert result.rises
    falling = effect_strip(x, grayscale, {w: ideal_lora(x)[-w] for w in (-1.0, -0.5, 0.5, 1.0)}, 0.02)
    assert not falling.rises


def test_a_change_across_is_leakage_of_its_length_and_costs_effect(x):
    y = (grayscale(x) + across(x, grayscale, 0.5)).astype(np.float32)
    (figures,) = effect_strip(x, grayscale, {1.0: y}, 0.02).weights
    assert figures.leakage == pytest.approx(0.5, abs=1e-4)
    assert figures.projection == pytest.approx(1, abs=1e-4)
    assert figures.effect == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("share", [-0.5, 0.3, 1.7])
def test_moving_along_the_edit_never_leaks(x, share):
    y = x + np.float32(share) * (grayscale(x) - x)
    (figures,) = effect_strip(x, grayscale, {1.0: y}, 0.02).weights
    assert figures.leakage == pytest.approx(0, abs=1e-5)
    assert figures.effect == pytest.approx(1 - abs(1 - share), abs=1e-4)
    assert figures.projection == pytest.approx(share, abs=1e-4)


def test_the_three_figures_of_a_pair_obey_pythagoras():
    """|y - t|^2 = |part across|^2 + |missing part along|^2: (1 - effect)^2 = leakage^2 + (1 - p)^2."""
    rng = np.random.default_rng(11)
    x, y = rng.random((2, 5, 8, 8, 3)).astype(np.float32)
    (figures,) = effect_strip(x, high_contrast, {1.0: y}, 0.0).weights
    for pair in figures.pairs:
        assert pair.leakage > 0.1
        assert (1 - pair.effect) ** 2 == pytest.approx(pair.leakage**2 + (1 - pair.projection) ** 2)


def test_means_are_over_the_pairs_and_every_pair_is_kept(x):
    y = grayscale(x)
    y[:2] = x[:2]
    (figures,) = effect_strip(x, grayscale, {1.0: y}, 0.02).weights
    assert [pair.effect for pair in figures.pairs] == pytest.approx([0, 0, 1, 1])
    assert figures.effect == pytest.approx(0.5)


def test_pairs_below_the_floor_are_left_out_and_counted(x):
    x = x.copy()
    x[0] = grayscale(x[0])
    x[1] = x[1] + 0.9 * (grayscale(x[1]) - x[1])
    result = effect_strip(x, grayscale, {1.0: np.clip(x + 0.1, 0, 1)}, 0.02)
    (figures,) = result.weights
    assert (figures.counted, figures.left_out) == (2, 2)
    assert [pair.effect is None for pair in figures.pairs] == [True, True, False, False]
    assert figures.pairs[0].change == pytest.approx(0.1, abs=1e-5) and figures.change is not None


def test_where_no_pair_is_left_there_is_no_mean():
    gray = np.full((2, 8, 8, 3), 0.5, dtype=np.float32)
    result = effect_strip(gray, grayscale, {1.0: gray + 0.1}, 0.0)
    (figures,) = result.weights
    assert figures.left_out == 2
    assert figures.effect is figures.leakage is figures.projection is figures.ceiling is None
    assert result.best is None and result.suggested is None and not result.rises


def test_at_weight_zero_there_is_a_projection_but_no_effect(x):
    y = {0.0: x, 1.0: grayscale(x)}
    zero, one = effect_strip(x, grayscale, y, 0.02).weights
    assert zero.effect is None and zero.left_out == 4 and zero.projection == 0
    assert one.effect == pytest.approx(1)


def test_the_ceiling_is_the_effect_of_the_ideal_seen_through_the_autoencoder(x):
    seen = {1.0: (grayscale(x) + across(x, grayscale, 0.3)).astype(np.float32)}
    result = effect_strip(x, grayscale, ideal_lora(x), 0.02, ideals=seen)
    assert result.at(1.0).ceiling == pytest.approx(0.7, abs=1e-4)
    assert result.at(0.5).ceiling is None
    assert result.at(0.7) is None


def strip(**effects: tuple[float, float]) -> StripResult:
    """A strip of given (effect, leakage) by weight; ``w05`` is weight 0.5."""
    figures = [
        WeightFigures(int(name[1:]) / 10, (PairFigures(1.0, 1.0, effect, leakage, effect, None),))
        for name, (effect, leakage) in effects.items()
    ]
    return StripResult(tuple(figures), 0.02)


def test_the_suggested_weights_surround_the_best_and_are_good_and_clean():
    good = strip(w05=(0.41, 0.2), w08=(0.45, 0.3), w10=(0.5, 0.4), w12=(0.47, 1.2), w15=(0.46, 0.9))
    assert good.best.weight == 1.0 and good.suggested == (0.5, 1.0)
    assert strip(w05=(0.1, 0.2), w10=(0.5, 0.4)).suggested == (1.0, 1.0)
    assert strip(w05=(-0.1, 0.2), w10=(-0.5, 0.4)).suggested is None
    assert strip(w10=(0.5, 1.4)).suggested is None


def test_negative_weights_are_never_the_best():
    both = StripResult(
        tuple(
            WeightFigures(weight, (PairFigures(1, 1, effect, 0.1, effect, None),))
            for weight, effect in ((-1.0, 0.9), (1.0, 0.2))
        ),
        0.02,
    )
    assert both.best.weight == 1.0 and both.suggested == (1.0, 1.0)


def test_stacks_of_other_shapes_and_empty_ones_are_refused(x):
    with pytest.raises(BadInput, match=r"weight 1 .* 3 pictures, but 4 of the base"):
        effect_strip(x, grayscale, {1.0: x[:3]}, 0.02)
    with pytest.raises(BadInput, match=r"weight 1 .*\(8, 16, 3\).*\(16, 16, 3\)"):
        change_strip(x, {1.0: x[:, :8]})
    with pytest.raises(BadInput, match="weight 1 "):
        effect_strip(x, grayscale, {1.0: x}, 0.02, ideals={1.0: x[:1]})
    with pytest.raises(BadInput, match="at least one"):
        effect_strip(x, grayscale, {}, 0.02)
    with pytest.raises(BadInput, match="at least one"):
        change_strip(x[:0], {1.0: x[:0]})


def test_nothing_is_changed_by_measuring(x):
    y = {1.0: grayscale(x)}
    before = x.copy(), y[1.0].copy()
    effect_strip(x, grayscale, y, 0.02)
    assert np.array_equal(x, before[0]) and np.array_equal(y[1.0], before[1])


def test_a_hand_edit_is_measured_on_the_original_itself():
    rng = np.random.default_rng(6)
    a, b = rng.random((2, 16, 16, 3)).astype(np.float32)
    copies = np.clip(a + 0.01 * rng.standard_normal((3, 16, 16, 3)), 0, 1).astype(np.float32)
    (figures,) = effect_strip(copies, to_pairs(a[None], b[None]), {1.0: np.stack([b, b, b])}, 0.02).weights
    assert figures.effect == pytest.approx(1) and figures.counted == 3


def test_of_several_pairs_a_hand_edit_is_measured_by_the_one_that_is_drawn():
    a, b = np.random.default_rng(7).random((2, 3, 16, 16, 3)).astype(np.float32)
    edit = to_pairs(a, b)
    for one, changed in zip(a, b, strict=True):
        assert np.array_equal(edit(one + 0.01), changed)


def test_consistency_is_the_mean_cosine_over_all_pairs_of_pictures(x):
    rng = np.random.default_rng(8)
    y = np.clip(x + 0.1 * rng.standard_normal(x.shape) + 0.05, 0, 1).astype(np.float32)
    (figures,) = change_strip(x, {1.0: y}).weights
    change = (y - x).astype(np.float64)
    unit = [one / np.linalg.norm(one) for one in change]
    pairs = [np.vdot(unit[i], unit[j]) for i in range(4) for j in range(i)]
    assert figures.consistency == pytest.approx(np.mean(pairs), abs=1e-6)
    assert 0.1 < figures.consistency < 0.4
    assert figures.magnitude == pytest.approx(np.sqrt((change**2).mean(axis=(1, 2, 3))).mean())


def test_the_same_change_everywhere_is_fully_consistent_and_none_is_not_defined(x):
    result = change_strip(x, {0.0: x, 1.0: x + np.float32(0.1)})
    none, same = result.weights
    assert none.magnitude == 0 and none.consistency is None
    assert same.magnitude == pytest.approx(0.1, abs=1e-6) and same.consistency == pytest.approx(1)
    assert result.at(1.0) is same and result.at(0.5) is None


def test_comparison_with_the_control_and_spread_over_seeds(x):
    ours = effect_strip(x, grayscale, ideal_lora(x), 0.02)
    half = {1.0: (grayscale(x) + across(x, grayscale, 0.5)).astype(np.float32)}
    control = effect_strip(x, grayscale, half, 0.02)
    found = compare(ours, control)
    assert found.effect_gain == pytest.approx(0.5, abs=1e-4)
    assert found.leakage_ratio == pytest.approx(0, abs=1e-4)
    assert compare(ours, control, weight=0.5).effect_gain is None
    over = spread([0.5, 0.25, 0.75])
    assert (over.mean, over.low, over.high, over.count) == (0.5, 0.25, 0.75, 3)
    with pytest.raises(BadInput, match="no values"):
        spread([])


def test_pictures_of_several_sizes_are_measured_each_at_its_own(x):
    """As if each size were measured alone; consistency is the mean over the pairs of equal size."""
    rng = np.random.default_rng(11)
    wide = rng.uniform(0.35, 0.65, (3, 8, 24, 3)).astype(np.float32)
    mixed = [x[0], wide[0], x[1], wide[1], wide[2], x[2], x[3]]
    apart, places = (x, wide), ((0, 2, 5, 6), (1, 3, 4))
    noisy = [np.clip(one + 0.1 * rng.standard_normal(one.shape) + 0.05, 0, 1) for one in mixed]
    y = [one.astype(np.float32) for one in noisy]
    (figures,) = effect_strip(mixed, grayscale, {1.0: y}, 0.0).weights
    (changes,) = change_strip(mixed, {1.0: y}).weights
    cosines, pairs = 0.0, 0
    for stack, where in zip(apart, places, strict=True):
        mine = np.stack([y[place] for place in where])
        (alone,) = effect_strip(stack, grayscale, {1.0: mine}, 0.0).weights
        assert [figures.pairs[place] for place in where] == list(alone.pairs)
        (change,) = change_strip(stack, {1.0: mine}).weights
        assert [changes.magnitudes[place] for place in where] == list(change.magnitudes)
        cosines += change.consistency * len(where) * (len(where) - 1)
        pairs += len(where) * (len(where) - 1)
    assert changes.consistency == pytest.approx(cosines / pairs)
    one_of_each = change_strip([x[0], wide[0]], {1.0: [x[0] + np.float32(0.1), wide[0] + np.float32(0.1)]})
    assert one_of_each.weights[0].consistency is None


def test_a_hand_edit_of_several_sizes_is_measured_by_the_pair_of_the_pictures_size():
    rng = np.random.default_rng(12)
    a = [rng.random(shape).astype(np.float32) for shape in ((16, 16, 3), (8, 32, 3))]
    b = [1 - one for one in a]
    edit = to_pairs(a, b)
    for one, changed in zip(a, b, strict=True):
        assert np.array_equal(edit(one), changed)
