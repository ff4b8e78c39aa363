"""diffusers' paths of a U-Net's modules, from the paths that LDM gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from copier.checkpoint.names import UNET_ENDS, UNET_RESNET

_INSIDE = {**dict(UNET_RESNET), "skip_connection": "conv_shortcut", "op": "conv"}
"""What diffusers calls differently inside residual blocks and samplers."""
_ENDS = {
    **dict(UNET_ENDS),
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_MIDDLE = {
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}


def diffusers_unet_paths(native: Collection[str]) -> Mapping[str, str]:
    """LDM's path -> diffusers' path, of all modules in ``native`` that diffusers has.

    LDM numbers the blocks of the whole way, diffusers those of each level. Where a level ends is
    seen from its sampler, so depths and widths need not be known: SD1, SD2, SDXL and its refiner.
    """
    known = frozenset(native)
    blocks = {**_MIDDLE, **_down(known), **_up(known)}
    paths = {theirs: ours for theirs, ours in _ENDS.items() if theirs in known}
    for path in native:
        parts = path.split(".")
        length = 2 if parts[0] == "middle_block" else 3
        block = blocks.get(".".join(parts[:length]))
        if block is not None and len(parts) > length:
            inside = ".".join(parts[length:])
            paths[path] = f"{block}.{_INSIDE.get(inside, inside)}"
    return paths


def _down(known: frozenset[str]) -> dict[str, str]:
    """Block of LDM -> block of diffusers, on the way down."""
    blocks: dict[str, str] = {}
    level = layer = 0
    number = 1  # input_blocks.0 is conv_in
    while True:
        here, ours = f"input_blocks.{number}", f"down_blocks.{level}"
        if f"{here}.0.op" in known:
            blocks[f"{here}.0"] = f"{ours}.downsamplers.0"
            level, layer = level + 1, 0
        elif f"{here}.0.in_layers.2" in known:
            blocks[f"{here}.0"] = f"{ours}.resnets.{layer}"
            blocks[f"{here}.1"] = f"{ours}.attentions.{layer}"
            layer += 1
        else:
            return blocks
        number += 1


def _up(known: frozenset[str]) -> dict[str, str]:
    """The same on the way up, where diffusers counts from the innermost level."""
    blocks: dict[str, str] = {}
    number = level = layer = 0
    while f"output_blocks.{number}.0.in_layers.2" in known:
        here, ours = f"output_blocks.{number}", f"up_blocks.{level}"
        blocks[f"{here}.0"] = f"{ours}.resnets.{layer}"
        blocks[f"{here}.1"] = f"{ours}.attentions.{layer}"
        layer += 1
        for sampler in (f"{here}.1", f"{here}.2"):  # the second place where there is an attention
            if f"{sampler}.conv" in known:
                blocks[sampler] = f"{ours}.upsamplers.0"
                level, layer = level + 1, 0
        number += 1
    return blocks
