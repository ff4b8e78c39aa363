"""Stands in for sd-scripts' file of this name, and runs it with the widths of the checkpoint that it trains.

sd-scripts knows SD 1.5's widths only: the U-Net's and the autoencoder's are constants of its modules, the
text encoder's a literal ``CLIPTextConfig`` in its loader. For tests alone: so the real script trains the
pocket checkpoint, in a minute, and what it learns can be measured.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

UNET = "model.diffusion_model."
VAE = "first_stage_model.encoder."
TEXT = "cond_stage_model.transformer.text_model."
LEVELS = 4
LAYERS = 2


def shapes_of(path: str) -> dict[str, list[int]]:
    """The shapes in a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {key: value["shape"] for key, value in header.items() if key != "__metadata__"}


def narrow(shapes: dict[str, list[int]]) -> None:
    """Give sd-scripts' modules the widths of a checkpoint with these ``shapes``."""
    from library import model_util, original_unet

    first = shapes[f"{UNET}input_blocks.0.0.weight"][0]
    blocks = [f"{UNET}input_blocks.{1 + level * (LAYERS + 1)}" for level in range(LEVELS)]
    widths = tuple(shapes[f"{block}.0.out_layers.3.weight"][0] for block in blocks)
    original_unet.BLOCK_OUT_CHANNELS = widths
    original_unet.TIMESTEP_INPUT_DIM, original_unet.TIME_EMBED_DIM = first, 4 * first
    model_util.UNET_PARAMS_MODEL_CHANNELS = first
    model_util.UNET_PARAMS_CHANNEL_MULT = [width // first for width in widths]
    attention = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2"
    model_util.UNET_PARAMS_CONTEXT_DIM = shapes[f"{attention}.to_k.weight"][1]
    model_util.UNET_PARAMS_NUM_HEADS = max(1, min(8, first // 32))  # as copier.diffusion.load has it
    levels = [shapes[f"{VAE}down.{level}.block.0.conv2.weight"][0] for level in range(LEVELS)]
    model_util.VAE_PARAMS_CH = levels[0]
    model_util.VAE_PARAMS_CH_MULT = [width // levels[0] for width in levels]
    width = shapes[f"{TEXT}embeddings.token_embedding.weight"][1]
    config = model_util.CLIPTextConfig

    def narrower(**values: Any) -> Any:
        return config(
            **values
            | {
                "hidden_size": width,
                "intermediate_size": shapes[f"{TEXT}encoder.layers.0.mlp.fc1.weight"][0],
                "num_attention_heads": max(1, width // 64),
                "projection_dim": width,
            }
        )

    model_util.CLIPTextConfig = narrower


if __name__ == "__main__":
    folder = Path(os.environ["COPIER_SD_SCRIPTS_DIR"])
    sys.path.insert(0, str(folder))
    narrow(shapes_of(sys.argv[sys.argv.index("--pretrained_model_name_or_path") + 1]))
    sys.argv[0] = str(folder / "train_network.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
