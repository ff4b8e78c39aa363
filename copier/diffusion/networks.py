"""diffusers' and transformers' modules in the sizes of a checkpoint; no configuration file is asked.

Built under ``torch.device("meta")`` they take no memory.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from copier.checkpoint import names
from copier.checkpoint.shapes import LATENT_CHANNELS, POSITIONS, VOCABULARY, Sizes, TextSizes
from copier.checkpoint.structure import TIME_ID_WIDTH, TextStructure

_HEAD_WIDTH = 64


def unet_heads(first_width: int) -> int:
    """Attention heads at every level of SD 1.x: 8 for its 320 channels, one for each 32 below 256."""
    return max(1, min(8, first_width // 32))


def heads_of_64(width: int) -> int:
    """Attention heads of 64 channels: of CLIP's and OpenCLIP's layers, and of the U-Nets since SD 2.x."""
    return max(1, width // _HEAD_WIDTH)


def build_unet(sizes: Sizes) -> Any:
    """The U-Net; raises ValueError where a width cannot be divided as the family's must be."""
    structure, widths = sizes.structure, sizes.unet
    down = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in structure.depths)
    up = tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(structure.depths))
    heads = [heads_of_64(width) if structure.linear else unet_heads(widths[0]) for width in widths]
    added: dict[str, Any] = {}
    if structure.sized:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": sizes.label,
        }
    return UNet2DConditionModel(
        sample_size=structure.side // 8,
        in_channels=LATENT_CHANNELS,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=widths,
        layers_per_block=names.LAYERS,
        cross_attention_dim=sizes.context,
        # diffusers calls the number of heads attention_head_dim, for historical reasons.
        attention_head_dim=tuple(heads),
        transformer_layers_per_block=tuple(depth or structure.middle_depth for depth in structure.depths),
        use_linear_projection=structure.linear,
        **added,
    )


def build_autoencoder(widths: tuple[int, ...], latent_scale: float) -> Any:
    """The autoencoder (KL-f8); raises ValueError where a width is no multiple of 32."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * names.LEVELS,
        up_block_types=("UpDecoderBlock2D",) * names.LEVELS,
        block_out_channels=widths,
        layers_per_block=names.LAYERS,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=latent_scale,
    )


def build_text_encoder(text: TextStructure, size: TextSizes) -> Any:
    """One text encoder, with its projection where that is read; raises ValueError for an odd width."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=size.feed_forward,
        projection_dim=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=heads_of_64(size.width),
        max_position_embeddings=POSITIONS,
        hidden_act="gelu" if text.open_clip else "quick_gelu",
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    return (CLIPTextModelWithProjection if text.pooled else CLIPTextModel)(config)
