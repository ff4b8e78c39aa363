"""Adds changes to a weight, block by block, so that what is computed stays in the processor's cache.

One implementation for tensors in a file and in a loaded model: both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from copier.algebra.delta import Delta, LowRankDelta, cast_into

BLOCK_ELEMENTS = 1 << 19
"""Of one block: 2 MB in float32, so that the block and the product added to it fit a cache of 4 MB."""


@dataclass(frozen=True, eq=False)
class Change:
    """ratio * delta, added to the rows of a weight from ``first_row`` on (fused q, k, v have several).

    ``delta`` is a product of two factors, of which rows can be multiplied out by themselves; of other
    kinds the matrix (out, in * height * width) that ``matrix_of`` gives.
    """

    delta: LowRankDelta | torch.Tensor
    ratio: float
    first_row: int = 0


def matrix_of(delta: Delta) -> LowRankDelta | torch.Tensor:
    """What a ``Change`` takes of a delta: multiplied out, unless it is a product of two factors."""
    return delta if isinstance(delta, LowRankDelta) else delta.dense().flatten(1)


def block_rows(columns: int) -> int:
    """Rows of one block of a weight (rows, columns)."""
    return max(1, BLOCK_ELEMENTS // max(1, columns))


def merged(weight: torch.Tensor, changes: Sequence[Change], name: str = "a weight") -> torch.Tensor:
    """weight + the sum of ratio * delta, a new tensor of weight's dtype and shape; as ``add_changes``."""
    source = weight.detach().contiguous()
    result = torch.empty_like(source)
    add_changes(source, changes, result, name=name)
    return result


def add_changes(
    weight: torch.Tensor,
    changes: Sequence[Change],
    out: torch.Tensor,
    *,
    first_row: int = 0,
    name: str = "a weight",
) -> None:
    """out = weight + the sum of ratio * delta over ``changes``, in float32, cast once to out's dtype.

    (In float64 where the weight is float64.)

    ``weight`` and ``out`` are (rows, ...) of one shape; they may be one tensor. Where they are only a
    part of the weight, ``first_row``, a multiple of ``block_rows``, says where it begins. Axes of size 1
    at a delta's end count for nothing: a 1x1 convolution may be stored as linear.

    Each product is multiplied by the ratio, then by the scale, in the order of sd-scripts' merge.

    Raises:
        BadInput: a value is outside the range of out's dtype; the message has ``name``.
    """
    rows = weight.shape[0]
    source, target = weight.reshape(rows, -1), out.view(rows, -1)
    step = block_rows(source.shape[1])
    precision = torch.float64 if source.dtype == torch.float64 else torch.float32
    # Two blocks for all: memory of this size costs more page faults than the arithmetic that is done in it.
    shape = min(step, rows), source.shape[1]
    sums, product = source.new_empty(shape, dtype=precision), source.new_empty(shape, dtype=torch.float32)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        total = sums[: stop - start].copy_(source[start:stop])
        for change in changes:
            _add(total, change, first_row + start, product)
        cast_into(total, target[start:stop], name, source=source[start:stop])


def _add(total: torch.Tensor, change: Change, first_row: int, product: torch.Tensor) -> None:
    """Add the rows of the change that ``total``, which begins at ``first_row`` of the weight, has.

    ``product`` is memory for as many rows in float32.
    """
    begin = max(first_row, change.first_row)
    end = min(first_row + total.shape[0], change.first_row + change.delta.shape[0])
    if begin >= end:
        return
    rows = slice(begin - change.first_row, end - change.first_row)
    if isinstance(change.delta, LowRankDelta):
        part = product[: end - begin]
        torch.mm(change.delta.up_matrix[rows], change.delta.down_matrix, out=part)
        for factor in (change.ratio, change.delta.scale):
            if factor != 1.0:
                part *= factor
    else:
        part = change.delta[rows] * change.ratio
    total[begin - first_row : end - first_row] += part
