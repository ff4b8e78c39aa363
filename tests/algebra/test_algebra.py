"""The laws of LoRA arithmetic, each against dense matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch

from copier.algebra.arithmetic import add, combine, scaled, subtract
from copier.algebra.delta import LowRankDelta, cast
from copier.algebra.lora import LoraWeights
from copier.algebra.merging import Change, merged
from copier.algebra.parts import delta_from_parts
from copier.algebra.truncation import RankRule, resize, truncate
from copier.errors import BadInput

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Relative Frobenius error after a trip through a dtype: about two roundings of each factor."""

SHAPES = {
    "lora_unet_linear": (24, 16),
    "lora_unet_wide": (10, 40),
    "lora_unet_pointwise": (12, 20, 1, 1),
    "lora_unet_conv": (14, 6, 3, 3),
}


def delta(shape, rank, *, alpha=None, decay=1.0):
    """A random delta; ``decay`` below 1 makes its singular values fall."""
    out, *rest = shape
    weights = torch.tensor([decay**i for i in range(rank)])
    up = torch.randn(out, rank) * weights
    down = torch.randn(rank, *rest)
    if len(shape) == 4:
        up = up[:, :, None, None]
    return LowRankDelta(up=up, down=down, alpha=float(rank if alpha is None else alpha))


def lora(rank, *, alpha=None, decay=1.0, leave_out=()):
    return LoraWeights(
        {
            name: delta(shape, rank, alpha=alpha, decay=decay)
            for name, shape in SHAPES.items()
            if name not in leave_out
        }
    )


def dense64(change):
    """The second route: nothing but the definition, in float64."""
    up, down = change.up.double().flatten(1), change.down.double().flatten(1)
    return (change.alpha / up.shape[1] * up @ down).reshape(change.shape)


def read_back(tensors):
    """The LoRA of kohya's keys."""
    parts = {"lora_up.weight": "up", "lora_down.weight": "down", "alpha": "alpha"}
    modules = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        modules.setdefault(name, {})[parts[part]] = tensor
    return LoraWeights({name: delta_from_parts(module) for name, module in modules.items()})


def error(left, right):
    scale = right.double().norm()
    return float((left.double() - right.double()).norm() / (scale if scale > 0 else 1.0))


def dense_sum(terms):
    names = {name for weights, _ in terms for name in weights}
    return {
        name: sum(ratio * dense64(weights[name]) for weights, ratio in terms if name in weights)
        for name in names
    }


def agree(left, right, tolerance=1e-6):
    """Does the LoRA ``left`` make the dense changes ``right``?"""
    assert set(left) == set(right)
    return all(error(dense64(left[name]), right[name]) <= tolerance for name in left)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dense_and_norm_agree_with_the_definition(shape):
    change = delta(shape, 5, alpha=2.5)
    assert change.rank == 5
    assert change.scale == 0.5
    assert change.shape == change.dense().shape == shape
    assert error(change.dense(), dense64(change)) < 1e-6
    assert error(change.dense(-0.3), -0.3 * dense64(change)) < 1e-6
    assert math.isclose(change.frobenius(), float(dense64(change).norm()), rel_tol=1e-6)


def test_a_convolution_by_the_dense_kernel_is_the_two_convolutions_in_turn():
    change = delta((14, 6, 3, 3), 4, alpha=2)
    image = torch.randn(2, 6, 9, 9)
    inner = torch.nn.functional.conv2d(image, change.down, padding=1)
    two = change.scale * torch.nn.functional.conv2d(inner, change.up)
    one = torch.nn.functional.conv2d(image, change.dense(), padding=1)
    assert error(one, two) < 1e-5


