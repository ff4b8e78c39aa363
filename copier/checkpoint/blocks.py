"""The blocks of a network under the names that users of block weights know."""

from __future__ import annotations

import re

from copier.checkpoint.family import Family

TEXT_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.")
"""What the keys of text encoders start with in a single-file checkpoint, whatever its family."""

_NAMES = {
    "input_blocks": "IN",
    "middle_block": "M",
    "output_blocks": "OUT",
    "double_blocks": "DB",
    "single_blocks": "SB",
    "joint_blocks": "JB",
}
_KINDS = "|".join(_NAMES)
_KEY = re.compile(rf"(?:model\.diffusion_model\.)?({_KINDS})\.(\d{{1,4}})\.")
_NATIVE = re.compile(rf"(?:^|_)({_KINDS})_(\d{{1,4}})_")
_LEVEL = re.compile(
    r"(down|up)_blocks_(\d{1,4})_(?:(?:attentions|resnets)_(\d{1,4})|downsamplers|upsamplers)_"
)
_TRANSFORMER = re.compile(r"(single_)?transformer_blocks_(\d{1,4})_")
_TRANSFORMER_NAMES = {Family.FLUX: "DB", Family.SD3: "JB"}
_TEXT_MODULE = re.compile(
    r"lora_te\d?_|text_encoder|cond_stage_model_|conditioner_|base_model_model_text_model_"
)
_LAYERS = 2
"""Residual blocks of a level on the way down, in every U-Net of the families; one more on the way up."""


def block_of(key: str) -> str:
    """The block of the tensor that a checkpoint calls ``key``.

    BASE        text encoders
    IN00 ..     a U-Net's way down (to IN11 in SD1 and SD2, to IN08 in SDXL), M00 its middle, OUT00 .. its
                way up
    DB00 ..     FLUX's double blocks, SB00 .. its single blocks
    JB00 ..     SD3's joint blocks
    OTHER       everything else (time embedding, output, autoencoder)
    """
    if key.startswith(TEXT_PREFIXES):
        return "BASE"
    match = _KEY.match(key)
    return _numbered(*match.groups()) if match else "OTHER"


def block_of_module(name: str, family: Family) -> str:
    """The same of a module, by its name in a LoRA file for ``family``: without a checkpoint at hand."""
    flat = name.replace(".", "_")
    if _TEXT_MODULE.match(flat):
        return "BASE"
    if match := _LEVEL.search(flat):
        way, level, layer = match.groups()
        number = int(level) * (_LAYERS + 1) + int(layer or _LAYERS)
        return f"IN{number + 1:02d}" if way == "down" else f"OUT{number:02d}"
    if match := _NATIVE.search(flat):
        return _numbered(*match.groups())
    if "mid_block_" in flat:
        return "M00"
    if family in _TRANSFORMER_NAMES and (match := _TRANSFORMER.search(flat)):
        return f"{'SB' if match[1] else _TRANSFORMER_NAMES[family]}{int(match[2]):02d}"
    return "IN00" if flat.endswith("conv_in") else "OTHER"


def _numbered(kind: str, number: str) -> str:
    return "M00" if kind == "middle_block" else f"{_NAMES[kind]}{int(number):02d}"
