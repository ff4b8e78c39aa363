"""The second route: what a merge must give, multiplied out in float64 from the files' tensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch

from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import tensor_bytes
from tests.ops.small_models import Module

Tensors = Mapping[str, torch.Tensor]
Terms = Sequence[tuple[Path, float]]
"""LoRA files and their weights."""
ERROR = {
    torch.float64: (2e-6, 1e-30),
    torch.float32: (2e-6, 1e-30),
    torch.float16: (1e-3, 1e-7),
    torch.bfloat16: (8e-3, 1e-30),
    torch.float8_e4m3fn: (0.07, 2e-3),
    torch.float8_e5m2: (0.14, 1e-5),
}
"""Of a merged number: relative to the numbers that it is a sum of, and absolute."""
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


def expected_merge(base: Tensors, terms: Terms, modules: Iterable[Module]) -> tuple[Tensors, Tensors]:
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


def same(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Has the copy the bytes, or in another dtype the values, NaN in the same places?"""
    if copy.dtype is tensor.dtype or not tensor.numel():
        return tensor_bytes(copy) == tensor_bytes(tensor)
    one, other = tensor.flatten().to(copy.dtype).double(), copy.flatten().double()
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def check_merged(base: Path, terms: Terms, out: Path, modules: Iterable[Module]) -> None:
    """Every tensor is the base's with the changes that float64 gives, or has the same bytes."""
    with TensorReader(base) as before, TensorReader(out) as after:
        assert set(before.keys()) == set(after.keys())
        tensors = {key: before.tensor(key) for key in before.header.tensors}
        right, size = expected_merge(tensors, terms, modules)
        for key, tensor in tensors.items():
            merged = after.tensor(key)
            if key not in right:
                assert same(tensor, merged)
                continue
            error = (merged.double() - right[key]).abs()
            relative, absolute = ERROR[merged.dtype]
            known = torch.isfinite(right[key])
            assert bool((error <= relative * size[key] + absolute)[known].all()), key
            assert bool((~torch.isfinite(merged.double()))[~known].all()), key
