"""Full-size Stable Diffusion 1.5 files from a seed: random numbers under the real names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.names import (
    UNET_PREFIX,
    kohya_modules_text,
    kohya_modules_unet,
    sd1_buffers,
)
from copier.checkpoint.shapes import POSITIONS, REAL, Shape, sd1_shapes
from copier.checkpoint.writer import TensorWriter
from copier.ops.lora_file import network_metadata, write_lora

DECAY = 0.93
"""Each direction of a LoRA has this part of the one before: of 64, the last has 1 % of the first."""

_BLOCK = 1 << 22
"""Random numbers that a checkpoint is made of, over and over: its content takes no part in any figure."""


def module_shapes(*, conv: bool = False) -> dict[str, Shape]:
    """kohya's module names with the shapes of their weights: 264 linear ones, 350 with residual blocks."""
    shapes = sd1_shapes(REAL)
    return {
        module.kohya: shapes[module.ldm] for module in (*kohya_modules_text(), *kohya_modules_unet(conv=conv))
    }


def write_random_lora(path: Path, *, seed: int, rank: int, conv: bool = False) -> None:
    """A LoRA over all linear modules, and those of the residual blocks where ``conv``; fp16."""
    numbers = torch.Generator().manual_seed(seed)
    falling = DECAY ** torch.arange(rank)
    deltas = {}
    for name, (out, *rest) in module_shapes(conv=conv).items():
        up = 0.1 * torch.randn(out, rank, generator=numbers) / math.sqrt(out) * falling
        down = torch.randn(rank, *rest, generator=numbers) / math.sqrt(math.prod(rest))
        deltas[name] = LowRankDelta(up[:, :, None, None] if rest[1:] else up, down, alpha=rank / 2)
    weights = LoraWeights(deltas)
    write_lora(path, weights, network_metadata(weights, name=path.stem, family=Family.SD1))


def checkpoint_shapes(*, ema: bool = False) -> dict[str, Shape]:
    """The keys of a single file with their shapes; ``ema`` adds the U-Net's moving average."""
    shapes = sd1_shapes(REAL)
    if ema:
        shapes |= {
            "model_ema." + key.removeprefix("model.").replace(".", ""): shape
            for key, shape in shapes.items()
            if key.startswith(UNET_PREFIX)
        }
    return shapes


def write_random_checkpoint(
    path: Path, shapes: Mapping[str, Shape], *, seed: int, dtype: torch.dtype
) -> None:
    """A checkpoint of ``shapes`` in ``dtype``, with SD 1.5's buffer of positions."""
    block = 0.03 * torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))
    (positions,) = sd1_buffers()
    plan = {
        positions: (torch.int64, (1, POSITIONS)),
        **{key: (dtype, shape) for key, shape in shapes.items()},
    }
    with TensorWriter(path, plan) as writer:
        writer.write(positions, torch.arange(POSITIONS)[None])
        for key, shape in shapes.items():
            count = math.prod(shape)
            numbers = block.repeat(-(-count // _BLOCK))[:count]
            writer.write(key, numbers.reshape(shape).to(dtype))
