"""The change of one module from the tensors that its file holds of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from copier.algebra.delta import Delta, LowRankDelta, all_finite
from copier.algebra.products import FullDelta, HadamardDelta, KroneckerDelta, Product
from copier.errors import BadInput

_KINDS: tuple[tuple[str, set[str], set[str]], ...] = (
    ("a LoRA", {"up", "down"}, {"mid"}),
    ("a LoHa", {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}, {"hada_t1", "hada_t2"}),
    ("a LoKr", set(), {f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}),
    ("a full difference", {"diff"}, set()),
)
"""Name, parts that a module of the kind must have, and that it may have; alpha may always be there."""

MOST_AXES = 4
_CORES = {"mid": "down", "hada_t1": "hada_w1_b", "hada_t2": "hada_w2_b", "lokr_t2": "lokr_w2_b"}
"""What a core of a Tucker decomposition is multiplied with first."""
MOST_ELEMENTS = 1 << 28
"""Of one change, and of what is multiplied on the way; the largest weight of the families known here, T5's
embedding, has 132 million."""


def delta_from_parts(parts: Mapping[str, torch.Tensor]) -> Delta:
    """The change that a module's tensors make, in float32, on their device.

    ``parts`` are named as in ``checkpoint.lora_keys``: "up", "down", "mid"; "hada_w1_a" ...;
    "lokr_w1" ...; "diff"; "alpha"; "dora_scale". Without an alpha the scale is 1, as in every host.
    A convolution in three factors is a LoRA whose down is the product of mid and down: no
    approximation is made. Tensors on the device "meta", which have shapes but no values, give a delta
    that has a shape and a rank; alpha is the rank then.

    Raises:
        BadInput: a part is missing, too much or empty, of an integer dtype, holds NaN or infinite
            values, or the shapes do not multiply or make a change of absurd size; or it is a DoRA, whose
            change depends on the checkpoint.
    """
    if "dora_scale" in parts:
        raise BadInput(
            "it is a DoRA: it sets the norm of the changed weight, so its change depends on the checkpoint, "
            "and none can be read from the file alone. Merge it into its checkpoint with the tool that "
            "trained it, then extract the difference of the two checkpoints"
        )
    for name, other in _CORES.items():
        if name in parts and other in parts and parts[name].ndim == 4:
            first, _, height, width = parts[name].shape
            _check_size((first, *parts[other].shape[1:2], height, width))
    delta = _delta(parts)
    _check_size(delta.shape)
    return delta


def _check_size(shape: Sequence[int]) -> None:
    if math.prod(shape) > MOST_ELEMENTS:
        raise BadInput(
            f"it makes a product of the shape {list(shape)}: more than {MOST_ELEMENTS:,} elements, which no "
            "weight has: the file is damaged"
        )


def _delta(parts: Mapping[str, torch.Tensor]) -> Delta:
    name, missing = _kind_of(parts)
    if missing:
        raise BadInput(f"it has no {', '.join(missing)}: {name} needs it, the file is incomplete")
    tensors = {part: _checked(part, tensor) for part, tensor in parts.items() if part != "alpha"}
    alpha = parts.get("alpha")
    if name == "a LoRA":
        return _low_rank(tensors, alpha)
    if name == "a LoHa":
        return _hadamard(tensors, alpha)
    if name == "a LoKr":
        return _kronecker(tensors, alpha)
    return FullDelta(tensors["diff"])


def _kind_of(parts: Mapping[str, torch.Tensor]) -> tuple[str, list[str]]:
    """The kind's name, and the parts that the module lacks."""
    given = set(parts) - {"alpha"}
    for name, needed, optional in _KINDS:
        if given & (needed | optional):
            if given - needed - optional:
                raise BadInput(f"it has parts of several kinds of LoRA: {', '.join(sorted(given))}")
            if name == "a LoKr":
                return name, _missing_of_lokr(given)
            if "hada_t1" in given or "hada_t2" in given:
                needed = needed | optional
            return name, sorted(needed - given)
    raise BadInput("it has nothing but an alpha: the file is incomplete")


