"""LoHa, LoKr, three factors and full differences against their definitions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from copier.algebra.delta import LowRankDelta
from copier.algebra.merging import Change, matrix_of, merged
from copier.algebra.parts import delta_from_parts
from copier.errors import BadInput

TOLERANCE = 2e-6
SIZES = st.integers(1, 5)
KERNELS = st.sampled_from([(), (1, 1), (3, 3), (2, 3)])
ALPHAS = st.one_of(st.none(), st.sampled_from([0.5, 4.0, -2.0, 3.3]))
SEEDS = st.integers(0, 2**32 - 1)
LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def with_alpha(parts, alpha):
    return parts if alpha is None else {**parts, "alpha": torch.tensor(alpha)}


def scale(alpha, rank):
    return 1.0 if alpha is None else float(torch.tensor(alpha)) / rank


def check(parts, right):
    """The delta of ``parts`` has the definition's values, norm and sizes, and is linear in its weight."""
    delta = delta_from_parts(parts)
    outline = delta_from_parts({part: tensor.to("meta") for part, tensor in parts.items()})
    assert (outline.shape, outline.rank, outline.kind) == (delta.shape, delta.rank, delta.kind)
    dense = delta.dense()
    assert dense.shape == delta.shape
    assert dense.dtype == torch.float32
    size = float(right.norm())
    assert float((dense.double().reshape(right.shape) - right).norm()) <= TOLERANCE * size
    assert math.isclose(delta.frobenius(), size, rel_tol=1e-5)
    assert torch.allclose(delta.dense(-0.5), -0.5 * dense, rtol=1e-5, atol=1e-6 * size)
    half = delta.to(dtype=torch.float16).to(dtype=torch.float32)
    assert float((half.dense() - dense).norm()) <= 2e-2 * size
    changed = merged(torch.zeros(right.shape), [Change(matrix_of(delta), 1.0)])
    assert torch.equal(changed, dense.reshape(right.shape))
    return delta


@LAWS
@given(SEEDS, SIZES, SIZES, SIZES, SIZES, KERNELS, ALPHAS)
def test_a_loha_is_the_element_wise_product_of_two_products(seed, out, inner, rank, other, kernel, alpha):
    random = draw(seed)
    parts = {
        "hada_w1_a": random(out, rank),
        "hada_w1_b": random(rank, inner, *kernel),
        "hada_w2_a": random(out, other),
        "hada_w2_b": random(other, inner, *kernel),
    }
    w1a, w1b, w2a, w2b = (tensor.double() for tensor in parts.values())
    right = torch.einsum("or,ri...,os,si...->oi...", w1a, w1b, w2a, w2b) * scale(alpha, rank)
    delta = check(with_alpha(parts, alpha), right)
    assert (delta.kind, delta.rank, delta.shape) == ("loha", rank, (out, inner, *kernel))


@LAWS
@given(SEEDS, SIZES, SIZES, SIZES, SIZES, ALPHAS)
def test_a_loha_with_cores_is_the_product_of_two_tucker_kernels(seed, out, inner, m, n, alpha):
    random = draw(seed)
    parts = {
        "hada_t1": random(m, n, 3, 2),
        "hada_w1_a": random(m, out),
        "hada_w1_b": random(n, inner),
        "hada_t2": random(n, m, 3, 2),
        "hada_w2_a": random(n, out),
        "hada_w2_b": random(m, inner),
    }
    t1, a1, b1, t2, a2, b2 = (tensor.double() for tensor in parts.values())
    right = torch.einsum("mnhw,mo,ni,pqhw,po,qi->oihw", t1, a1, b1, t2, a2, b2) * scale(alpha, n)
    assert check(with_alpha(parts, alpha), right).shape == (out, inner, 3, 2)


