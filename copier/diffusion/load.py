"""Loads a Stable Diffusion 1.x checkpoint, one safetensors file in LDM layout, into diffusers' modules.

No hub and no configuration file is asked: all sizes follow from the shapes in the file's header.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from copier.checkpoint import names
from copier.checkpoint.reader import TensorReader
from copier.diffusion.tokenizer import POSITIONS, VOCABULARY, load_tokenizer
from copier.errors import BadCheckpoint

log = logging.getLogger(__name__)

LATENT_SCALE = 0.18215
"""Latents times this have about unit variance; hard-coded in SD 1.x's hosts and trainers."""
LATENT_CHANNELS = 4
LATENT_STRIDE = 8
"""Pixels along one side of a latent (KL-f8)."""
_LISTED = 3


@dataclass(frozen=True)
class DiffusionModel:
    """A checkpoint in memory, in evaluation mode and without gradients.

    ``prediction_type`` is ``epsilon`` or ``v_prediction``; ``widths`` are the U-Net's channels from
    the outermost level on, ``context_width`` is that of the text encoder.
    """

    path: Path
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    widths: tuple[int, ...]
    context_width: int
    prediction_type: str

    @property
    def velocity(self) -> bool:
        """Whether the U-Net predicts velocity instead of noise."""
        return self.prediction_type == "v_prediction"


def load_checkpoint(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer_folder: Path | None = None,
) -> DiffusionModel:
    """The checkpoint at ``path`` on ``device`` in ``dtype``.

    ``tokenizer_folder`` keeps the tokenizer's files for the next time. Velocity prediction is known
    by the file's metadata ``modelspec.prediction_type``; without it the model predicts noise.

    Raises:
        BadInput: there is no such file.
        BadCheckpoint: it is not a checkpoint of Stable Diffusion 1.x; names the first keys or
            shapes that are wrong.
    """
    device = torch.device(device)
    with TensorReader(path) as reader:
        shapes = {key: info.shape for key, info in reader.header.tensors.items()}
        _refuse_other_families(shapes, reader.path)
        parts = (
            (unet_from_shapes, names.ldm_from_diffusers_unet, names.UNET_PREFIX),
            (autoencoder_from_shapes, names.ldm_from_diffusers_vae, names.VAE_PREFIX),
            (text_encoder_from_shapes, names.ldm_from_transformers_text, names.TEXT_PREFIX),
        )
        unet, vae, text_encoder = (
            _load_part(reader, shapes, build, ldm_key, prefix, device=device, dtype=dtype)
            for build, ldm_key, prefix in parts
        )
        # Not in the state dict, so still without memory; SD 1.x files hold it rounded at times.
        text_encoder.text_model.embeddings.position_ids = torch.arange(
            POSITIONS, device=device
        ).expand((1, -1))
        prediction = reader.metadata.get("modelspec.prediction_type", "epsilon")
        others = sum(not key.startswith(tuple(part[2] for part in parts)) for key in shapes)
        if others:
            log.info("%s: %d tensors of no part of the model are ignored", reader.path.name, others)
    return DiffusionModel(
        path=Path(path),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(tokenizer_folder),
        device=device,
        dtype=dtype,
        widths=tuple(unet.config.block_out_channels),
        context_width=unet.config.cross_attention_dim,
        prediction_type="v_prediction" if prediction in ("v", "v_prediction") else "epsilon",
    )


