"""One name for each module, where LoRAs that are to be summed call it differently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from copier.checkpoint.family import Family
from copier.checkpoint.lora_names import TRANSFORMERS
from copier.checkpoint.native_names import native_unet_name
from copier.errors import BadInput

_TRANSFORMER_PREFIXES = {
    "transformer.": "lora_transformer_",
    "lycoris_": "lora_transformer_",
    "text_encoder.": "lora_te1_",
    "text_encoder_2.": "lora_te2_",
}
_NATIVE_TRANSFORMER = re.compile(r"lora_unet_(double|single|joint)_blocks_")
_DIFFUSERS_TRANSFORMER = re.compile(r"lora_transformer_|transformer\.|lycoris_")


def common_names(sources: Sequence[Collection[str]], family: Family) -> Sequence[Mapping[str, str]]:
    """For each LoRA, its modules' names -> the names under which the LoRAs can be summed.

    They are the names given, unless two LoRAs call one module differently; then one of the names is
    taken for all: of SDXL's U-Net LDM's, which kohya writes, of SD3's and FLUX's transformers OneTrainer's
    ``lora_transformer_`` for ``transformer.``.

    Raises:
        BadInput: one LoRA has q, k and v in one module (kohya's of SD3 and FLUX), another apart
            (diffusers'); or a LoRA itself calls one module by two names.
    """
    fused, apart = (
        [any(map(pattern.match, names)) for names in sources]
        for pattern in (_NATIVE_TRANSFORMER, _DIFFUSERS_TRANSFORMER)
    )
    if any(fused) and any(apart) and len(sources) > 1:
        raise BadInput(
            "of these LoRAs some change q, k and v as one module (kohya's names, lora_unet_...), others "
            "apart (diffusers' names, transformer....): convert one of them, with sd-scripts' "
            "networks/convert_flux_lora.py, or merge both into a checkpoint and extract a LoRA from it"
        )
    shared = {name: _shared_name(name, family) for names in sources for name in names}
    if len(set(shared.values())) == len(shared):
        return [{name: name for name in names} for names in sources]
    for names in sources:
        twice = [name for name, count in Counter(shared[name] for name in names).items() if count > 1]
        if twice:
            raise BadInput(f"one LoRA has the module {twice[0]!r} under two names: its file is damaged")
    return [{name: shared[name] for name in names} for names in sources]


def _shared_name(name: str, family: Family) -> str:
    if family in TRANSFORMERS:
        start = next((start for start in _TRANSFORMER_PREFIXES if name.startswith(start)), "")
        return _TRANSFORMER_PREFIXES.get(start, "") + name.removeprefix(start).replace(".", "_")
    if family is Family.SDXL:
        return native_unet_name(name)
    return re.sub(r"^lora_te1_", "lora_te_", name)
