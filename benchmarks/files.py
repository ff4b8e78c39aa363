"""Full-size files from a seed: random numbers under the real names and shapes.

`python -m benchmarks.files FAMILY FILE` writes a checkpoint of sd1, sd2 or sdxl that can be sampled.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.names import (
    TEXT_PREFIX,
    UNET_PREFIX,
    kohya_modules_text,
    kohya_modules_unet,
    sd1_buffers,
)
from copier.checkpoint.shapes import POSITIONS, REAL, Shape, checkpoint_shapes
from copier.checkpoint.structure import STRUCTURES
from copier.checkpoint.writer import TensorWriter
from copier.ops.lora_file import network_metadata, write_lora

DECAY = 0.93
"""Each direction of a LoRA has this part of the one before: of 64, the last has 1 % of the first."""

_BLOCK = 1 << 22
"""Random numbers that a checkpoint is made of, over and over: its content takes no part in any figure."""


def module_shapes(*, conv: bool = False) -> dict[str, Shape]:
    """kohya's module names with the shapes of their weights: 264 linear ones, 350 with residual blocks."""
    shapes = file_shapes()
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


def file_shapes(family: Family = Family.SD1, *, ema: bool = False) -> dict[str, Shape]:
    """The keys of a single file with their shapes; ``ema`` adds the U-Net's moving average."""
    shapes = checkpoint_shapes(REAL[family])
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
    """A checkpoint of ``shapes`` in ``dtype``, with SD 1.5's buffer of positions where it is one of SD 1.x.

    Weights are normal with a variance of one over the number of inputs, norms are one and biases zero, so
    that activations stay finite. One tensor at a time is in memory.
    """
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))
    positions = sd1_buffers() if any(key.startswith(TEXT_PREFIX) for key in shapes) else ()
    plan = {
        **dict.fromkeys(positions, (torch.int64, (1, POSITIONS))),
        **{key: (dtype, shape) for key, shape in shapes.items()},
    }
    with TensorWriter(path, plan) as writer:
        for key in positions:
            writer.write(key, torch.arange(POSITIONS)[None])
        for key, shape in shapes.items():
            writer.write(key, _values(key, shape, block).to(dtype))


def _values(key: str, shape: Shape, block: torch.Tensor) -> torch.Tensor:
    if len(shape) < 2:
        return torch.full(shape, 0.0 if key.endswith("bias") else 1.0)
    count = math.prod(shape)
    inputs = math.prod(shape[1:])
    return (block.repeat(-(-count // _BLOCK))[:count] / math.sqrt(inputs)).reshape(shape)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("family", choices=[family.value for family in STRUCTURES])
    parser.add_argument("file", type=Path, help="it must not exist")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.file.exists():
        parser.error(f"{arguments.file} exists: choose another name")
    shapes = file_shapes(Family(arguments.family))
    write_random_checkpoint(arguments.file, shapes, seed=arguments.seed, dtype=torch.float16)


if __name__ == "__main__":
    main()
