"""Merges a LoRA as sd-scripts' `train_network.py --base_weights` does; a tool for its child process.

Arguments: checkpoint, LoRA, multiplier, dtype of the models (as torch names it), output.
"""

from __future__ import annotations

import importlib
import sys

import torch
from safetensors.torch import save_file

checkpoint, lora, multiplier, name, output = sys.argv[1:]
model_util, networks = importlib.import_module("library.model_util"), importlib.import_module("lora")
dtype = getattr(torch, name)
text_encoder, vae, unet = model_util.load_models_from_stable_diffusion_checkpoint(False, checkpoint)
unet.to(dtype)
text_encoder.to(dtype)
network, weights = networks.create_network_from_weights(
    float(multiplier), lora, vae, text_encoder, unet, for_inference=True
)
network.merge_to(text_encoder, unet, weights, dtype, "cpu")
models = {"unet": unet, "text_encoder": text_encoder}
save_file(
    {
        f"{part}.{key}": tensor.contiguous()
        for part, model in models.items()
        for key, tensor in model.state_dict().items()
    },
    output,
)
