"""The blocks of a network under the names that users of block weights know."""

from __future__ import annotations

import re

TEXT_ENCODERS = ("cond_stage_model.", "conditioner.", "text_encoders.")
"""What the keys of text encoders start with in a single-file checkpoint, whatever its family."""

_NAMES = {
    "input_blocks": "IN",
    "middle_block": "M",
    "output_blocks": "OUT",
    "double_blocks": "DB",
    "single_blocks": "SB",
    "joint_blocks": "JB",
}
_BLOCK = re.compile(rf"(?:model\.diffusion_model\.)?({'|'.join(_NAMES)})\.(\d+)\.")


def block_of(key: str) -> str:
    """The block of the tensor that a checkpoint calls ``key``.

    BASE        text encoders
    IN00 ..     a U-Net's way down (to IN11 in SD1 and SD2, to IN08 in SDXL), M00 its middle, OUT00 .. its
                way up
    DB00 ..     FLUX's double blocks, SB00 .. its single blocks
    JB00 ..     SD3's joint blocks
    OTHER       everything else (time embedding, output, autoencoder)
    """
    if key.startswith(TEXT_ENCODERS):
        return "BASE"
    match = _BLOCK.match(key)
    if match is None:
        return "OTHER"
    kind, number = match.groups()
    return "M00" if kind == "middle_block" else f"{_NAMES[kind]}{int(number):02d}"
