"""Runs sd-scripts' tools in child processes, and LoRAs over the pocket checkpoint to run them on."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from benchmarks import sd_scripts
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.names import TEXT_LAYERS, ModuleName
from copier.checkpoint.shapes import Sizes, TextSizes, checkpoint_shapes
from copier.ops.lora_file import network_metadata, write_lora
from copier.pocket.architecture import AUTOENCODER_WIDTHS, TEXT_WIDTH, UNET_WIDTHS

POCKET = Sizes(
    Family.SD1, UNET_WIDTHS, AUTOENCODER_WIDTHS, (TextSizes(TEXT_WIDTH, 4 * TEXT_WIDTH, TEXT_LAYERS),)
)

RunTools = Callable[..., None]
WriteLora = Callable[..., LoraWeights]


@pytest.fixture(scope="session")
def run_tools() -> RunTools:
    """Runs tools of the checkout in one child process: ``run_tools(("resize_lora.py", "--model", ...))``."""

    def run(*tools: sd_scripts.Tool, sizes: Sizes = POCKET) -> None:
        folder, reason = sd_scripts.checkout()
        assert folder is not None, reason
        (text,) = sizes.text
        widths = {
            "unet": sizes.unet,
            "autoencoder": sizes.autoencoder,
            "text": text.width,
            "feed_forward": text.feed_forward,
        }
        command = sd_scripts.command(folder, *tools, widths=widths)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture(scope="session")
def write_random_lora() -> WriteLora:
    """Writes a LoRA over ``modules`` whose scales alpha / rank are no powers of two; fp16."""

    def write(
        path: Path,
        modules: Iterable[ModuleName],
        *,
        seed: int,
        rank: int = 24,
        decay: float = 0.8,
        sizes: Sizes = POCKET,
    ) -> LoraWeights:
        shapes, numbers = checkpoint_shapes(sizes), torch.Generator().manual_seed(seed)
        deltas = {}
        for module in modules:
            out, *rest = shapes[module.ldm]
            mine = rank // 2 + 1 if math.prod(rest[1:]) > 1 else rank
            up = torch.randn(out, mine, generator=numbers) / math.sqrt(out) * decay ** torch.arange(mine)
            down = torch.randn(mine, *rest, generator=numbers) / math.sqrt(math.prod(rest))
            deltas[module.kohya] = LowRankDelta(up[:, :, None, None] if rest[1:] else up, down, 0.7 * mine)
        weights = LoraWeights(deltas)
        write_lora(path, weights, network_metadata(weights, name=path.stem, family=Family.SD1))
        return weights

    return write
