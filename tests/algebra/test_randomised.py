"""The randomised SVD against a dense one in float64: its errors, its certificates, and their refusal."""

from __future__ import annotations

import math

import pytest
import torch

from copier.algebra import randomised
from copier.algebra.randomised import GOAL, RESOLUTION, approximate, squared_norm
from copier.algebra.truncation import RankRule
from copier.errors import BadInput

RANK = 8
SHAPES = {"square": (320, 320), "tall": (640, 256), "wide": (256, 640)}
SPECTRA = {
    # energies of signal and noise together, as part of the signal's
    "falling": (0.85 ** torch.arange(32), 0.0),
    "falling, in noise": (0.85 ** torch.arange(32), 0.01),
    "power law": (1.0 / torch.arange(1, 257), 0.0),
    "slow power law": (torch.arange(1, 257) ** -0.4, 0.0),
    "as many as the rank, in noise": (torch.ones(RANK), 0.5),
    "fewer than the rank, in noise": (torch.tensor([1.0, 0.7, 0.5]), 0.05),
    "rank 1, in noise": (torch.ones(1), 0.02),
    "rank 1": (torch.ones(1), 0.0),
    "noise alone": (torch.zeros(1), 1.0),
    "flat": (torch.ones(256), 0.0),
}
FALLING = ("falling", "falling, in noise", "as many as the rank, in noise", "rank 1")


def matrix(shape, spectrum):
    """Known singular values in random directions, plus normal noise of the given relative norm."""
    values, noise = SPECTRA[spectrum] if isinstance(spectrum, str) else spectrum
    rows, columns = shape
    left = torch.linalg.qr(torch.randn(rows, len(values))).Q
    right = torch.linalg.qr(torch.randn(columns, len(values))).Q
    signal = (left * values) @ right.T
    scale = float(values.norm()) or 1.0
    return signal + noise * scale * torch.randn(rows, columns) / math.sqrt(rows * columns)


def product(found):
    return (found.left.double() * found.values.double()) @ found.right.double()


def check(found, change, rank):
    """Two-sided: near the optimum by dense SVD, and what it claims of itself holds."""
    values = torch.linalg.svdvals(change.double())
    norm, best = float(values.norm()), float(values[rank:].norm())
    error = float((change.double() - product(found)).norm())
    floor = RESOLUTION * norm
    assert found.values.shape == (rank,)
    assert found.norm == pytest.approx(norm, rel=1e-5)
    assert abs(found.lost - error) <= max(1e-3 * error, floor)
    assert error <= max(1.01 * best, floor)
    assert 1.0 <= found.bound <= GOAL
    assert found.lost / found.bound <= max(best * (1 + 1e-3), floor)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_error_is_at_most_1_01_times_that_of_a_dense_svd_and_its_bound_is_true(shape, spectrum):
    change = matrix(shape, spectrum)
    check(approximate(change, RankRule(rank=RANK), seed=1), change, RANK)


@pytest.mark.parametrize("spectrum", FALLING)
def test_a_falling_spectrum_is_certified_from_the_first_block(spectrum, monkeypatch):
    blocks = []
    iterate = randomised._iterate
    monkeypatch.setattr(randomised, "_exact", lambda *_: pytest.fail("took the exact route"))
    monkeypatch.setattr(randomised, "_iterate", lambda *given: blocks.append(0) or iterate(*given))
    change = matrix((640, 512), spectrum)
    check(approximate(change, RankRule(rank=RANK), seed=1), change, RANK)
    assert len(blocks) == 1


@pytest.mark.parametrize("spectrum", ["fewer than the rank, in noise", "noise alone", "slow power law"])
def test_a_flat_spectrum_is_certified_without_the_exact_route(spectrum, monkeypatch):
    monkeypatch.setattr(randomised, "_exact", lambda *_: pytest.fail("took the exact route"))
    change = matrix((768, 640), spectrum)
    check(approximate(change, RankRule(rank=RANK), seed=1), change, RANK)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (1, 7), (7, 1), (30, 30)], ids=str)
def test_small_matrices_and_ranks_beyond_a_side_are_exact(shape):
    change = torch.randn(shape)
    found = approximate(change, RankRule(rank=RANK), seed=1)
    check(found, change, min(RANK, *shape))
    assert found.bound == 1.0
    if min(shape) <= RANK:
        assert float((product(found) - change).norm()) < 1e-6 * found.norm


