"""How alike the changes of LoRAs are: cosines of their deltas, in factor space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights


def inner(left: LowRankDelta, right: LowRankDelta) -> float:
    """The sum of the products of all entries of two deltas, without multiplying them out:

        <s U D, t V E> = s t sum((U' V) * (D E'))

    with U' V and D E' of size (rank, rank); in float64.
    """
    ups = left.up_matrix.double().T @ right.up_matrix.double()
    downs = left.down_matrix.double() @ right.down_matrix.double().T
    return left.scale * right.scale * float(torch.sum(ups * downs))


def cosines(loras: Sequence[LoraWeights]) -> list[list[float]]:
    """cos(i, j) = <i, j> / (|i| |j|) over the deltas of all modules, a matrix of 1 on its diagonal.

    A module that only one of two has counts in that one's norm alone. 0 where a LoRA is zero.
    """
    count = len(loras)
    products = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(i, count):
            common = loras[i].keys() & loras[j].keys()
            products[i][j] = products[j][i] = math.fsum(inner(loras[i][n], loras[j][n]) for n in common)
    norms = [math.sqrt(max(0.0, products[i][i])) for i in range(count)]
    return [
        [1.0 if i == j else _over(products[i][j], norms[i] * norms[j]) for j in range(count)]
        for i in range(count)
    ]


def _over(product: float, norms: float) -> float:
    return product / norms if norms else 0.0
