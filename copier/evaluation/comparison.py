"""The LoRA beside the control, and one figure over several training seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from copier.errors import BadInput
from copier.evaluation.effect import StripResult


@dataclass(frozen=True)
class Comparison:
    """The LoRA against the control at one weight; None where one of the two was not measured.

    ``effect_gain`` is the LoRA's effect less the control's; ``leakage_ratio`` the LoRA's leakage over
    the control's, below 1 where the LoRA leaks less.
    """

    weight: float
    effect_gain: float | None
    leakage_ratio: float | None


def compare(lora: StripResult, control: StripResult, *, weight: float = 1.0) -> Comparison:
    """``lora`` against ``control``, both measured on the same pictures, at ``weight``."""
    ours, theirs = lora.at(weight), control.at(weight)
    gain = ratio = None
    if ours is not None and theirs is not None:
        if ours.effect is not None and theirs.effect is not None:
            gain = ours.effect - theirs.effect
        if ours.leakage is not None and theirs.leakage:
            ratio = ours.leakage / theirs.leakage
    return Comparison(weight=weight, effect_gain=gain, leakage_ratio=ratio)


@dataclass(frozen=True)
class Spread:
    """Mean and range of one figure over several training seeds."""

    mean: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Mean, smallest, largest and number of ``values``. Raises ``BadInput`` if there are none."""
    known = tuple(values)
    if not known:
        raise BadInput("a mean over training seeds was asked for no values: give at least one")
    return Spread(mean=statistics.fmean(known), low=min(known), high=max(known), count=len(known))
