"""How a training fits the memory of a card: presets for SDXL, and what to lower where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from copier.checkpoint.family import Family
from copier.recipe import Optimiser, Precision, Recipe, TrainingSpec, TrainStage

SMALLEST_RESOLUTION = 256
"""Below this nothing is offered: Stable Diffusion draws nothing sensible there. In pixels."""

LARGE_RANK = 32
"""Below this the LoRA with its gradients and moments is small beside the rest."""


@dataclass(frozen=True)
class MemoryPreset:
    """The fields of a training with which a family fits into so many gigabytes (GiB) of a card."""

    family: Family
    gigabytes: int
    values: Mapping[str, Any]


def _sdxl(**values: Any) -> Mapping[str, Any]:
    common = {"resolution": 1024, "precision": Precision.FP16, "gradient_checkpointing": True}
    return MappingProxyType({**common, **values})


_SMALL = {"batch_size": 1, "text_encoder": False, "optimiser": Optimiser.ADAMW_8BIT}

PRESETS: tuple[MemoryPreset, ...] = (
    MemoryPreset(Family.SDXL, 8, _sdxl(**_SMALL, fp8_base=True)),
    MemoryPreset(Family.SDXL, 12, _sdxl(**_SMALL)),
    MemoryPreset(Family.SDXL, 24, _sdxl()),
)
"""From sd-scripts' own advice for SDXL (README and docs of v0.10.1), not measured: 8 GB need fp8, an 8-bit
optimiser and the U-Net alone; latents and captions are encoded once in any case."""

_RESERVED = 0.9
"""A card of "8 GB" may report a tenth less."""


def preset_for(family: Family, gigabytes: float) -> MemoryPreset | None:
    """The preset for the largest card that is no larger than one of ``gigabytes``, or None."""
    fitting = [p for p in PRESETS if p.family is family and p.gigabytes * _RESERVED <= gigabytes]
    return max(fitting, key=lambda preset: preset.gigabytes, default=None)


def with_preset(recipe: Recipe, preset: MemoryPreset) -> Recipe:
    """``recipe`` with the preset's values in every training; a resolution of the user's own stays."""
    stages = tuple(
        replace(stage, training=_fitted(stage.training, preset)) if isinstance(stage, TrainStage) else stage
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages)


def _fitted(training: TrainingSpec, preset: MemoryPreset) -> TrainingSpec:
    values = dict(preset.values)
    if training.resolution != TrainingSpec().resolution:
        values.pop("resolution", None)
    return replace(training, **values)


def savings(training: TrainingSpec) -> tuple[str, ...]:
    """What to lower for less memory, as ``--set`` takes it, in the order in which it costs the least.

    First what the result hardly shows, then what costs exactness, then what makes another LoRA. Each one is
    meant on top of those before it.
    """
    found = []
    if training.precision is Precision.FP32:
        found.append("training.precision=fp16")
    if not training.gradient_checkpointing:
        found.append("training.gradient_checkpointing=true")
    if training.batch_size > 1:
        found.append(f"training.batch_size={training.batch_size // 2}")
    if training.optimiser is Optimiser.ADAMW:
        found.append("training.optimiser=adamw8bit")
    if not training.fp8_base:
        found.append("training.fp8_base=true")
    if training.text_encoder:
        found.append("training.text_encoder=false")
    lower = training.resolution * 3 // 4 // 64 * 64
    if lower >= SMALLEST_RESOLUTION:
        found.append(f"training.resolution={lower}")
    if training.rank >= LARGE_RANK:
        # Both, so that alpha / rank, the scale of the LoRA, stays.
        found.append(f"training.rank={training.rank // 2}")
        found.append(f"training.alpha={training.alpha / 2:g}")
    return tuple(found)
