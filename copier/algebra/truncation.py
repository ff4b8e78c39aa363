"""Truncation of low-rank deltas to fewer ranks, with what it threw away.

No weight is multiplied out: with thin QRs up = Q_u R_u and down^T = Q_d R_d, the delta's SVD is
that of the small core scale * R_u R_d^T (rank x rank), turned by Q_u and Q_d. By Eckart and Young
(1936), keeping the largest singular values is the best approximation of that rank, and the norm of
what is lost is the norm of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from copier.algebra.arithmetic import shaped
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.errors import BadInput


@dataclass(frozen=True)
class RankRule:
    """How many singular values S_1 >= S_2 >= ... are kept: the smallest number that satisfies one of

    - ``rank``: exactly so many, or all where there are fewer;
    - ``sv_ratio`` >= 1: none below S_1 / sv_ratio is kept, all others are;
    - ``sv_fro`` in (0, 1]: the Frobenius norm of what is kept is that part of the whole;
    - ``sv_cumulative`` in (0, 1]: the sum of what is kept is that part of the whole.

    At least one is always kept, and never more than ``max_rank``. The names are those of
    sd-scripts' ``resize_lora.py``, whose dynamic methods keep one more than needed.

    Raises on construction:
        BadInput: none or several are given, or one is out of bounds.
    """

    rank: int | None = None
    sv_ratio: float | None = None
    sv_fro: float | None = None
    sv_cumulative: float | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        given = [self.rank, self.sv_ratio, self.sv_fro, self.sv_cumulative]
        if sum(value is not None for value in given) != 1:
            raise BadInput("give one of rank, sv_ratio, sv_fro and sv_cumulative, and only one")
        for name, count in (("rank", self.rank), ("max_rank", self.max_rank)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise BadInput(f"{name} is {count!r}: it must be a whole number from 1 up")
        if self.sv_ratio is not None and not 1.0 <= self.sv_ratio < math.inf:
            raise BadInput(f"sv_ratio is {self.sv_ratio:g}: it must be a number from 1 up")
        for name, part in (("sv_fro", self.sv_fro), ("sv_cumulative", self.sv_cumulative)):
            if part is not None and not 0.0 < part <= 1.0:
                raise BadInput(f"{name} is {part:g}: it must lie above 0 and at most at 1")

    def choose(self, values: torch.Tensor) -> int:
        """How many of the descending singular values (n,) are kept, from 1 to n."""
        count = self._wanted(values.double())
        if self.max_rank is not None:
            count = min(count, self.max_rank)
        return max(1, min(count, values.numel()))

    def _wanted(self, values: torch.Tensor) -> int:
        if self.rank is not None:
            return self.rank
        if self.sv_ratio is not None:
            return int((values * self.sv_ratio >= values[0]).sum())
        if self.sv_fro is not None:
            return _smallest_reaching(values.square(), self.sv_fro**2)
        assert self.sv_cumulative is not None
        return _smallest_reaching(values, self.sv_cumulative)


def _smallest_reaching(values: torch.Tensor, part: float) -> int:
    sums = values.cumsum(0)
    return int((sums < part * sums[-1]).sum()) + 1


@dataclass(frozen=True, eq=False)
class Truncation:
    """A truncated delta, the Frobenius ``norm`` of the original, and that of what is ``lost``."""

    delta: LowRankDelta
    norm: float
    lost: float

    @property
    def residual(self) -> float:
        """lost / norm: 0 where nothing is lost, 1 where everything is; 0 for a zero delta."""
        return self.lost / self.norm if self.norm > 0.0 else 0.0


@dataclass(frozen=True)
class Residuals:
    """Relative Frobenius norms of what a truncation threw away, per module and of the whole."""

    modules: Mapping[str, float]
    total: float


@dataclass(frozen=True, eq=False)
class Resized:
    """A truncated LoRA and what that cost."""

    lora: LoraWeights
    residuals: Residuals


def singular_factors(delta: LowRankDelta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors (out, n), singular values (n,) descending, right vectors (n, in*height*width).

    n = min(out, in * height * width, rank).

    Raises:
        BadInput: the factors are so large that their product overflows.
    """
    q_up, r_up = torch.linalg.qr(delta.up_matrix)
    q_down, r_down = torch.linalg.qr(delta.down_matrix.T)
    core = delta.scale * (r_up @ r_down.T)
    if not bool(torch.isfinite(core).all()):
        raise BadInput("the LoRA's weights are so large that their product overflows: it is broken")
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    return q_up @ left, values, right @ q_down.T


def truncate(delta: LowRankDelta, rule: RankRule | int) -> Truncation:
    """The best approximation of ``delta`` by the rank that ``rule`` chooses.

    The square root of each singular value goes into either factor, so that both are equally far
    from the limits of fp16; alpha is the rank (scale 1). An int is ``RankRule(rank=...)``.

    Raises:
        BadInput: as ``singular_factors`` and ``RankRule``.
    """
    rule = RankRule(rank=rule) if isinstance(rule, int) else rule
    left, values, right = singular_factors(delta)
    count = rule.choose(values)
    roots = values[:count].sqrt()
    kept = shaped(left[:, :count] * roots, roots[:, None] * right[:count], delta)
    exact = values.double()
    return Truncation(kept, norm=float(exact.norm()), lost=float(exact[count:].norm()))


def truncate_all(lora: LoraWeights, rule_of: Callable[[str, LowRankDelta], RankRule]) -> Resized:
    """Truncate every module by the rule that ``rule_of(name, delta)`` gives; raises as ``truncate``."""
    done = {name: truncate(delta, rule_of(name, delta)) for name, delta in lora.items()}
    return Resized(
        lora=LoraWeights({name: truncation.delta for name, truncation in done.items()}),
        residuals=_residuals(done),
    )


def resize(lora: LoraWeights, rule: RankRule, conv_rule: RankRule | None = None) -> Resized:
    """Truncate every module by ``rule``, kernels larger than 1x1 by ``conv_rule`` where given."""
    return truncate_all(lora, lambda _, delta: (conv_rule or rule) if delta.is_conv else rule)


def no_residuals(lora: LoraWeights) -> Residuals:
    """The report of an exact operation: zero everywhere."""
    return Residuals(modules=MappingProxyType(dict.fromkeys(lora, 0.0)), total=0.0)


def _residuals(done: Mapping[str, Truncation]) -> Residuals:
    norm = math.hypot(*(truncation.norm for truncation in done.values()))
    lost = math.hypot(*(truncation.lost for truncation in done.values()))
    modules = {name: truncation.residual for name, truncation in done.items()}
    return Residuals(modules=MappingProxyType(modules), total=lost / norm if norm > 0.0 else 0.0)
