"""The optimiser and its learning rate."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from copier.recipe import Optimiser, Schedule, TrainingSpec


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """The rate of step ``step`` (from 0): a linear warm-up, then the schedule down to zero.

    Warm-up rises from 1 / warmup_steps of the peak to all of it; cosine and linear would reach zero
    one step after the last.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    if spec.schedule is Schedule.COSINE:
        return spec.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if spec.schedule is Schedule.LINEAR:
        return spec.learning_rate * (1.0 - progress)
    return spec.learning_rate


@dataclass(frozen=True)
class Rates:
    """The learning rate of every step of a training, and how many there are.

    Where a check ends the training after ``held`` steps, it goes on for ``cooling`` more, in which the rate
    falls in a line from where it was to zero: weights taken at a high rate are noisier than those that a
    schedule brings to rest (Hägele et al. 2024, arXiv 2405.18392, who end a constant rate so at any time).
    """

    spec: TrainingSpec
    held: int | None = None
    cooling: int = 0

    @property
    def falling(self) -> bool:
        """Whether the end has been settled."""
        return self.held is not None

    @property
    def steps(self) -> int:
        """Number of steps: the schedule's own, or as a check settled it."""
        return self.spec.steps if self.held is None else self.held + self.cooling

    def cooled(self, held: int, cooling: int) -> Rates:
        """The rates of a training that passed a check after ``held`` steps; it never gets longer."""
        return Rates(self.spec, held, min(cooling, self.spec.steps - held))

    def at(self, step: int) -> float:
        """The rate of step ``step`` (from 0), never above that of the schedule."""
        planned = learning_rate(self.spec, step)
        if self.held is None or step < self.held:
            return planned
        share = 1.0 - (step - self.held) / self.cooling
        return min(planned, learning_rate(self.spec, self.held) * share)


def with_available_optimiser(
    spec: TrainingSpec, device: str, note: Callable[[str], None]
) -> TrainingSpec:
    """``spec`` with an optimiser that runs on ``device`` ("cuda", "cpu").

    The 8-bit AdamW needs CUDA and bitsandbytes; where they are not, AdamW takes its place, and
    ``note`` is told why.
    """
    if spec.optimiser is not Optimiser.ADAMW_8BIT:
        return spec
    if device == "cuda" and importlib.util.find_spec("bitsandbytes"):
        return spec
    why = "bitsandbytes is not installed" if device == "cuda" else "it needs CUDA"
    note(f"adamw8bit is replaced by adamw: {why}")
    return replace(spec, optimiser=Optimiser.ADAMW)


def build_optimiser(spec: TrainingSpec, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over ``parameters``, or its 8-bit form."""
    device = parameters[0].device.type
    settings: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if spec.optimiser is Optimiser.ADAMW_8BIT:
        library = importlib.import_module("bitsandbytes.optim")
        eight_bit: torch.optim.Optimizer = library.AdamW8bit(parameters, **settings)
        return eight_bit
    # One call for all of the hundreds of small factors; fused on the CPU only since torch 2.4.
    fused = device == "cuda" or _torch_version() >= (2, 4)
    return torch.optim.AdamW(parameters, fused=fused, foreach=None if fused else True, **settings)


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
