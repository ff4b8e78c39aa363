"""Stands in for sd-scripts' file of this name, and runs it with the widths of the checkpoint that it trains.

sd-scripts knows SD 1.5's widths only. For tests alone: so the real script trains the pocket checkpoint, in a
minute, and what it learns can be measured. COPIER_SD_SCRIPTS_DIR names the real folder.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

UNET = "model.diffusion_model.input_blocks"
VAE = "first_stage_model.encoder.down"
TEXT = "cond_stage_model.transformer.text_model"
LEVELS = range(4)
NARROW = Path(__file__).resolve().parents[3] / "benchmarks" / "sd_scripts_child.py"


def widths(checkpoint: str) -> dict[str, object]:
    """What ``narrow`` takes, from the shapes in the checkpoint's header."""
    with open(checkpoint, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {key: value["shape"] for key, value in header.items() if key != "__metadata__"}
    return {
        "unet": [shapes[f"{UNET}.{1 + 3 * level}.0.out_layers.3.weight"][0] for level in LEVELS],
        "autoencoder": [shapes[f"{VAE}.{level}.block.0.conv2.weight"][0] for level in LEVELS],
        "text": shapes[f"{TEXT}.embeddings.token_embedding.weight"][1],
        "feed_forward": shapes[f"{TEXT}.encoder.layers.0.mlp.fc1.weight"][0],
    }


if __name__ == "__main__":
    folder = os.environ["COPIER_SD_SCRIPTS_DIR"]
    sys.path.insert(0, folder)
    checkpoint = sys.argv[sys.argv.index("--pretrained_model_name_or_path") + 1]
    runpy.run_path(str(NARROW))["narrow"](**widths(checkpoint))
    sys.argv[0] = os.path.join(folder, "train_network.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