@LAWS
@given(
    SEEDS,
    st.tuples(SIZES, SIZES, SIZES, SIZES),
    SIZES,
    st.sampled_from("wft"),
    st.booleans(),
    KERNELS,
    ALPHAS,
)
def test_a_lokr_is_the_kronecker_product(seed, sizes, rank, form, whole, kernel, alpha):
    """``form`` of w2: whole, in factors, or through a core (Tucker); ``whole``: is w1?"""
    random = draw(seed)
    p, q, r, s = sizes
    parts = (
        {"lokr_w1": random(p, q)} if whole else {"lokr_w1_a": random(p, rank), "lokr_w1_b": random(rank, q)}
    )
    w1 = parts["lokr_w1"].double() if whole else parts["lokr_w1_a"].double() @ parts["lokr_w1_b"].double()
    if form == "w":
        parts["lokr_w2"] = random(r, s, *kernel)
        w2 = parts["lokr_w2"].double()
    elif form == "f":
        parts |= {"lokr_w2_a": random(r, rank), "lokr_w2_b": random(rank, s, *kernel)}
        w2 = torch.einsum("rk,ks...->rs...", parts["lokr_w2_a"].double(), parts["lokr_w2_b"].double())
    else:
        parts |= {
            "lokr_t2": random(rank, rank, 3, 3),
            "lokr_w2_a": random(rank, r),
            "lokr_w2_b": random(rank, s),
        }
        core, a, b = (parts[f"lokr_{part}"].double() for part in ("t2", "w2_a", "w2_b"))
        w2 = torch.einsum("mnhw,mr,ns->rshw", core, a, b)
    right = torch.einsum("pq,rs...->prqs...", w1, w2).reshape(p * r, q * s, *w2.shape[2:])
    factored = not whole or form != "w"
    delta = check(with_alpha(parts, alpha), right * (scale(alpha, rank) if factored else 1.0))
    assert (delta.kind, delta.rank) == ("lokr", rank if factored else None)


def test_a_kernel_that_a_file_keeps_flattened_gives_the_same_change_as_one_that_it_keeps_in_shape():
    """LyCORIS stores w2_b and w1_b of a convolution as (rank, in * height * width)."""
    random = draw(7)
    w1, a, b = random(2, 3), random(4, 2), random(2, 5, 3, 3)
    lokr = [
        delta_from_parts({"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": factor}).dense()
        for factor in (b, b.flatten(1))
    ]
    assert lokr[0].shape == (8, 15, 3, 3)
    assert torch.equal(lokr[0], lokr[1].reshape(8, 15, 3, 3))
    shapes = [
        delta_from_parts({"hada_w1_a": a, "hada_w1_b": f, "hada_w2_a": a, "hada_w2_b": f}).shape
        for f in (b, b.flatten(1))
    ]
    assert shapes == [(4, 5, 3, 3), (4, 45)]


@LAWS
@given(SEEDS, SIZES, SIZES, SIZES, SIZES, ALPHAS)
def test_three_factors_are_a_plain_lora_of_the_same_change(seed, out, inner, n, m, alpha):
    random = draw(seed)
    up, mid, down = random(out, n, 1, 1), random(n, m, 3, 3), random(m, inner, 1, 1)
    right = torch.einsum("on,nmhw,mi->oihw", up.double()[:, :, 0, 0], mid.double(), down.double()[:, :, 0, 0])
    parts = with_alpha({"up": up, "mid": mid, "down": down}, alpha)
    delta = check(parts, right * scale(alpha, m))
    assert isinstance(delta, LowRankDelta)
    assert (delta.rank, delta.is_conv) == (n, True)


def test_three_factors_are_the_three_convolutions_in_turn():
    random = draw(3)
    up, mid, down = random(6, 4, 1, 1), random(4, 4, 3, 3), random(4, 5, 1, 1)
    image, conv = random(2, 5, 7, 7), torch.nn.functional.conv2d
    turns = conv(conv(conv(image, down), mid, padding=1), up)
    once = conv(image, delta_from_parts({"up": up, "mid": mid, "down": down}).dense(), padding=1)
    torch.testing.assert_close(once, turns, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 3), (6,)])
