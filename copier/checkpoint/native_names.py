"""The makers' names of modules, and their blocks, from names alone: a LoRA file has no checkpoint."""

from __future__ import annotations

import re

from copier.checkpoint.blocks import block_of
from copier.checkpoint.family import Family
from copier.checkpoint.names import UNET_ENDS, UNET_RESNET

_LEVEL_PART = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)")
_SAMPLER = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(?:down|up)samplers_0_conv")
_MIDDLE = re.compile(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)")
_ENDS = {
    f"lora_unet_{ours}".replace(".", "_"): f"lora_unet_{theirs}".replace(".", "_")
    for theirs, ours in (
        *UNET_ENDS,
        ("label_emb.0.0", "add_embedding.linear_1"),
        ("label_emb.0.2", "add_embedding.linear_2"),
    )
}
_INSIDE = {ours: theirs.replace(".", "_") for theirs, ours in UNET_RESNET}
_INSIDE["conv_shortcut"] = "skip_connection"
_NATIVE_BLOCK = re.compile(
    r"lora_unet_(input_blocks|middle_block|output_blocks|double_blocks|single_blocks|joint_blocks)_(\d+)_"
)
_DIFFUSERS_BLOCK = re.compile(r"(?:transformer|lora_transformer|lycoris)_(single_)?transformer_blocks_(\d+)_")


def native_unet_name(name: str) -> str:
    """LDM's name of a module of SDXL's U-Net; a name that is LDM's already, or not known, stays as it is.

    Of SD1 and SD2 the number of the block is right too (all have two layers a level), though not the
    place of a sampler in it.
    """
    if name in _ENDS:
        return _ENDS[name]
    if match := _MIDDLE.fullmatch(name):
        kind, number, inside = match.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"lora_unet_middle_block_{place}_{_INSIDE.get(inside, inside)}"
    if match := _SAMPLER.fullmatch(name):
        last = 3 * int(match[2]) + 2
        down = match[1] == "down"
        return f"lora_unet_input_blocks_{last + 1}_0_op" if down else f"lora_unet_output_blocks_{last}_2_conv"
    if match := _LEVEL_PART.fullmatch(name):
        way, level, kind, layer, inside = match.groups()
        side, first = ("input", 1) if way == "down" else ("output", 0)
        place = 1 if kind == "attentions" else 0
        number = first + 3 * int(level) + int(layer)
        return f"lora_unet_{side}_blocks_{number}_{place}_{_INSIDE.get(inside, inside)}"
    return name


def block_of_module(name: str, family: Family) -> str:
    """The block, as ``blocks.block_of`` names it, of a LoRA's module under its canonical name."""
    if name.startswith(("lora_te", "text_encoder")):
        return "BASE"
    match = _NATIVE_BLOCK.match(native_unet_name(name))
    if match is not None:
        return block_of(f"{match[1]}.{match[2]}.")
    match = _DIFFUSERS_BLOCK.match(name.replace(".", "_"))
    if match is None:
        return "OTHER"
    double = "joint_blocks" if family is Family.SD3 else "double_blocks"
    return block_of(f"{'single_blocks' if match[1] else double}.{match[2]}.")