@pytest.mark.parametrize(
    ("up", "down", "message"),
    [
        ((4, 2), (3, 5), "do not multiply"),
        ((4, 2), (2, 5, 1, 1), "do not multiply"),
        ((4, 2, 3, 3), (2, 5, 3, 3), "1x1"),
        ((4,), (2, 5), "do not multiply"),
        ((0, 2), (2, 5), "empty"),
        ((4, 0), (0, 5), "empty"),
    ],
)
def test_factors_that_make_no_delta_are_refused(up, down, message):
    with pytest.raises(BadInput, match=message):
        LowRankDelta(torch.zeros(up), torch.zeros(down), 1.0)


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_no_number_is_refused(alpha):
    with pytest.raises(BadInput, match="finite"):
        LowRankDelta(torch.zeros(2, 1), torch.zeros(1, 2), alpha)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tensors_and_back_keeps_the_lora_within_the_dtype(dtype):
    weights = lora(6, alpha=3.3)
    tensors = weights.to_tensors(dtype)
    assert all(tensor.dtype == dtype for tensor in tensors.values())
    assert all(tensors[name + ".alpha"].shape == () for name in weights)
    back = read_back(tensors)
    right = dense_sum([(weights, 1.0)])
    assert agree(back, right, TOLERANCE[dtype])
    if dtype != torch.float32:
        assert not agree(back, right, TOLERANCE[dtype] / 1000)


@pytest.mark.parametrize("alpha", [257.0, 1e-9, 1e6, -3.0])
def test_an_alpha_that_the_dtype_cannot_hold_loses_nothing(alpha):
    for dtype in (torch.bfloat16, torch.float16):
        up, down = torch.full((3, 2), 2.0**-6), torch.full((2, 3), 2.0**-3)
        if alpha == 1e6:
            up = up / 256
        if alpha == 1e-9:
            up = up * 2**22
        weights = LoraWeights({"m": LowRankDelta(up, down, alpha)})
        back = read_back(weights.to_tensors(dtype))
        assert error(dense64(back["m"]), dense64(weights["m"])) < TOLERANCE[dtype]


def test_a_weight_outside_the_dtype_is_refused_with_its_limit():
    with pytest.raises(BadInput, match=r"1e\+06, float16 ends at 65504: choose bf16"):
        cast(torch.tensor([1.0, -1e6]), torch.float16, "w")
    assert cast(torch.tensor([-1e6]), torch.bfloat16, "w").dtype == torch.bfloat16
    assert torch.isinf(cast(torch.tensor([math.inf]), torch.float16, "w")).all()


def test_fp8_is_left_neither_for_nan_nor_for_its_largest_number():
    """Which of the two torch makes of a number beyond fp8 depends on its version."""
    for dtype, largest, beyond in (
        (torch.float8_e4m3fn, 448.0, 464.1),
        (torch.float8_e5m2, 57344.0, 61440.5),
    ):
        with pytest.raises(BadInput, match=f"ends at {largest:g}"):
            cast(torch.tensor([1.0, -beyond]), dtype, "w")
        rounded = cast(torch.tensor([beyond - 1.0, math.nan]), dtype, "w").float()
        assert rounded[0] == largest
        assert rounded[1].isnan()


def test_a_sum_that_overflows_float32_is_refused_unless_the_weight_was_infinite_before():
    huge = LowRankDelta(torch.tensor([[3e38], [0.0]]), torch.tensor([[10.0, 0.0]]), 1.0)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(BadInput, match=r"inf.*are broken"):
            merged(torch.ones(2, 2, dtype=dtype), [Change(huge, 1.0)])
        base = torch.tensor([[math.inf, 1.0], [math.nan, 1.0]], dtype=dtype)
        result = merged(base, [Change(huge, 1.0)])
        assert torch.equal(result.nan_to_num(7.0), base.nan_to_num(7.0))
    broken = LoraWeights({"m": LowRankDelta(torch.full((2, 1), 1e20), torch.full((1, 2), 1e25), 1e38)})
    with pytest.raises(BadInput, match="overflow"):
        combine([(broken, 1.0)])
    with pytest.raises(BadInput, match="float16 ends"):
        LoraWeights({"m": LowRankDelta(torch.full((2, 1), 1e30), torch.ones(1, 2), 1e30)}).to_tensors(
            torch.float16
        )


