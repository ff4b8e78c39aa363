"""Block weights: how strongly a LoRA acts in each block, in the notations that users know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from copier.checkpoint.family import Family
from copier.errors import BadInput, UnknownName


def _range(kind: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{kind}{number:02d}" for number in range(first, last + 1))


_FULL_SD1 = ("BASE", *_range("IN", 0, 11), "M00", *_range("OUT", 0, 11))
_FULL_SDXL = ("BASE", *_range("IN", 0, 8), "M00", *_range("OUT", 0, 8))
_ATTENTION_SD1 = ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *_range("OUT", 3, 11))
_FULL_FLUX = ("BASE", *_range("DB", 0, 18), *_range("SB", 0, 37))
# There: CLIP, T5, IN, D00 .. D18, S00 .. S37, OUT. Both text encoders are one block here, and both ends.
_PARTS_FLUX = ("BASE", "BASE", "OTHER", *_FULL_FLUX[1:], "OTHER")
_ATTENTION_SDXL = ("BASE", "IN04", "IN05", "IN07", "IN08", "M00", *_range("OUT", 0, 5))

VECTORS: Mapping[Family, tuple[tuple[str, ...], ...]] = MappingProxyType({
    Family.SD1: (_ATTENTION_SD1, _FULL_SD1),
    Family.SD2: (_ATTENTION_SD1, _FULL_SD1),
    Family.SDXL: (_ATTENTION_SDXL, _FULL_SDXL),
    Family.FLUX: (_FULL_FLUX, _PARTS_FLUX),
})  # fmt: skip
"""The blocks that a list of so many numbers means: SD1 and SD2 17 or 26, SDXL 12 or 20, FLUX 58 or 61.

The short ones of U-Nets name the blocks with attention, which is where a LoRA without convolutions acts.
Source: hako-mikan/sd-webui-lora-block-weight, whose vectors users exchange; that of 58 is what
ltdrdata/ComfyUI-Inspire-Pack makes of a specification.
"""

NAMES: Mapping[Family, tuple[str, ...]] = MappingProxyType({
    **{family: vectors[-1] for family, vectors in VECTORS.items()},
    Family.FLUX: _FULL_FLUX,
    Family.SD3: ("BASE", *_range("JB", 0, 37)),
})  # fmt: skip
"""The blocks of each family; besides them all have "OTHER"."""

LARGEST = 100.0


def block_weights(text: str, family: Family) -> Mapping[str, float]:
    """What the weight of a LoRA is multiplied by, by the block's name (as ``block_of`` gives it).

    Either a list of numbers, one for each block of a vector in ``VECTORS`` ("1,0,0,0.5,..."); blocks that
    a short vector leaves out get 0. Or names ("IN04=0.5,OUT03=0"). In both, blocks that are not
    mentioned keep 1, and so does "OTHER".

    Raises:
        BadInput: a list of a length that the family does not have, a block named twice, two numbers for what
            is one block here, or a weight that is no number between -100 and 100.
        UnknownName: a block that the family does not have.
    """
    vectors = VECTORS.get(family, ())
    parts = [part.strip() for part in text.split(",")]
    if any("=" in part for part in parts):
        known = {*NAMES.get(family, ()), "OTHER"}
        pairs = [_named(part, known) for part in parts]
        twice = next((name for name, _ in pairs if sum(name == one for one, _ in pairs) > 1), None)
        if twice is not None:
            raise BadInput(f"the block {twice} has two weights in {text!r}: give it one")
        return MappingProxyType(dict(pairs))
    vector = next((one for one in vectors if len(one) == len(parts)), None)
    if vector is None:
        lengths = " or ".join(str(len(one)) for one in vectors) or "no list at all"
        raise BadInput(
            f"there are {len(parts)} block weights; {family.value} has {lengths}: give as many, or name "
            "blocks, as in IN04=0.5,OUT03=0"
        )
    weights = {name: 0.0 for one in vectors for name in one if len(one) > len(vector) and name != "OTHER"}
    given: dict[str, float] = {}
    for place, (name, part) in enumerate(zip(vector, parts, strict=True), start=1):
        weight = _number(part)
        if given.setdefault(name, weight) != weight:
            raise BadInput(
                f"the block weights {vector.index(name) + 1} and {place} are {given[name]:g} and {weight:g}, "
                f"but both are for the one block {name} here: give it one weight in both places"
            )
    return MappingProxyType({**weights, **given})


def _named(part: str, known: set[str]) -> tuple[str, float]:
    name, equals, weight = part.partition("=")
    name = name.strip().upper()
    if not equals:
        raise BadInput(f"the block weight {part!r} is not NAME=WEIGHT: write all of them so, or none")
    if name not in known:
        raise UnknownName("block", name, known)
    return name, _number(weight)


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= LARGEST:
        raise BadInput(f"the block weight {text.strip()!r} is no number from -{LARGEST:g} to {LARGEST:g}")
    return weight
