"""The second route: what a merge must give, multiplied out in float64 from the files' tensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch

from tests.ops.small_models import Module

Tensors = Mapping[str, torch.Tensor]
FACTORS = tuple(
    (f"{up}.weight", f"{down}.weight")
    for up, down in (
        (".lora_up", ".lora_down"),
        (".lora_B", ".lora_A"),
        (".lora.up", ".lora.down"),
    )
)


def plain_key(key: str) -> str:
    """Without an adapter's name, and under kohya's prefix."""
    return re.sub(r"(\.lora_[AB])\.[^.]+\.weight$", r"\1.weight", re.sub("^lycoris_", "lora_unet_", key))


def change_of(tensors: Tensors, name: str) -> torch.Tensor | None:
    """The change of the module ``name``, by the definition of its kind; None where the file has none."""
    parts = {key: tensor.double() for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    alpha = parts.get(f"{name}.alpha")

    def part(end: str) -> torch.Tensor:
        return parts[name + end]

    def scale(rank: int) -> float:
        return 1.0 if alpha is None else float(alpha) / rank

    if name + ".diff" in parts:
        return part(".diff")
    if name + ".hada_w1_a" in parts:
        w1, w2 = (part(f".hada_w{i}_a") @ part(f".hada_w{i}_b").flatten(1) for i in (1, 2))
        return w1 * w2 * scale(part(".hada_w1_b").shape[0])
    if name + ".lokr_w1" in parts:
        a, b = part(".lokr_w2_a"), part(".lokr_w2_b")
        w2 = torch.einsum("rk,ks...->rs...", a.flatten(1), b)
        w1 = part(".lokr_w1")
        return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2) * scale(b.shape[0])
    up, down = next(((up, down) for up, down in FACTORS if name + up in parts), ("", ""))
    if not up:
        return None
    left, right = part(up).flatten(1), part(down)
    if name + ".lora_mid.weight" in parts:
        mid = part(".lora_mid.weight")
        return torch.einsum("on,nmhw,mi->oihw", left, mid, right.flatten(1)) * scale(right.shape[0])
    return (left @ right.flatten(1)).reshape(left.shape[0], *right.shape[1:]) * scale(right.shape[0])


def expected_merge(
    base: Tensors, terms: Sequence[tuple[Path, float]], modules: Iterable[Module]
) -> tuple[Tensors, Tensors]:
    """Key -> the merged tensor in float64, of those that change; and the same of all absolute values.

    The second says how much rounding there may be where large numbers cancel.
    """
    right: dict[str, torch.Tensor] = {}
    size: dict[str, torch.Tensor] = {}
    for path, weight in terms:
        loaded = safetensors.torch.load(path.read_bytes())
        tensors = {plain_key(key): tensor for key, tensor in loaded.items()}
        for module in modules:
            change = change_of(tensors, module.name) if module.key in base and weight else None
            if change is None:
                continue
            positive = change_of({key: tensor.double().abs() for key, tensor in tensors.items()}, module.name)
            rows = slice(module.row, module.row + change.shape[0])
            for sums, factor, part in ((right, weight, change), (size, abs(weight), positive)):
                start = base[module.key].double()
                whole = sums.setdefault(module.key, start.clone() if sums is right else start.abs())
                whole[rows] += factor * part.reshape(whole[rows].shape)
    return right, size