MIXES = [(1.0, 1.0), (1.0, -1.0), (-0.5, 0.25), (2.0, 0.0), (0.0, 0.0)]


@pytest.mark.parametrize("ratios", MIXES)
def test_a_combination_is_the_sum_at_mixed_ranks_and_alphas(ratios):
    terms = [(lora(4, alpha=1), ratios[0]), (lora(7, alpha=16), ratios[1])]
    combined = combine(terms)
    assert agree(combined, dense_sum(terms), 2e-6)
    kept = sum(rank for rank, ratio in zip((4, 7), ratios, strict=True) if ratio != 0.0)
    assert {change.rank for change in combined.values()} == {max(kept, 1)}
    assert all(change.scale == 1.0 for change in combined.values())


def test_three_loras_combine():
    terms = [(lora(2), 0.5), (lora(3, alpha=1), -1.5), (lora(1), 2.0)]
    assert agree(combine(terms), dense_sum(terms), 2e-6)


def test_modules_of_only_one_lora_are_kept_with_their_sign():
    left = lora(3, leave_out=("lora_unet_conv",))
    right = lora(3, leave_out=("lora_unet_linear",))
    result = subtract(left, right)
    assert agree(result, dense_sum([(left, 1.0), (right, -1.0)]))
    assert error(dense64(result["lora_unet_conv"]), -dense64(right["lora_unet_conv"])) < 1e-6


def test_a_pointwise_convolution_combines_with_its_linear_form():
    conv = delta((12, 20, 1, 1), 3)
    linear = LowRankDelta(conv.up_matrix, conv.down_matrix, conv.alpha)
    result = subtract(LoraWeights({"m": conv}), LoraWeights({"m": linear}))
    assert result["m"].shape == (12, 20, 1, 1)
    assert float(dense64(result["m"]).norm()) < 1e-6


def test_subtracting_what_was_added_gives_it_back_and_the_wrong_sign_does_not():
    a, b = lora(4, alpha=2), lora(4)
    both = add(a, b)
    right = dense_sum([(b, 1.0)])
    assert agree(subtract(both, a), right, 3e-6)
    assert not agree(add(both, a), right, 0.5)
    assert not agree(subtract(a, both), right, 0.5)


def test_scaling_is_a_combination_of_one():
    weights = lora(4, alpha=3)
    for ratio in (0.0, -1.0, 0.7):
        assert agree(scaled(weights, ratio), dense_sum([(weights, ratio)]))


def test_modules_of_different_shape_are_named():
    other = LoraWeights({"lora_unet_linear": delta((24, 32), 4)})
    with pytest.raises(BadInput, match=r"lora_unet_linear \[24, 16\] and \[24, 32\]"):
        add(lora(4), other)


@pytest.mark.parametrize("terms", [[], [(lora(1), math.nan)]])
def test_what_cannot_be_combined_is_refused(terms):
    with pytest.raises(BadInput):
        combine(terms)


def test_full_rank_truncation_is_the_identity_and_balances_the_factors():
    change = delta((24, 16), 5, alpha=40, decay=0.5)
    result = truncate(change, 5).delta
    assert error(dense64(result), dense64(change)) < 2e-6
    ups, downs = result.up.norm(dim=0), result.down.norm(dim=1)
    assert torch.allclose(ups, downs, rtol=1e-4)


def test_a_rank_beyond_the_matrix_is_cut_to_it():
    change = combine([(LoraWeights({"m": delta((6, 4), 9)}), 1.0)])["m"]
    result = truncate(change, 9)
    assert (change.rank, result.delta.rank) == (9, 4)
    assert result.residual == 0.0
    assert error(dense64(result.delta), dense64(change)) < 2e-6


def test_a_zero_delta_truncates_to_zero():
    zero = LowRankDelta(torch.zeros(4, 2), torch.zeros(2, 4), 2.0)
    for rule in (RankRule(rank=1), RankRule(sv_ratio=2.0), RankRule(sv_fro=0.9)):
        result = truncate(zero, rule)
        assert result.residual == 0.0
        assert float(result.delta.dense().norm()) == 0.0


