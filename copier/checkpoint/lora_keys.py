"""Which module of a LoRA, and which part of it, a key names, in every layout in use.

A key is a module's name and a suffix. Suffixes by layout:

    kohya      ``.lora_up.weight``, ``.lora_down.weight``, ``.lora_mid.weight`` (LoCon in three factors)
    peft       ``.lora_B.weight``, ``.lora_A.weight``, perhaps with an adapter's name before ``.weight``
    diffusers  ``.lora.up.weight``, ``_lora.up.weight``, ``.lora_linear_layer.up.weight``: its old ones
    loha       ``.hada_w1_a`` ...; lokr: ``.lokr_w1`` ...
    full       ``.diff``; of norms ``.w_norm``. A bias change (``.diff_b``, ``.b_norm``) is the weight of
               a module of its own, ``<module>.bias``: nobody can mistake it for the module's weight.

and in all of them ``.alpha`` and ``.dora_scale``. Sources: kohya's ``networks/lora.py``, LyCORIS'
``lycoris/modules``, diffusers' ``state_dict_utils.py``, A1111's ``extensions-builtin/Lora/network_*.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

LAYOUTS = ("kohya", "peft", "diffusers", "loha", "lokr", "full")
"""The first of these that occurs in a file is the file's layout."""

_SUFFIXES: Mapping[str, tuple[str, str]] = MappingProxyType(  # no key ends with two of these
    {
        ".lora_up.weight": ("up", "kohya"),
        ".lora_down.weight": ("down", "kohya"),
        ".lora_mid.weight": ("mid", "kohya"),
        ".lora_B.weight": ("up", "peft"),
        ".lora_A.weight": ("down", "peft"),
        ".lora_magnitude_vector": ("dora_scale", "peft"),
        ".lora_magnitude_vector.weight": ("dora_scale", "peft"),
        **{
            f"{stem}.{part}.weight": (part, "diffusers")
            for stem in (".lora", "_lora", ".lora_linear_layer")
            for part in ("up", "down")
        },
        **{
            f".{part}": (part, "loha")
            for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
        },
        **{
            f".{part}": (part, "lokr")
            for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
        },
        ".diff": ("diff", "full"),
        ".w_norm": ("diff", "full"),
        ".diff_b": ("bias", "full"),
        ".b_norm": ("bias", "full"),
        ".alpha": ("alpha", ""),
        ".dora_scale": ("dora_scale", ""),
    }
)
_ADAPTER = re.compile(r"(\.lora_(?:[AB]|magnitude_vector))\.[^.]+(?=\.weight$)")

_OTHER_KINDS = (
    ("bundle_emb.", "an embedding bundled with the LoRA"),
    ("lora_embedding_", "a LoRA of a token embedding"),
    (".a1.weight", "a GLoRA"),
    (".a2.weight", "a GLoRA"),
    (".b1.weight", "a GLoRA"),
    (".b2.weight", "a GLoRA"),
    (".oft_", "an OFT"),
    (".on_input", "an IA3"),
    (".set_weight", "a replacement of a weight"),
    ("_lora1.", "a LoRA in XLabs' layout"),
    ("_lora2.", "a LoRA in XLabs' layout"),
    (".bias", "a LoRA with trained biases"),
)


@dataclass(frozen=True)
class LoraKey:
    """A key taken apart; ``layout`` is "" where the suffix occurs in all of them."""

    module: str
    part: str
    layout: str


def without_adapter(key: str) -> str:
    """A key of peft's layout without the adapter's name that it may have: ``.lora_A.default.weight``."""
    return _ADAPTER.sub(r"\1", key) if ".lora_" in key else key


def split_key(key: str) -> LoraKey | None:
    """Module, part and layout of a LoRA's key; None where it is no such key."""
    key = without_adapter(key)
    for suffix, (part, layout) in _SUFFIXES.items():
        if key.endswith(suffix):
            module = key.removesuffix(suffix)
            if part == "bias":
                return LoraKey(f"{module}.bias", "diff", layout)
            return LoraKey(module, part, layout)
    return None


def layout_of(keys: Iterable[str]) -> str:
    """The layout of a file with these keys; "" where it is no LoRA."""
    found = {split.layout for key in keys if (split := split_key(key)) is not None}
    return next((layout for layout in LAYOUTS if layout in found), "")


def what_it_belongs_to(key: str) -> str:
    """In words, what a key that ``split_key`` does not know belongs to."""
    return next((kind for part, kind in _OTHER_KINDS if part in key), "no LoRA that is known here")
