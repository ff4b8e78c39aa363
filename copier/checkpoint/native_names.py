"""LDM's names of SDXL's modules from diffusers', without a checkpoint: a LoRA file has none."""

from __future__ import annotations

import re

from copier.checkpoint.names import UNET_ENDS, UNET_RESNET

_LEVEL_PART = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)")
_SAMPLER = re.compile(r"lora_unet_(down|up)_blocks_(\d+)_(?:down|up)samplers_0_conv")
_MIDDLE = re.compile(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)")
_ENDS = {
    f"lora_unet_{ours}".replace(".", "_"): f"lora_unet_{theirs}".replace(".", "_")
    for theirs, ours in (
        *UNET_ENDS,
        *(
            (f"label_emb.0.{2 * number - 2}", f"{embedding}.linear_{number}")
            for embedding in ("add_embedding", "class_embedding")
            for number in (1, 2)
        ),
    )
}
_INSIDE = {ours: theirs.replace(".", "_") for theirs, ours in UNET_RESNET}
_INSIDE["conv_shortcut"] = "skip_connection"


def native_unet_name(name: str) -> str:
    """LDM's name of a module of SDXL's U-Net; a name that is LDM's already, or not known, stays as it is.

    SDXL has two layers a level, as SD1 and SD2 have, and attention at the two inner ones of three.
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
