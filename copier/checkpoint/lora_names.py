"""The names that hosts know a LoRA's modules by, from those that other programs write.

A1111 and Forge read ``lora_unet_``, ``lora_te_``, ``lora_te1_`` and ``lora_te2_`` names of every family;
of SD3 and FLUX also diffusers' ``transformer.`` ones, whose modules are others (q, k and v apart), so
these stay. Sources: Forge's ``packages_3rdparty/comfyui_lora_collection/lora.py``, A1111's
``extensions-builtin/Lora/networks.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from copier.checkpoint.family import Family
from copier.checkpoint.lora_keys import split_key, what_it_belongs_to

TRANSFORMERS = (Family.SD3, Family.FLUX)
_WRAPPER = "base_model.model."
_UNET = re.compile(
    r"(unet|diffusion_model)\.|(?=(down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks)\.)"
)
_MAKERS = re.compile(r"diffusion_model\.|(?=(double_blocks|single_blocks|joint_blocks)\.)")
"""FLUX and SD3 as their makers name the modules: kohya's names are these with "_" for "."."""
_DIFFUSERS = re.compile(
    r"(single_)?transformer_blocks\.|(x_embedder|context_embedder|proj_out)$|(time_text_embed|pos_embed|norm_out)\."
)
_UNET_ENDS = re.compile(r"(conv_in|conv_out)$|(time_embedding|add_embedding)\.")
_TEXT_PROJECTIONS = re.compile(r"self_attn\.to_(q|k|v|out)$")
_OLD_OUT = re.compile(r"\.to_out$")


def canonical_name(module: str, family: Family) -> str:
    """The host's name of ``module``; a name that needs no change, or is not known, comes back as it is."""
    if "." not in module:
        renamed = module.startswith("lycoris_") and family not in TRANSFORMERS
        return "lora_unet_" + module.removeprefix("lycoris_") if renamed else module
    if module.endswith(".bias"):
        return canonical_name(module.removesuffix(".bias"), family) + ".bias"
    path = module.removeprefix(_WRAPPER)
    if family in TRANSFORMERS:
        if match := _MAKERS.match(path):
            return _kohya("lora_unet_", path[match.end() :])
        return f"transformer.{path}" if _DIFFUSERS.match(path) else path
    if path.startswith("text_encoder_2."):
        return _kohya("lora_te2_", _text_path(path.removeprefix("text_encoder_2.")))
    if path.startswith(("text_encoder.", "text_model.")):
        prefix = "lora_te1_" if family is Family.SDXL else "lora_te_"
        return _kohya(prefix, _text_path(path.removeprefix("text_encoder.")))
    if _UNET_ENDS.match(path):
        return _kohya("lora_unet_", path)
    if match := _UNET.match(path):
        inner = path[match.end() :].replace(".processor.", ".")
        return _kohya("lora_unet_", _OLD_OUT.sub(".to_out.0", inner))
    return path


def _kohya(prefix: str, path: str) -> str:
    return prefix + path.replace(".", "_")


def _text_path(path: str) -> str:
    """diffusers' oldest files name the text encoder's projections as the U-Net's."""
    return _TEXT_PROJECTIONS.sub(r"self_attn.\1_proj", path)


@dataclass(frozen=True)
class LoraTable:
    """A LoRA file's keys in order: canonical module name -> part -> key, and the keys that are of
    no module, each with the reason."""

    modules: Mapping[str, Mapping[str, str]]
    unknown: Mapping[str, str]


def lora_table(keys: tuple[str, ...], family: Family) -> LoraTable:
    """Sort a LoRA's keys into modules and their parts."""
    modules: dict[str, dict[str, str]] = {}
    unknown: dict[str, str] = {}
    for key in keys:
        split = split_key(key)
        if split is None:
            unknown[key] = f"belongs to {what_it_belongs_to(key)}"
            continue
        parts = modules.setdefault(canonical_name(split.module, family), {})
        if split.part in parts:
            unknown[key] = f"names the same as {parts[split.part]!r}"
        parts.setdefault(split.part, key)
    frozen = {name: MappingProxyType(parts) for name, parts in modules.items()}
    return LoraTable(MappingProxyType(frozen), MappingProxyType(unknown))