@pytest.mark.parametrize("size", [12, 200])
def test_zero_stays_zero(size):
    found = approximate(torch.zeros(size, size), RankRule(rank=3), seed=1)
    assert (found.norm, found.lost, found.bound) == (0.0, 0.0, 1.0)
    assert not product(found).any()


def test_left_columns_and_right_rows_are_orthonormal():
    for size in (40, 320):
        found = approximate(matrix((size, size), "falling, in noise"), RankRule(rank=RANK), seed=1)
        assert torch.allclose(found.left.T @ found.left, torch.eye(RANK), atol=1e-5)
        assert torch.allclose(found.right @ found.right.T, torch.eye(RANK), atol=1e-5)


@pytest.mark.parametrize(
    "rule",
    [
        RankRule(sv_ratio=20.0),
        RankRule(sv_fro=0.99),
        RankRule(sv_fro=0.999, max_rank=5),
        RankRule(sv_cumulative=0.8),
        RankRule(sv_cumulative=0.9, max_rank=4),
        RankRule(sv_ratio=1e9),
        RankRule(sv_fro=1.0),
    ],
    ids=str,
)
def test_dynamic_rules_choose_the_rank_that_the_whole_spectrum_gives(rule):
    change = matrix((320, 200), (0.9 ** torch.arange(64), 0.001))
    rank = rule.choose(torch.linalg.svdvals(change.double()))
    check(approximate(change, rule, seed=1), change, rank)


def test_a_rule_that_the_block_decides_needs_no_exact_route(monkeypatch):
    monkeypatch.setattr(randomised, "_exact", lambda *_: pytest.fail("took the exact route"))
    change = matrix((512, 400), (0.9 ** torch.arange(64), 0.001))
    for rule in (RankRule(sv_ratio=20.0), RankRule(sv_fro=0.95), RankRule(sv_cumulative=0.9, max_rank=4)):
        approximate(change, rule, seed=1)


def test_a_block_that_has_missed_the_strongest_direction_gets_no_certificate():
    values = torch.cat([torch.tensor([3.0]), 0.8 ** torch.arange(30)])
    left, right = (torch.linalg.qr(torch.randn(size, len(values))).Q for size in (640, 512))
    change = (left * values) @ right.T
    block = torch.randn(512, 24)

    def certified(start):
        ritz = randomised._iterate(change, start)
        draw = torch.Generator().manual_seed(3)
        return randomised._certified(change, ritz, RANK, squared_norm(change), draw)

    assert certified(block) is not None
    assert certified(block - right[:, :1] @ (right[:, :1].T @ block)) is None


def test_what_is_learnt_of_the_rest_is_true_and_of_use():
    """Against the eigenvalues themselves, for many draws: never below, and soon within a factor of 2."""
    for spectrum in (torch.ones(300), 1.0 / torch.arange(1, 301), 0.5 ** torch.arange(300.0)):
        energies = spectrum.double()
        for seed in range(20):
            tail = randomised._Tail(trace=float(energies.sum()))
            probe = torch.randn(300, 32, generator=torch.Generator().manual_seed(seed))
            for number in range(1, 7):
                probe = tail.learn(number, energies.sqrt().float()[:, None] * probe)
                assert tail.largest >= float(energies[0])
                assert all(tail.sum_of(j) >= float(energies[:j].sum()) * (1 - 1e-9) for j in (0, 1, 5, 300))
            assert tail.largest <= 3.0 * float(energies[0])
            assert tail.sum_of(5) <= 3.0 * float(energies[:5].sum())


def test_the_chi_squared_quantile_is_that_of_the_tables():
    assert randomised._chi_squared_quantile(32, 0.01) == pytest.approx(16.362, abs=1e-3)
    assert 0.0 < randomised._chi_squared_quantile(32, 1e-8) < 6.0


def test_the_seed_decides_every_number():
    change = matrix((320, 320), "fewer than the rank, in noise")
    one, two, other = (approximate(change, RankRule(rank=RANK), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.left, two.left) and torch.equal(one.right, two.right)
    assert not torch.equal(one.left, other.left)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_values_that_have_no_square_are_refused(value):
    change = torch.ones(10, 10)
    change[3, 4] = value
    with pytest.raises(BadInput, match="not finite"):
        approximate(change, RankRule(rank=2), seed=1)
