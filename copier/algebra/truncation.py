"""Truncation of low-rank deltas, and of their sums, to fewer ranks, with what it threw away."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from copier.algebra.approximation import Approximation, Counted, Sum, approximate, not_counted
from copier.algebra.arithmetic import grouped, shaped
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

    @property
    def needs_every_value(self) -> bool:
        """Does the choice depend on the small singular values, not only on the large ones and the norm?"""
        return self.sv_ratio is not None or self.sv_cumulative is not None

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


def truncate(delta: LowRankDelta, rule: RankRule | int) -> Truncation:
    """The best approximation of ``delta`` by the rank that ``rule`` chooses.

    The square root of each singular value goes into either factor, so that both are equally far
    from the limits of fp16; alpha is the rank (scale 1). An int is ``RankRule(rank=...)``.

    Raises:
        BadInput: as ``approximate`` and ``RankRule``.
    """
    rule = RankRule(rank=rule) if isinstance(rule, int) else rule
    (found,) = approximate([_sum([(delta, 1.0)], rule)])
    return _truncation(found, delta)


def truncate_sum(
    terms: Sequence[tuple[LoraWeights, float]],
    rule_of: Callable[[str, LowRankDelta], RankRule],
    *,
    threads: int = 1,
    counted: Counted = not_counted,
) -> Resized:
    """The sum of ratio * lora over ``terms``, each module truncated by ``rule_of(name, delta)``.

    The same as truncating ``arithmetic.combine(terms)``, without making it: a module's ``delta``
    is that of the first term that has it. ``threads`` work at once; ``counted`` hears how many modules are
    done. Raises as ``combine`` and ``truncate``.
    """
    groups = grouped(terms)
    sums = [_sum(parts, rule_of(name, parts[0][0])) for name, parts in groups.items()]
    done = {
        name: _truncation(found, groups[name][0][0])
        for name, found in zip(groups, approximate(sums, threads=threads, counted=counted), strict=True)
    }
    return Resized(
        lora=LoraWeights({name: truncation.delta for name, truncation in done.items()}),
        residuals=_residuals(done),
    )


def resize(
    lora: LoraWeights,
    rule: RankRule,
    conv_rule: RankRule | None = None,
    *,
    threads: int = 1,
    counted: Counted = not_counted,
) -> Resized:
    """Truncate every module by ``rule``, kernels larger than 1x1 by ``conv_rule`` where given."""
    return truncate_sum(
        [(lora, 1.0)],
        lambda _, delta: (conv_rule or rule) if delta.is_conv else rule,
        threads=threads,
        counted=counted,
    )


def no_residuals(lora: LoraWeights) -> Residuals:
    """The report of an exact operation: zero everywhere."""
    return Residuals(modules=MappingProxyType(dict.fromkeys(lora, 0.0)), total=0.0)


def _sum(parts: Sequence[tuple[LowRankDelta, float]], rule: RankRule) -> Sum:
    return Sum(
        terms=[(delta.up_matrix, delta.down_matrix, ratio * delta.scale) for delta, ratio in parts],
        choose=rule.choose,
        every_value=rule.needs_every_value,
    )


def _truncation(found: Approximation, like: LowRankDelta) -> Truncation:
    return Truncation(shaped(found.left, found.right, like), found.norm, found.lost)


def _residuals(done: Mapping[str, Truncation]) -> Residuals:
    norm = math.hypot(*(truncation.norm for truncation in done.values()))
    lost = math.hypot(*(truncation.lost for truncation in done.values()))
    modules = {name: truncation.residual for name, truncation in done.items()}
    return Residuals(modules=MappingProxyType(modules), total=lost / norm if norm > 0.0 else 0.0)
