"""transformers' paths of the modules of text encoders, from the keys of single-file checkpoints.

SD2's text encoder and SDXL's second one are stored as OpenCLIP names them, with q, k and v in one weight;
LoRA files use the names of transformers' ``CLIPTextModel`` for them too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from copier.checkpoint.family import Family
from copier.checkpoint.rows import Rows, thirds

_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
OPEN_CLIP_PARTS = {
    "attn.in_proj_weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj.weight": ("self_attn.out_proj",),
    "mlp.c_fc.weight": ("mlp.fc1",),
    "mlp.c_proj.weight": ("mlp.fc2",),
}
"""OpenCLIP's key of a weight inside a layer -> transformers' modules that it holds, from the top down."""


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder of a checkpoint: where its keys are, and what LoRA files call it.

    ``kohya`` are prefixes of names with "_", the first of them kohya's own; ``dotted`` of peft's names.
    ``family`` is None where all families call it so.
    """

    prefix: str
    kohya: tuple[str, ...]
    dotted: tuple[str, ...]
    open_clip: bool = False
    family: Family | None = None


_SOLE = ("text_encoder.", "base_model.model.")
_T5 = "text_encoders.t5xxl.transformer."

# Hosts take lora_te1_ for SD 1.x as well, and lora_te_ for the first encoder of any family.
TEXT_ENCODERS: tuple[TextEncoder, ...] = (
    TextEncoder("cond_stage_model.transformer.", ("lora_te_", "lora_te1_"), _SOLE),
    TextEncoder("cond_stage_model.model.", ("lora_te_", "lora_te1_"), _SOLE, open_clip=True),
    TextEncoder("conditioner.embedders.0.transformer.", ("lora_te1_", "lora_te_"), ("text_encoder.",)),
    # The refiner, which has the second encoder only.
    TextEncoder(
        "conditioner.embedders.0.model.", ("lora_te_", "lora_te2_"), ("text_encoder_2.",), open_clip=True
    ),
    TextEncoder("conditioner.embedders.1.model.", ("lora_te2_",), ("text_encoder_2.",), open_clip=True),
    TextEncoder("text_encoders.clip_l.transformer.", ("lora_te1_", "lora_te_"), ("text_encoder.",)),
    TextEncoder("text_encoders.clip_g.transformer.", ("lora_te2_",), ("text_encoder_2.",)),
    # kohya calls FLUX's T5 the third encoder too, though it is its second.
    TextEncoder(_T5, ("lora_te3_", "lora_te2_"), ("text_encoder_2.",), family=Family.FLUX),
    TextEncoder(_T5, ("lora_te3_",), ("text_encoder_3.",), family=Family.SD3),
)
"""The text encoders of all families; no two give two weights of one file the same name."""


def text_parts(encoder: TextEncoder, key: str, shape: Sequence[int]) -> list[tuple[str, Rows | None]]:
    """transformers' paths of the weight that the encoder calls ``key`` (without its prefix).

    Each with its rows (None: all). [] for what LoRAs do not name: OpenCLIP's ``text_projection`` is
    stored transposed, so no LoRA can be added to it as it is.
    """
    if not encoder.open_clip:
        path, _, parameter = key.rpartition(".")
        # Some files of SD 1.x lack the level "text_model"; hosts put it in.
        short = path.startswith(("encoder.layers.", "embeddings."))
        return [(f"text_model.{path}" if short else path, None)] if parameter == "weight" else []
    match = _OPEN_CLIP_LAYER.fullmatch(key)
    if match is None or match[2] not in OPEN_CLIP_PARTS:
        return []
    parts = OPEN_CLIP_PARTS[match[2]]
    paths = [f"text_model.encoder.layers.{match[1]}.{part}" for part in parts]
    rows = thirds(shape[0]) if len(parts) == 3 else (None,)
    return list(zip(paths, rows, strict=False))
