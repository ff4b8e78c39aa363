"""A checkpoint in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from copier.checkpoint.family import Family
from copier.checkpoint.header import Header
from copier.checkpoint.prediction import Parameterisation
from copier.checkpoint.structure import STRUCTURES, Structure

UNET = "unet"


@dataclass(frozen=True)
class ModulePath:
    """A module of a loaded model: ``part`` is ``UNET`` or the number of a text encoder, "0" or "1"."""

    part: str
    path: str


@dataclass(frozen=True)
class DiffusionModel:
    """A checkpoint in memory, in evaluation mode and without gradients.

    Attributes:
        widths: the U-Net's channels from the outermost level on.
        context_width: features that cross attention reads of each token.
        text_encoders: one, or SDXL's two.
        predicts: what the U-Net predicts, and along which noise schedule.
        modules: where each name is that a LoRA can call a weight by.
    """

    path: Path
    header: Header
    family: Family
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    widths: tuple[int, ...]
    context_width: int
    predicts: Parameterisation
    modules: Mapping[str, ModulePath]

    @property
    def structure(self) -> Structure:
        """What all checkpoints of its family have in common."""
        return STRUCTURES[self.family]

    @property
    def text_encoder(self) -> Any:
        """The first text encoder, of SD 1.x and 2.x the only one."""
        return self.text_encoders[0]

    @property
    def velocity(self) -> bool:
        """Whether the U-Net predicts velocity instead of noise."""
        return self.predicts.velocity

    def part(self, name: str) -> Any:
        """The module that ``ModulePath.part`` calls so."""
        return self.unet if name == UNET else self.text_encoders[int(name)]

    def weight_of(self, name: str) -> torch.nn.Parameter | None:
        """The weight that a LoRA calls ``name``, below what peft may have wrapped around its module."""
        place = self.modules.get(name)
        if place is None:
            return None
        module = self.part(place.part).get_submodule(place.path)
        weight = getattr(module, "base_layer", module).weight
        return weight if isinstance(weight, torch.nn.Parameter) else None