def unet_heads(first_width: int) -> int:
    """Attention heads at every level: 8 for SD 1.x's 320 channels, one for each 32 below 256."""
    return max(1, min(8, first_width // 32))


def text_heads(width: int) -> int:
    """Attention heads of a CLIP text encoder: one for each 64 channels (12 for 768)."""
    return max(1, width // 64)


Shapes = dict[str, tuple[int, ...]]


def unet_from_shapes(shapes: Shapes) -> Any:
    """SD 1.x's U-Net with the widths that the LDM keys' ``shapes`` tell."""
    prefix = names.UNET_PREFIX
    first = shapes[f"{prefix}input_blocks.0.0.weight"]
    widths = tuple(
        shapes[f"{prefix}input_blocks.{1 + level * (names.LAYERS + 1)}.0.out_layers.3.weight"][0]
        for level in range(names.LEVELS)
    )
    context = shapes[f"{prefix}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"][1]
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=first[1],
        block_out_channels=widths,
        layers_per_block=names.LAYERS,
        cross_attention_dim=context,
        # diffusers calls SD 1.x's number of heads attention_head_dim, for historical reasons.
        attention_head_dim=unet_heads(widths[0]),
    )


def autoencoder_from_shapes(shapes: Shapes) -> Any:
    """SD 1.x's autoencoder (KL-f8) with the widths that the LDM keys' ``shapes`` tell."""
    widths = tuple(
        shapes[f"{names.VAE_PREFIX}encoder.down.{level}.block.0.conv2.weight"][0]
        for level in range(names.LEVELS)
    )
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * names.LEVELS,
        up_block_types=("UpDecoderBlock2D",) * names.LEVELS,
        block_out_channels=widths,
        layers_per_block=names.LAYERS,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=LATENT_SCALE,
    )


def text_encoder_from_shapes(shapes: Shapes) -> Any:
    """CLIP's text encoder with the sizes that the LDM keys' ``shapes`` tell."""
    prefix = f"{names.TEXT_PREFIX}text_model."
    vocabulary, width = shapes[f"{prefix}embeddings.token_embedding.weight"]
    positions = shapes[f"{prefix}embeddings.position_embedding.weight"][0]
    if (vocabulary, positions) != (VOCABULARY, POSITIONS):
        raise BadCheckpoint(
            f"the text encoder has {vocabulary} tokens and {positions} positions: SD 1.x has "
            f"{VOCABULARY} and {POSITIONS}"
        )
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0],
            projection_dim=width,
            num_hidden_layers=names.TEXT_LAYERS,
            num_attention_heads=text_heads(width),
            max_position_embeddings=positions,
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def _refuse_other_families(shapes: Shapes, path: Path) -> None:
    if any(key.startswith("lora_") for key in shapes):
        raise BadCheckpoint(f"{path.name!r} is a LoRA: give the checkpoint that it is for")
    if any(key.startswith("conditioner.") for key in shapes):
        raise BadCheckpoint(
            f"{path.name!r} is an SDXL checkpoint: the builtin trainer takes Stable Diffusion 1.x"
        )
    first = shapes.get(f"{names.UNET_PREFIX}input_blocks.0.0.weight")
    if first is not None and len(first) == 4 and first[1] != LATENT_CHANNELS:
        raise BadCheckpoint(
            f"{path.name!r} takes {first[1]} latent channels (an inpainting checkpoint has 9): "
            f"give one with {LATENT_CHANNELS}"
        )


def _load_part(
    reader: TensorReader,
    shapes: Shapes,
    build: Callable[[Shapes], Any],
    ldm_key: Callable[[str], str],
    prefix: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """Build one part without memory for its weights, and give it the file's."""
    name = reader.path.name
    try:
        with torch.device("meta"):
            module = build(shapes)
    except KeyError as error:
        raise BadCheckpoint(
            f"{name!r} has no {error.args[0]!r}: give a checkpoint of Stable Diffusion 1.x, one "
            "file in the LDM layout"
        ) from error
    except (ValueError, IndexError) as error:
        raise BadCheckpoint(
            f"{name!r} has shapes that Stable Diffusion 1.x has not: {error}"
        ) from error
    wanted = {key: (ldm_key(key), tensor.shape) for key, tensor in module.state_dict().items()}
    missing = [key for key, _ in wanted.values() if key not in shapes]
    if missing:
        raise BadCheckpoint(f"{name!r} is incomplete: it lacks {_listing(missing)}")
    known = {key for key, _ in wanted.values()} | set(names.sd1_buffers())
    unknown = [key for key in shapes if key.startswith(prefix) and key not in known]
    if unknown:
        raise BadCheckpoint(
            f"{name!r} is no Stable Diffusion 1.x checkpoint: it also has {_listing(unknown)}"
        )
    state = {}
    for key, (theirs, shape) in wanted.items():
        squeezed = names.squeezed_in_diffusers(theirs) and shapes[theirs] == (*shape, 1, 1)
        if shapes[theirs] != tuple(shape) and not squeezed:
            raise BadCheckpoint(
                f"{name!r}: {theirs!r} has the shape {shapes[theirs]}, expected is {tuple(shape)}"
            )
        state[key] = reader.tensor(theirs).reshape(shape).to(device=device, dtype=dtype)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _listing(keys: list[str]) -> str:
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(map(repr, keys[:_LISTED])) + rest
