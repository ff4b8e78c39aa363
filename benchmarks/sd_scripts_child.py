"""Runs tools of sd-scripts, which need a process of their own: `python sd_scripts_child.py JOB`.

The JOB is what ``benchmarks.sd_scripts.command`` makes. The LoRA tools import all of the training code, and
that imports packages which they never use: these are replaced by stand-ins where they are not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from unittest.mock import MagicMock

NEVER_USED = ("cv2", "einops", "imagesize", "toml", "torchvision")


def main() -> None:
    """The tools of the job, one after the other."""
    job = json.loads(sys.argv[1])
    # They ask which packages there are when they are imported, so they come before the stand-ins.
    for name in ("diffusers", "transformers"):
        importlib.import_module(name)
    for name in NEVER_USED:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = MagicMock(name=name)
    networks = Path(job["checkout"], "networks")
    sys.path[:1] = [str(networks), job["checkout"]]
    if job["widths"] is not None:
        narrow(**job["widths"])
    for tool, *arguments in job["tools"]:
        path = str(networks / tool)
        sys.argv = [path, *arguments]
        runpy.run_path(path, run_name="__main__")


def narrow(unet: list[int], autoencoder: list[int], text: int, feed_forward: int) -> None:
    """Replace SD 1.5's widths, which are constants of its modules and literals in a call.

    Heads are those of ``copier.diffusion.networks``.
    """
    model_util = importlib.import_module("library.model_util")
    original_unet = importlib.import_module("library.original_unet")
    original_unet.BLOCK_OUT_CHANNELS = tuple(unet)
    original_unet.TIMESTEP_INPUT_DIM = unet[0]
    original_unet.TIME_EMBED_DIM = 4 * unet[0]
    model_util.UNET_PARAMS_MODEL_CHANNELS = unet[0]
    model_util.UNET_PARAMS_CHANNEL_MULT = [width // unet[0] for width in unet]
    model_util.UNET_PARAMS_CONTEXT_DIM = text
    model_util.UNET_PARAMS_NUM_HEADS = max(1, min(8, unet[0] // 32))
    model_util.VAE_PARAMS_CH = autoencoder[0]
    model_util.VAE_PARAMS_CH_MULT = [width // autoencoder[0] for width in autoencoder]
    config = model_util.CLIPTextConfig
    sizes = {"hidden_size": text, "intermediate_size": feed_forward}
    sizes["num_attention_heads"] = max(1, text // 64)
    model_util.CLIPTextConfig = lambda **given: config(**{**given, **sizes})


if __name__ == "__main__":
    main()
