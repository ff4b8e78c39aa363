"""A random checkpoint with SD 1.x's exact keys and very small widths, written the second way.

The builders here know nothing of ``copier.diffusion.load``: they state the sizes that it must infer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from copier.checkpoint import names
from copier.checkpoint.writer import write_tensors

UNET_WIDTHS = (64, 32, 64, 64)
VAE_WIDTHS = (32, 64, 32, 32)
TEXT_WIDTH = 64
FEED_FORWARD = 96


def modules() -> dict[str, torch.nn.Module]:
    """The three parts with random weights, by their prefix in the file."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=UNET_WIDTHS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=12,
            num_attention_heads=1,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
        )
    )
    return {"unet": unet.eval(), "vae": vae.eval(), "text": text.eval()}


def tensors(parts: dict[str, torch.nn.Module], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The parts' weights by LDM key, as a checkpoint file has them."""
    keys = {
        "unet": names.ldm_from_diffusers_unet,
        "vae": names.ldm_from_diffusers_vae,
        "text": names.ldm_from_transformers_text,
    }
    result = {}
    for part, module in parts.items():
        for key, tensor in module.state_dict().items():
            ldm = keys[part](key)
            if names.squeezed_in_diffusers(ldm):
                tensor = tensor[..., None, None]
            result[ldm] = tensor.to(dtype)
    result[names.sd1_buffers()[0]] = torch.arange(77)[None]
    return result


def write_tiny(path: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A checkpoint file of about 8 million random weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        parts = modules()
        # At random the text encoder hardly tells prompts apart, and the U-Net hardly hears it.
        parts["text"].text_model.embeddings.token_embedding.weight.mul_(20)  # type: ignore[union-attr]
        for name, weight in parts["unet"].named_parameters():
            if "attn2.to_out" in name and name.endswith("weight"):
                weight.mul_(8)
    write_tensors(path, tensors(parts, dtype))
    return path
