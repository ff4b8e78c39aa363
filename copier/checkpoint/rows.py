"""Rows of a weight that several modules share: q, k and v in one matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Rows = tuple[int, int]
"""First row and the row after the last, of a weight's first axis."""


def stacked(height: int, parts: Sequence[int]) -> tuple[Rows, ...]:
    """The rows of parts that lie one below the other; () where they do not make up ``height``."""
    if sum(parts) != height or min(parts) <= 0:
        return ()
    ends = list(itertools.accumulate(parts))
    return tuple(zip([0, *ends], ends, strict=False))


def thirds(height: int) -> tuple[Rows, ...]:
    """The rows of q, k and v, equally high; () where ``height`` cannot be divided by 3."""
    return stacked(height, [height // 3] * 3)