def test_a_full_difference_is_itself_whatever_alpha_says(shape):
    change = torch.randn(shape)
    delta = delta_from_parts({"diff": change, "alpha": torch.tensor(7.0)})
    assert (delta.kind, delta.rank, delta.shape) == ("full", None, shape)
    assert torch.equal(delta.dense(-2.0), -2.0 * change)
    assert math.isclose(delta.frobenius(), float(change.norm()), rel_tol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_every_floating_dtype_is_read_into_float32_exactly(dtype):
    up, down = torch.randn(5, 2).to(dtype), torch.randn(2, 3).to(dtype)
    delta = delta_from_parts({"up": up, "down": down, "alpha": torch.tensor(1)})
    assert isinstance(delta, LowRankDelta)
    assert delta.up.dtype == torch.float32
    assert torch.equal(delta.up.double(), up.double().float().double())
    assert delta.scale == 0.5


def test_a_missing_alpha_means_scale_one():
    for parts in (
        {"up": torch.ones(4, 3), "down": torch.ones(3, 2)},
        {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(2, 3), "lokr_w2_b": torch.ones(3, 1)},
    ):
        assert delta_from_parts(parts).dense()[0, 0] == 3.0


ONE = torch.ones(2, 2)
LORA = {"up": ONE, "down": ONE}
LOHA = {f"hada_w{i}_{side}": ONE for i in (1, 2) for side in "ab"}
LOKR = {"lokr_w1": ONE, "lokr_w2": ONE}
REFUSED = [
    ({"up": ONE}, "no down"),
    ({"alpha": ONE[0, 0]}, "nothing but an alpha"),
    ({**LORA, "dora_scale": ONE}, "DoRA.*extract"),
    ({**LORA, "diff": ONE}, "several kinds"),
    ({**LORA, "up": torch.full((2, 2), math.nan)}, "up has NaN"),
    ({**LORA, "down": torch.tensor([[1.0, math.inf]] * 2)}, "down has NaN or infinite"),
    ({**LORA, "down": torch.full((2, 2), 1e300, dtype=torch.float64)}, "down has NaN or infinite"),
    ({**LORA, "up": ONE.int()}, "int32: weights must be floating"),
    ({**LORA, "down": torch.ones(3, 2)}, "multiply"),
    ({**LORA, "up": torch.tensor(1.0)}, r"shape \[\]"),
    ({**LORA, "up": torch.ones(2, 0), "down": torch.ones(0, 2)}, "none of size 0"),
    ({**LORA, "up": torch.ones(1, 1, 1, 1, 1)}, "1 to 4 axes"),
    ({**LORA, "alpha": torch.ones(2)}, "one number"),
    ({**LORA, "alpha": torch.tensor(math.inf)}, "finite"),
    ({"up": torch.ones(3), "down": torch.ones(3)}, "multiply"),
    ({**LORA, "mid": ONE}, "multiply"),
    ({"up": torch.ones(2), "down": ONE, "mid": torch.ones(2, 2, 3, 3)}, "multiply"),
    ({"up": torch.ones(2, 2, 3, 3), "down": ONE, "mid": torch.ones(2, 2, 3, 3)}, "multiply"),
    ({part: tensor for part, tensor in LOHA.items() if part != "hada_w2_b"}, "no hada_w2_b"),
    ({**LOHA, "hada_t1": torch.ones(2, 2, 3, 3)}, "no hada_t2"),
    ({**LOHA, "hada_t1": ONE, "hada_t2": ONE}, "multiply through"),
    ({**LOHA, "hada_w1_b": torch.ones(2, 3)}, "differ in shape"),
    ({**LOHA, "alpha": torch.tensor(math.nan)}, "finite"),
    ({"lokr_w1": ONE}, "no lokr_w2_a, lokr_w2_b"),
    ({**LOKR, "lokr_w1_a": ONE}, "both whole and in factors"),
    ({**LOKR, "lokr_t2": torch.ones(2, 2, 3, 3)}, "core between factors"),
    ({**LOKR, "lokr_w1": torch.ones(2, 2, 1, 1)}, "make no LoKr"),
    ({**LOKR, "alpha": torch.tensor(-math.inf)}, "finite"),
    ({"lokr_w1": torch.ones(300, 300), "lokr_w2": torch.ones(300, 300)}, "no weight has"),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED)
def test_parts_that_make_no_change_are_refused(parts, message):
    with pytest.raises(BadInput, match=message):
        delta_from_parts(parts)