def test_weights_whose_product_overflows_are_refused():
    huge = LowRankDelta(torch.full((4, 2), 1e30), torch.full((2, 4), 1e30), 2.0)
    with pytest.raises(BadInput, match="overflows"):
        truncate(huge, 1)


VALUES = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (RankRule(rank=3), 3),
        (RankRule(rank=9), 5),
        (RankRule(sv_ratio=4.0), 3),
        (RankRule(sv_ratio=3.9), 2),
        (RankRule(sv_ratio=1.0), 1),
        (RankRule(sv_cumulative=12 / 15.5), 2),
        (RankRule(sv_cumulative=12.1 / 15.5), 3),
        (RankRule(sv_cumulative=1.0), 5),
        (RankRule(sv_fro=0.86), 1),
        (RankRule(sv_fro=0.87), 2),
        (RankRule(sv_fro=0.999999, max_rank=2), 2),
    ],
)
def test_a_rule_keeps_the_smallest_rank_that_satisfies_it(rule, count):
    assert rule.choose(VALUES) == count


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99, 0.9999])
def test_one_rank_fewer_would_break_the_bound(part):
    change = delta((24, 16), 12, decay=0.7)
    values = torch.linalg.svdvals(dense64(change).flatten(1))
    count = truncate(change, RankRule(sv_fro=part)).delta.rank
    whole = values.norm()
    assert values[:count].norm() >= part * whole
    assert count == 1 or values[: count - 1].norm() < part * whole


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rank": 1, "sv_fro": 0.5},
        {"rank": 0},
        {"rank": True},
        {"rank": 1, "max_rank": 0},
        {"sv_ratio": 0.5},
        {"sv_ratio": math.nan},
        {"sv_fro": 0.0},
        {"sv_cumulative": 1.1},
        {"sv_cumulative": math.nan},
    ],
)
def test_a_rule_out_of_bounds_is_refused(wrong):
    with pytest.raises(BadInput):
        RankRule(**wrong)


def test_resize_uses_the_conv_rule_for_kernels_only_and_reports_the_loss():
    weights = lora(6, decay=0.5)
    result = resize(weights, RankRule(rank=4), RankRule(rank=2))
    ranks = {name: change.rank for name, change in result.lora.items()}
    assert ranks == {**dict.fromkeys(SHAPES, 4), "lora_unet_conv": 2}
    full = dense_sum([(weights, 1.0)])
    lost = {name: full[name] - dense64(result.lora[name]) for name in full}
    for name, residual in result.residuals.modules.items():
        assert math.isclose(residual, float(lost[name].norm() / full[name].norm()), rel_tol=1e-3)
    total = math.sqrt(sum(float(part.norm() ** 2) for part in lost.values()))
    whole = math.sqrt(sum(float(part.norm() ** 2) for part in full.values()))
    assert math.isclose(result.residuals.total, total / whole, rel_tol=1e-3)
    assert 0.0 < result.residuals.total < 0.5


def test_several_deltas_merge_as_their_combination():
    a, b = lora(3), lora(5, alpha=1)
    both = combine([(a, 0.5), (b, -2.0)])
    for name, shape in SHAPES.items():
        base = torch.randn(shape)
        one = merged(base, [Change(a[name], 0.5), Change(b[name], -2.0)])
        assert error(one, merged(base, [Change(both[name], 1.0)])) < 1e-6
        assert one.shape == shape


def test_a_lora_is_not_changed_by_what_is_done_with_it():
    weights = lora(4)
    before = {key: tensor.clone() for key, tensor in weights.to_tensors(torch.float32).items()}
    combine([(weights, -1.0), (weights, 2.0)])
    scaled(weights, 0.1)
    resize(weights, RankRule(rank=1))
    after = weights.to_tensors(torch.float32)
    assert all(torch.equal(before[key], after[key]) for key in before)
