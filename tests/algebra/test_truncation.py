"""Truncation against the best approximation by a dense SVD in float64, also where the factors are nasty."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copier.algebra import approximation
from copier.algebra.arithmetic import combine
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.algebra.truncation import RankRule, resize, truncate, truncate_sum
from copier.errors import BadInput

RANK, KEPT = 24, 6


def factors(shape=(160, 96), rank=RANK, decay=0.9):
    """up and down with singular values that fall about as decay**i."""
    out, *rest = shape
    up = torch.randn(out, rank) / math.sqrt(out) * decay ** torch.arange(rank)
    down = torch.randn(rank, *rest) / math.sqrt(math.prod(rest))
    return (up[:, :, None, None] if rest[1:] else up), down


def delta(up, down, scale=1.0):
    return LowRankDelta(up, down, alpha=scale * up.shape[1])


def nearly_cancelling(change):
    up, down = factors()
    other_up, other_down = factors()
    return [(delta(up + change * other_up, down + change * other_down), 1.0), (delta(up, down), -1.0)]


def cases():
    """Name -> (the terms of a sum, how many ranks are kept)."""
    torch.manual_seed(1)
    up, down = factors()
    more = factors()
    half = torch.arange(RANK) < KEPT
    columns = 10.0 ** torch.linspace(-6, 6, RANK)
    wide = factors((24, 40))
    return {
        "decaying": ([(delta(up, down), 1.0)], KEPT),
        "flat": ([(delta(*factors(decay=1.0)), 1.0)], KEPT),
        "steep": ([(delta(*factors(decay=0.4)), 1.0)], KEPT),
        "very steep, next to nothing lost": ([(delta(*factors(decay=0.2)), 1.0)], 12),
        "all ranks kept": ([(delta(up, down), 1.0)], RANK),
        "more ranks asked than there are": ([(delta(up, down), 1.0)], RANK + 9),
        "a difference": ([(delta(up, down, 0.5), 0.7), (delta(*more, 2.0), -1.3)], KEPT),
        "mixed ranks": ([(delta(*factors(rank=5)), 1.0), (delta(*factors(rank=17)), -1.0)], KEPT),
        "three terms": ([(delta(*factors()), ratio) for ratio in (1.0, -0.5, 0.25)], KEPT),
        "ten percent apart": (nearly_cancelling(0.1), KEPT),
        "one percent apart": (nearly_cancelling(0.01), KEPT),
        "a thousandth apart": (nearly_cancelling(0.001), KEPT),
        "a millionth apart": (nearly_cancelling(1e-6), KEPT),
        "one percent stronger": ([(delta(up, down), 1.01), (delta(up, down), -1.0)], KEPT),
        "one down": ([(delta(up, down), 1.0), (delta(more[0], down), -1.0)], KEPT),
        "one up": ([(delta(up, down), 1.0), (delta(up, more[1]), -1.0)], KEPT),
        "contained": (
            [(delta(torch.cat([up, more[0]], 1), torch.cat([down, more[1]])), 1.0), (delta(up, down), -1.0)],
            KEPT,
        ),
        "badly scaled": ([(delta(up * 1e4, down * 1e-4), 1.0)], KEPT),
        "badly scaled the other way": ([(delta(up * 1e-15, down * 1e15), 1.0)], KEPT),
        "tiny": ([(delta(up * 1e-18, down * 1e-12), 1.0)], KEPT),
        "scaled column by column": ([(delta(up * columns, down / columns[:, None]), 1.0)], KEPT),
        "down of lower rank": ([(delta(up, down * half[:, None]), 1.0)], KEPT),
        "up of lower rank": ([(delta(up * half, down), 1.0)], KEPT),
        "repeated rows": ([(delta(up, down[torch.arange(RANK) // 4]), 1.0)], 4),
        "rank of a whole side": ([(delta(*wide), 1.0)], KEPT),
        "rank beyond a side": ([(delta(*wide), 1.0), (delta(*factors((24, 40))), 1.0)], KEPT),
        "a column": ([(delta(*factors((160, 1), rank=2)), 1.0)], 1),
        "rank one": ([(delta(*factors(rank=1)), 1.0)], 1),
        "convolution": (
            [(delta(*factors((48, 20, 3, 3))), 1.0), (delta(*factors((48, 20, 3, 3))), -1.0)],
            KEPT,
        ),
        "pointwise": ([(delta(*factors((48, 40, 1, 1))), 1.0)], KEPT),
    }


CASES = cases()


def dense(terms):
    """The second route: the definition in float64."""
    return sum(
        ratio * change.scale * change.up.double().flatten(1) @ change.down.double().flatten(1)
        for change, ratio in terms
    )


def truncated(terms, rule):
    """The truncated sum as a dense matrix, its ranks, and its residual."""
    loras = [(LoraWeights({"m": change}), ratio) for change, ratio in terms]
    result = truncate_sum(loras, lambda *_: rule)
    change = result.lora["m"]
    assert change.shape[2:] == terms[0][0].shape[2:]
    assert change.up.dtype == change.down.dtype == torch.float32
    return dense([(change, 1.0)]), change.rank, result.residuals.modules["m"]


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_the_smallest_possible_and_reported(name):
    check_best(*CASES[name])


def check_best(terms, rank):
    whole = dense(terms)
    values = torch.linalg.svdvals(whole)
    norm, best = float(values.norm()), float(values[rank:].norm())
    result, kept, residual = truncated(terms, RankRule(rank=rank))
    error = float((whole - result).norm())
    assert kept == min(rank, *whole.shape, sum(change.rank for change, _ in terms))
    assert error <= best * (1 + 1e-5) + (1e-5 * norm if best < 1e-3 * norm else 1e-9 * norm)
    assert residual == pytest.approx(best / norm if norm else 0.0, abs=1e-5)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(30, 12), (5, 40), (9, 1), (16, 16, 1, 1), (8, 4, 3, 3)]),
    st.lists(
        st.tuples(
            st.integers(1, 10),
            st.sampled_from([1.0, -2.0, 0.0, 0.3]),
            st.sampled_from([1.0, -1.0, 0.7]),
            st.sampled_from([1.0, 0.7, 0.2]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 12),
)
def test_no_sum_has_a_better_approximation(seed, shape, kinds, rank):
    """Of any ranks, scales, signs and spectra, also where the scale is 0 or the rank that of a side."""
    torch.manual_seed(seed)
    check_best([(delta(*factors(shape, n, decay), scale), ratio) for n, scale, ratio, decay in kinds], rank)


@pytest.mark.parametrize(
    "rule",
    [
        RankRule(sv_fro=0.9),
        RankRule(sv_fro=0.9999),
        RankRule(sv_ratio=3.0),
        RankRule(sv_ratio=500.0),
        RankRule(sv_cumulative=0.5),
        RankRule(sv_cumulative=0.999),
        RankRule(sv_cumulative=0.999, max_rank=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["decaying", "steep", "a difference", "one percent apart", "contained"])
def test_the_dynamic_rules_choose_as_by_the_dense_singular_values(name, rule):
    terms, _ = CASES[name]
    count = sum(change.rank for change, _ in terms)
    values = torch.linalg.svdvals(dense(terms))[:count]
    assert truncated(terms, rule)[1] == rule.choose(values)


def test_what_cancels_exactly_is_zero_and_nothing_was_lost():
    up, down = factors()
    for kept in (1, RANK):
        result, _, residual = truncated(
            [(delta(up, down), 0.7), (delta(up, down), -0.7)], RankRule(rank=kept)
        )
        assert float(result.norm()) == 0.0
        assert residual == 0.0


@pytest.mark.parametrize("up", [0.0, 1e-30])
def test_a_change_beside_zeros_keeps_only_itself(up):
    """Modules without a change, or with next to none, among others of the same shape."""
    plain = delta(*factors())
    silent = delta(torch.full((160, RANK), up), torch.randn(RANK, 96))
    lora = LoraWeights({"silent": silent, "m": plain, "zero": delta(torch.zeros(160, 2), torch.zeros(2, 96))})
    result = resize(lora, RankRule(rank=KEPT))
    alone = truncate(plain, KEPT)
    assert result.residuals.modules["silent"] == pytest.approx(0.0, abs=1e-5)
    assert result.residuals.modules["zero"] == 0.0
    assert result.residuals.total == pytest.approx(alone.residual, abs=1e-6)
    assert float((dense([(result.lora["silent"], 1.0)]) - dense([(silent, 1.0)])).norm()) <= 1e-5 * up * 1e3
    assert float((dense([(result.lora["m"], 1.0)]) - dense([(alone.delta, 1.0)])).norm()) < 1e-6


def test_the_result_is_repeatable_and_the_other_modules_change_nothing_but_rounding():
    lora = LoraWeights({f"m{number}": delta(*factors()) for number in range(40)})
    first, second = (resize(lora, RankRule(rank=KEPT), threads=threads).lora for threads in (1, 3))
    for name, change in lora.items():
        assert torch.equal(first[name].up, second[name].up)
        assert torch.equal(first[name].down, second[name].down)
        alone = dense([(truncate(change, KEPT).delta, 1.0)])
        assert float((alone - dense([(first[name], 1.0)])).norm() / alone.norm()) < 1e-6


def test_truncating_a_sum_is_truncating_its_exact_combination():
    terms = [
        (LoraWeights({"a": delta(*factors()), "b": delta(*factors())}), 0.5),
        (LoraWeights({"b": delta(*factors(rank=7), 3.0), "c": delta(*factors())}), -2.0),
    ]
    direct = truncate_sum(terms, lambda *_: RankRule(rank=KEPT))
    by_way = resize(combine(terms), RankRule(rank=KEPT))
    assert list(direct.lora) == list(by_way.lora) == ["a", "b", "c"]
    for name, change in direct.lora.items():
        other = dense([(by_way.lora[name], 1.0)])
        assert float((dense([(change, 1.0)]) - other).norm() / other.norm()) < 1e-5
        assert direct.residuals.modules[name] == pytest.approx(by_way.residuals.modules[name], abs=1e-6)


@pytest.fixture
def routes(monkeypatch):
    """The last route that the truncation of each case took: float32, float64 or "qr"."""
    used = []
    by_gram, by_qr = approximation._by_gram, approximation._by_qr
    monkeypatch.setattr(
        approximation, "_by_gram", lambda sums, dtype: used.append(dtype) or by_gram(sums, dtype)
    )
    monkeypatch.setattr(approximation, "_by_qr", lambda one: used.append("qr") or by_qr(one))

    def taken(*names):
        for name in names:
            terms, rank = CASES[name]
            truncated(terms, RankRule(rank=rank))
            yield used[-1]

    return taken


def test_float32_is_enough_for_a_usual_lora_and_not_where_it_cancels(routes):
    """Without this the slow routes would hide that the check refuses too much."""
    usual = routes("decaying", "flat", "a difference", "badly scaled", "convolution")
    assert set(usual) == {torch.float32}
    assert list(routes("one percent apart", "a millionth apart", "contained")) == [torch.float64, "qr", "qr"]


def test_a_host_that_allows_tf32_gets_float64(routes, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert list(routes("decaying")) == [torch.float64]


@pytest.mark.parametrize(("up", "down"), [(1e30, 1e30), (3e38, 3e38), (math.inf, 1.0), (math.nan, 1.0)])
def test_weights_without_a_finite_product_are_refused(up, down):
    with pytest.raises(BadInput, match="overflows"):
        truncate(delta(torch.full((40, 4), up), torch.full((4, 40), down)), 1)


def test_a_factor_beyond_float32_is_refused_only_where_the_sum_is_beyond_it_too():
    ones = torch.ones(40, 4), torch.ones(4, 40)
    with pytest.raises(BadInput, match="overflows"):
        truncate(delta(*ones, scale=1e39), 1)
    small = truncate(delta(1e-30 * ones[0], ones[1], scale=1e39), 1)
    assert small.norm == pytest.approx(1.6e11, rel=1e-5)
    assert small.residual == pytest.approx(0.0, abs=1e-6)