def _missing_of_lokr(given: set[str]) -> list[str]:
    missing = []
    for whole in ("lokr_w1", "lokr_w2"):
        factors = {f"{whole}_a", f"{whole}_b"}
        if whole in given and given & factors:
            raise BadInput(f"it has {whole} both whole and in factors")
        if whole not in given:
            missing += sorted(factors - given)
    if "lokr_t2" in given and "lokr_w2" in given:
        raise BadInput("it has lokr_w2 whole and lokr_t2, which is a core between factors")
    return missing


def _checked(part: str, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float32; raises BadInput where its shape or its values can be of no LoRA."""
    if not tensor.dtype.is_floating_point:
        raise BadInput(f"its {part} is {tensor.dtype}: weights must be floating point")
    if not 1 <= tensor.ndim <= MOST_AXES or 0 in tensor.shape:
        raise BadInput(
            f"its {part} has the shape {list(tensor.shape)}: it must have 1 to {MOST_AXES} axes, "
            "none of size 0"
        )
    result = tensor.float()
    if not result.is_meta and not all_finite(result):
        raise BadInput(f"its {part} has NaN or infinite weights: the training that made it broke down")
    return result


def _low_rank(parts: Mapping[str, torch.Tensor], alpha: torch.Tensor | None) -> LowRankDelta:
    up, down, mid = parts["up"], parts["down"], parts.get("mid")
    if mid is not None:
        return _three_factors(up, down, mid, alpha)
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    return LowRankDelta(up=up, down=down, alpha=_alpha(alpha, down.shape[0]))


def _three_factors(
    up: torch.Tensor, down: torch.Tensor, mid: torch.Tensor, alpha: torch.Tensor | None
) -> LowRankDelta:
    """up (out, n, 1, 1), mid (n, m, height, width), down (m, in, 1, 1); alpha is divided by m."""
    flat = all(factor.ndim in (2, 4) and factor.shape[2:] in ((), (1, 1)) for factor in (up, down))
    if not flat or mid.ndim != 4 or mid.shape[:2] != (up.shape[1], down.shape[0]):
        raise BadInput(
            f"up {list(up.shape)}, lora_mid {list(mid.shape)} and down {list(down.shape)} do not multiply: "
            "they must be (out, n, 1, 1), (n, m, height, width) and (m, in, 1, 1)"
        )
    n, m, height, width = mid.shape
    if mid.is_meta:
        # A product there imports sympy, which takes a second.
        joined = mid.new_empty(n, down.shape[1], height, width)
        return LowRankDelta(up=up.flatten(1)[:, :, None, None], down=joined, alpha=float(n))
    taps = mid.permute(0, 2, 3, 1).reshape(-1, m) @ down.flatten(1)
    joined = taps.reshape(n, height, width, -1).permute(0, 3, 1, 2).contiguous()
    return LowRankDelta(up=up.flatten(1)[:, :, None, None], down=joined, alpha=_alpha(alpha, m) * n / m)


def _hadamard(parts: Mapping[str, torch.Tensor], alpha: torch.Tensor | None) -> HadamardDelta:
    w1 = Product(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    w2 = Product(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))
    return HadamardDelta(w1, w2, _alpha(alpha, w1.rank))


def _kronecker(parts: Mapping[str, torch.Tensor], alpha: torch.Tensor | None) -> KroneckerDelta:
    def factor(name: str) -> torch.Tensor | Product:
        if name in parts:
            return parts[name]
        core = parts.get("lokr_t2") if name == "lokr_w2" else None
        return Product(parts[f"{name}_a"], parts[f"{name}_b"], core)

    w1, w2 = factor("lokr_w1"), factor("lokr_w2")
    ranks = [w.rank for w in (w2, w1) if isinstance(w, Product)]
    return KroneckerDelta(w1, w2, _alpha(alpha, ranks[0] if ranks else 1))


def _alpha(stored: torch.Tensor | None, rank: int) -> float:
    if stored is not None and stored.numel() != 1:
        raise BadInput(f"alpha has the shape {list(stored.shape)}: it must be one number")
    return float(rank) if stored is None or stored.is_meta else float(stored.float())
