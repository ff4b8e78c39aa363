"""Narrow random checkpoints of SD 2.x and SDXL with the real structure, in LDM layout.

Keys and shapes come from ``tests/checkpoint/narrow_models.py``, which knows nothing of the code under test.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from copier.checkpoint.family import Family
from copier.checkpoint.writer import write_tensors
from tests.checkpoint import narrow_models as narrow

TOKENS = 49408
TEXT = 64
LABEL = TEXT + 6 * 256
SD2_WIDTHS = (32, 64, 64, 64)
SDXL_WIDTHS = (32, 64, 64)
VAE_WIDTHS = (32, 32, 64, 64)
SD2_TEXT = "cond_stage_model.model."
CLIP_L, CLIP_G = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."

def shapes(family: Family) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a whole file."""
    if family is Family.SD2:
        unet = narrow.unet(SD2_WIDTHS, (1, 1, 1, 0), TEXT, linear=True)
        text = narrow.open_clip(SD2_TEXT, 24, TEXT, tokens=TOKENS)
    else:
        unet = narrow.unet(SDXL_WIDTHS, (0, 2, 10), 2 * TEXT, linear=True, label=LABEL)
        text = narrow.clip(CLIP_L, 12, TEXT, tokens=TOKENS)
        text |= narrow.open_clip(CLIP_G, 32, TEXT, tokens=TOKENS)
    return {**unet, **narrow.vae(VAE_WIDTHS), **text}


def tensors(family: Family, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights with which the prompt plainly shows in what the U-Net predicts."""
    noise = torch.Generator().manual_seed(seed)
    return {key: _weight(key, shape, noise) for key, shape in shapes(family).items()}


def autoencoder_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """An autoencoder alone, under the keys of a checkpoint."""
    noise = torch.Generator().manual_seed(seed)
    return {key: _weight(key, shape, noise) for key, shape in narrow.vae(VAE_WIDTHS).items()}


def write_family(path: Path, family: Family, *, without: str = "nothing") -> Path:
    """A checkpoint file of about 15 million weights, but for the keys that contain ``without``."""
    write_tensors(path, {key: value for key, value in tensors(family).items() if without not in key})
    return path


def _weight(key: str, shape: tuple[int, ...], noise: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=noise)
    if key.endswith("bias"):
        return 0.1 * values
    if "embedding" in key:
        return 0.5 * values
    if len(shape) < 2:  # a norm
        return 1.0 + 0.1 * values
    # Many blocks at full strength would magnify rounding.
    damped = 0.3 if key.endswith((".net.2.weight", "attn1.to_out.0.weight")) else 1.0
    return damped * values / math.sqrt(math.prod(shape[1:]))
