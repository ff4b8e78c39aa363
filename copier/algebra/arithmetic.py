"""Exact sums of LoRAs: concatenated factors, no matrix is multiplied out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from copier.algebra.delta import LowRankDelta, all_finite
from copier.algebra.lora import LoraWeights
from copier.errors import BadInput


def scaled(lora: LoraWeights, ratio: float) -> LoraWeights:
    """ratio * lora, of the same ranks; the ratio, sign included, goes into up alone."""
    return LoraWeights(
        {
            name: LowRankDelta(up=delta.up * ratio, down=delta.down, alpha=delta.alpha)
            for name, delta in lora.items()
        }
    )


def add(left: LoraWeights, right: LoraWeights) -> LoraWeights:
    """left + right, exactly; raises as ``combine``."""
    return combine([(left, 1.0), (right, 1.0)])


def subtract(minuend: LoraWeights, subtrahend: LoraWeights) -> LoraWeights:
    """minuend - subtrahend, exactly; raises as ``combine``."""
    return combine([(minuend, 1.0), (subtrahend, -1.0)])


def combine(terms: Sequence[tuple[LoraWeights, float]]) -> LoraWeights:
    """The sum of ratio * lora over ``terms``, exactly.

    A sum of products is one product of concatenated factors,

        sum_i c_i U_i D_i = [s_1 a_1 U_1, s_2 a_2 U_2, ...] @ [a_1 D_1; a_2 D_2; ...]

    with c_i = ratio_i * scale_i, a_i = sqrt|c_i|, and s_i = sign(c_i) in up alone: a sign in both
    factors would vanish. The ranks add up; alpha is the new rank (scale 1), which is right for
    any mix of ranks and alphas. A module that only some terms have is kept. Terms of ratio 0 add
    no rank; where nothing is left the module is a zero of rank 1.

    Raises:
        BadInput: as ``grouped``, or a factor overflows.
    """
    return LoraWeights({name: _sum(parts) for name, parts in grouped(terms).items()})


def grouped(terms: Sequence[tuple[LoraWeights, float]]) -> dict[str, list[tuple[LowRankDelta, float]]]:
    """For each module of any term: the deltas that it is the sum of, with their ratios.

    Raises:
        BadInput: no term, a ratio that is not finite, or modules of one name that change weights
            of different shape (all of them are named).
    """
    if not terms:
        raise BadInput("there is no LoRA to combine: give at least one")
    for _, ratio in terms:
        if not math.isfinite(ratio):
            raise BadInput(f"a LoRA's ratio is {ratio}: it must be a finite number")
    groups: dict[str, list[tuple[LowRankDelta, float]]] = {}
    for lora, ratio in terms:
        for name, delta in lora.items():
            groups.setdefault(name, []).append((delta, ratio))
    problems = []
    for name, parts in groups.items():
        shapes = {_weight_shape(delta) for delta, _ in parts}
        if len(shapes) > 1:
            problems.append(f"{name} {' and '.join(str(list(shape)) for shape in sorted(shapes))}")
    if problems:
        raise BadInput(
            f"{len(problems)} modules change weights of different shape, so the LoRAs are of "
            f"different families: {'; '.join(problems[:12])}"
        )
    return groups


def _weight_shape(delta: LowRankDelta) -> tuple[int, ...]:
    return delta.shape if delta.is_conv else delta.shape[:2]


def _sum(parts: Sequence[tuple[LowRankDelta, float]]) -> LowRankDelta:
    first = parts[0][0]
    ups, downs = [], []
    for delta, ratio in parts:
        factor = ratio * delta.scale
        if factor == 0.0:
            continue
        root = math.sqrt(abs(factor))
        ups.append(delta.up_matrix * math.copysign(root, factor))
        downs.append(delta.down_matrix * root)
    if not ups:
        ups, downs = [torch.zeros_like(first.up_matrix[:, :1])], [torch.zeros_like(first.down_matrix[:1])]
    up, down = torch.cat(ups, dim=1), torch.cat(downs, dim=0)
    if not (all_finite(up) and all_finite(down)):
        raise BadInput("a LoRA's weights are so large that its factors overflow float32: it is broken")
    return shaped(up, down, first)


def shaped(up: torch.Tensor, down: torch.Tensor, like: LowRankDelta) -> LowRankDelta:
    """Scale 1 delta of the matrices (out, rank) and (rank, in * height * width), laid out as ``like``."""
    out, rank = up.shape
    return LowRankDelta(
        up=up.reshape(out, rank, *like.up.shape[2:]),
        down=down.reshape(rank, *like.down.shape[1:]),
        alpha=float(rank),
    )
