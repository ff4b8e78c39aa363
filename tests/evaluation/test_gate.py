"""The copier gate and the closeness to B: laws, worked values, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from copier.errors import BadInput
from copier.evaluation.gate import closeness, gate
from copier.recipe import GateStage

SPEC = GateStage(name="gate", lora="copier", prompts=("a cat",), median_limit=0.2, single_limit=0.35)


@pytest.fixture
def ideal() -> np.ndarray:
    return np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)


@pytest.fixture
def base() -> np.ndarray:
    return np.random.default_rng(1).random((16, 16, 16, 3)).astype(np.float32)


def test_a_perfect_copier_has_the_gate_zero_and_the_base_itself_one(ideal, base):
    perfect = gate(np.repeat(ideal[None], 16, axis=0), base, ideal[None])
    assert perfect.distances == (0,) * 16 and perfect.median == 0 and perfect.passed(SPEC)
    none = gate(base, base, ideal[None])
    assert none.median == pytest.approx(1) and none.distances == none.base and not none.passed(SPEC)
    assert perfect.enough


def test_a_copier_part_of_the_way_has_that_part_left(ideal, base):
    result = gate(ideal + 0.25 * (base - ideal), base, ideal[None])
    assert result.median == pytest.approx(0.25, rel=1e-5)
    assert result.distances == pytest.approx([0.25 * d for d in result.base], rel=1e-5)


def test_distances_are_root_mean_squares_over_the_median_of_the_base(ideal):
    base = np.stack([ideal + d for d in (0.1, 0.2, 0.6)])
    result = gate(np.stack([ideal + d for d in (0.02, 0.05, 0.1)]), base, ideal[None])
    assert result.base_median == pytest.approx(0.2, rel=1e-5)
    assert result.distances == pytest.approx((0.1, 0.25, 0.5), rel=1e-4)
    assert (result.within(0.3), result.within(0.05)) == (2, 0)
    assert not result.enough


@pytest.mark.parametrize(
    ("far", "level", "passes"),
    [(2, 0.1, True), (3, 0.1, False), (0, 0.19, True), (0, 0.21, False)],
)
def test_the_gate_passes_by_its_median_and_by_its_share_of_single_pictures(far, level, passes, ideal):
    base = np.stack([ideal + 0.5] * 16)
    copier = np.stack([ideal + 0.5 * level] * (16 - far) + [ideal + 0.2] * far)
    assert gate(copier, base, ideal[None]).passed(SPEC) is passes


def test_a_gate_without_pictures_or_without_a_yardstick_is_refused(ideal, base):
    with pytest.raises(BadInput, match="0 pictures"):
        gate(base[:0], base[:0], ideal[None])
    with pytest.raises(BadInput, match="3 pictures of the copier and 16 of the base"):
        gate(base[:3], base, ideal[None])
    with pytest.raises(BadInput, match="by itself"):
        gate(base, np.repeat(ideal[None], 16, axis=0), ideal[None])
    with pytest.raises(BadInput, match="same size"):
        gate(base, base, ideal[None, :8])


def test_closeness_is_zero_at_b_and_about_one_at_a(ideal):
    a, b = ideal[None], 1 - ideal[None]
    assert closeness(np.repeat(b, 2, axis=0), b, a, b).median == 0
    assert closeness(np.repeat(a, 3, axis=0), b, a, b).distances == pytest.approx((1, 1, 1))
    assert closeness(b + 0.3 * (a - b), b, a, b).median == pytest.approx(0.3, rel=1e-5)


def test_closeness_measures_to_the_ideal_but_by_the_pair_itself(ideal):
    a, b = ideal[None], ideal[None] + 0.2
    result = closeness(b + 0.01, b + 0.03, a, b)
    assert result.pair_distance == pytest.approx(0.2, rel=1e-5)
    assert result.median == pytest.approx(0.1, rel=1e-3)


def test_closeness_to_an_identical_picture_is_refused(ideal):
    with pytest.raises(BadInput, match="identical"):
        closeness(ideal[None], ideal[None], ideal[None], ideal[None])
    with pytest.raises(BadInput, match="no pictures"):
        closeness(ideal[None][:0], ideal[None], ideal[None], 1 - ideal[None])


def test_of_several_originals_the_nearest_one_counts(ideal, base):
    originals = np.stack([ideal, 1 - ideal])
    drawn = np.stack([ideal + 0.01, 1 - ideal + 0.01] * 8)
    result = gate(drawn, base, originals)
    nearest = [min(np.sqrt(np.mean((x - one) ** 2)) for one in originals) for x in base]
    assert result.base_median == pytest.approx(np.median(nearest), rel=1e-5)
    assert result.distances == pytest.approx([0.01 / result.base_median] * 16, rel=1e-3)


def test_of_several_pairs_the_nearest_one_counts_by_its_own_distance(ideal):
    a, b = np.stack([ideal, 1 - ideal]), np.stack([ideal + 0.2, 1.5 - ideal])
    result = closeness(np.stack([b[0] + 0.02, b[1] + 0.1]), b, a, b)
    assert result.distances == pytest.approx((0.1, 0.2), rel=1e-3)
    assert result.pair_distance == pytest.approx(0.35, rel=1e-3)


def test_of_several_sizes_each_picture_is_compared_at_its_own(ideal, base):
    wide = np.random.default_rng(2).random((8, 32, 3)).astype(np.float32)
    others = np.random.default_rng(3).random((8, 8, 32, 3)).astype(np.float32)
    copies = [*(ideal + 0.01 * n for n in range(8)), *(wide - 0.02 * n for n in range(8))]
    alone = [*base[:8], *others]
    result = gate(copies, alone, [wide, ideal])
    apart = [np.sqrt(np.mean((one - (ideal if i < 8 else wide)) ** 2)) for i, one in enumerate(alone)]
    assert result.base_median == pytest.approx(np.median(apart), rel=1e-5)
    far = [0.01 * n for n in range(8)] + [0.02 * n for n in range(8)]
    assert result.distances == pytest.approx([one / np.median(apart) for one in far], abs=1e-5)
    with pytest.raises(BadInput, match=r"16 x 16 px was drawn.*are 32 x 8 px"):
        gate(copies, alone, [wide])


def test_closeness_of_pairs_of_several_sizes_is_by_the_pair_of_the_pictures_size(ideal):
    wide = ideal.reshape(8, 32, 3)
    a, b = [ideal, wide], [ideal + 0.2, wide + 0.5]
    result = closeness([b[1] + 0.1, b[0] + 0.1], b, a, b)
    assert result.distances == pytest.approx((0.2, 0.5), rel=1e-3)
    assert result.pair_distance == pytest.approx(0.35, rel=1e-3)
