"""A whole LoRA as an immutable mapping from module names to deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from copier.algebra.delta import LowRankDelta, cast

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
PEFT_UP, PEFT_DOWN = ".lora_B.weight", ".lora_A.weight"


def has_alpha(name: str) -> bool:
    """Is the module ``name`` stored with an alpha?

    Kohya's names, which have no dot, are; dotted ones (``transformer....``) belong to peft's layout,
    which has no alpha: its scale is 1.
    """
    return "." not in name


class LoraWeights(Mapping[str, LowRankDelta]):
    """Module name -> LowRankDelta; never changed.

    Names are the hosts': kohya's (``lora_unet_...``, ``lora_te_...``), or for SD3 and FLUX diffusers'
    (``transformer....``).
    """

    def __init__(self, deltas: Mapping[str, LowRankDelta]) -> None:
        self._deltas = dict(deltas)

    def __getitem__(self, name: str) -> LowRankDelta:
        return self._deltas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._deltas)

    def __len__(self) -> int:
        return len(self._deltas)

    def __repr__(self) -> str:
        return f"LoraWeights({len(self)} modules)"

    def to_tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The keys and tensors of a file, in ``dtype``: kohya's, or peft's for dotted names.

        alpha is a scalar of ``dtype``. What it cannot hold (bf16 has no 257) goes into up; so does the
        whole scale in peft's layout.

        Raises:
            BadInput: a weight is outside the dtype's range.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, delta in self.items():
            if has_alpha(name):
                up_key, down_key = name + UP, name + DOWN
                alpha = tensors[name + ALPHA] = _storable(delta, dtype)
                stored = float(alpha)
            else:
                up_key, down_key = name + PEFT_UP, name + PEFT_DOWN
                stored = float(delta.rank)
            up = delta.up if delta.alpha == stored else delta.up * (delta.alpha / stored)
            tensors[down_key] = cast(delta.down, dtype, down_key).contiguous()
            tensors[up_key] = cast(up, dtype, up_key, source=delta.up).contiguous()
        return tensors

    def to(self, device: str) -> LoraWeights:
        """The same LoRA with all factors on ``device``."""
        return LoraWeights({name: delta.to(device=device) for name, delta in self.items()})


def _storable(delta: LowRankDelta, dtype: torch.dtype) -> torch.Tensor:
    """alpha in ``dtype``; the rank where that would be 0 or infinite."""
    alpha = torch.tensor(delta.alpha, dtype=dtype)
    if delta.alpha != 0.0 and not 0.0 < abs(float(alpha)) < float("inf"):
        return torch.tensor(float(delta.rank), dtype=dtype)
    return alpha
