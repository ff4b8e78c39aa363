"""Distances and directions, against values worked out by hand and against numpy's own norms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from copier.errors import BadInput
from copier.images import metrics


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.random((2, 8, 8, 3)).astype(np.float32)[0], rng.random((8, 8, 3)).astype(np.float32)


def test_black_and_white_are_one_apart_and_one_channel_counts_a_third():
    black, white, red = np.zeros((4, 4, 3)), np.ones((4, 4, 3)), np.zeros((4, 4, 3))
    red[..., 0] = 1
    assert metrics.distance(black, white) == 1
    assert metrics.distance(black, red) == pytest.approx(math.sqrt(1 / 3))


def test_distance_is_a_metric(pair):
    a, b = pair
    middle = (a + b) / 2
    assert metrics.distance(a, a) == 0
    assert metrics.distance(a, b) == metrics.distance(b, a) > 0
    assert metrics.distance(a, b) == pytest.approx(2 * metrics.distance(a, middle), rel=1e-5)


def test_psnr_of_a_known_error():
    black = np.zeros((4, 4, 3), dtype=np.float32)
    assert metrics.psnr(black, black + 0.1) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr(black, black) == math.inf


def test_a_change_is_its_part_along_an_axis_and_its_part_across(pair):
    change, axis = pair[0] - 0.5, pair[1].astype(np.float64)
    along, across = metrics.projection(change, axis), metrics.orthogonal(change, axis)
    assert np.allclose(along * axis + across, change)
    assert np.vdot(across, axis) == pytest.approx(0, abs=1e-9)
    assert np.linalg.norm(change) ** 2 == pytest.approx(
        (along * np.linalg.norm(axis)) ** 2 + np.linalg.norm(across) ** 2
    )
    assert metrics.projection(-2 * axis, axis) == pytest.approx(-2)


def test_sizes_are_never_broadcast_and_nothing_has_no_direction():
    one = np.ones((4, 4, 3))
    with pytest.raises(BadInput, match=r"\(4, 4, 3\) and \(1, 4, 3\)"):
        metrics.distance(one, one[:1])
    with pytest.raises(BadInput, match="equal"):
        metrics.projection(one, 0 * one)
