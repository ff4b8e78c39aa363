"""A whole LoRA as an immutable mapping from module names to deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from copier.algebra.delta import LowRankDelta, cast
from copier.errors import BadCheckpoint, BadInput

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"

_OTHER_KINDS = (
    (".hada_", "a LoHa"),
    (".lokr_", "a LoKr"),
    (".dora_scale", "a DoRA"),
    (".lora_mid.", "a LoRA with convolutions in three factors (lora_mid)"),
    (".lora_A.", "a LoRA in peft's layout"),
    (".lora_B.", "a LoRA in peft's layout"),
    (".diff", "a LoRA with full differences"),
)


class LoraWeights(Mapping[str, LowRankDelta]):
    """kohya's module name (``lora_unet_...``, ``lora_te_...``) -> LowRankDelta; never changed."""

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

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> LoraWeights:
        """The LoRA of kohya's keys: ``<module>.lora_up.weight``, ``.lora_down.weight``, ``.alpha``.

        Factors become float32. A missing alpha means scale 1 (alpha = rank), as in every host.

        Raises:
            BadCheckpoint: other keys (they are named, with the kind of file they belong to), a
                factor without the other, shapes that do not multiply, NaN or infinite weights.
        """
        modules: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            name, part = _split(key)
            modules.setdefault(name, {})[part] = tensor
        if not modules:
            raise BadCheckpoint("the LoRA has no modules: the file is empty")
        return cls({name: _delta(name, parts) for name, parts in modules.items()})

    def to_tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """kohya's keys and tensors in ``dtype``, alpha as a scalar of that dtype.

        Where the dtype cannot hold alpha (bf16 has no 257), what is lost goes into up.

        Raises:
            BadInput: a weight is outside the dtype's range.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, delta in self.items():
            alpha = torch.tensor(delta.alpha, dtype=dtype)
            if delta.alpha != 0.0 and not 0.0 < abs(float(alpha)) < float("inf"):
                alpha = torch.tensor(float(delta.rank), dtype=dtype)
            up = delta.up
            if delta.alpha != float(alpha):
                up = up * (delta.alpha / float(alpha))
            tensors[name + ALPHA] = alpha
            tensors[name + DOWN] = cast(delta.down, dtype, name + DOWN).contiguous()
            tensors[name + UP] = cast(up, dtype, name + UP).contiguous()
        return tensors

    def to(self, device: str) -> LoraWeights:
        """The same LoRA with all factors on ``device``."""
        return LoraWeights({name: delta.to(device=device) for name, delta in self.items()})


def _split(key: str) -> tuple[str, str]:
    for suffix in (UP, DOWN, ALPHA):
        if key.endswith(suffix):
            return key.removesuffix(suffix), suffix
    for part, kind in _OTHER_KINDS:
        if part in key:
            raise BadCheckpoint(
                f"{key!r} belongs to {kind}: only plain LoRAs (lora_up, lora_down) are supported so far"
            )
    raise BadCheckpoint(f"{key!r} is no key of a LoRA: expected {UP}, {DOWN} or {ALPHA} at its end")


def _delta(name: str, parts: Mapping[str, torch.Tensor]) -> LowRankDelta:
    up, down = parts.get(UP), parts.get(DOWN)
    if up is None or down is None:
        missing = UP if up is None else DOWN
        raise BadCheckpoint(f"the module {name!r} has no {missing}: the LoRA is incomplete")
    if not (up.dtype.is_floating_point and down.dtype.is_floating_point):
        raise BadCheckpoint(f"the module {name!r} is {up.dtype}: weights must be floating point")
    up, down = up.float(), down.float()
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    if not (bool(torch.isfinite(up).all()) and bool(torch.isfinite(down).all())):
        raise BadCheckpoint(
            f"the module {name!r} has NaN or infinite weights: the training that made it broke down"
        )
    try:
        return LowRankDelta(up=up, down=down, alpha=_alpha(parts.get(ALPHA), up))
    except BadInput as error:
        raise BadCheckpoint(f"the module {name!r}: {error}") from error


def _alpha(stored: torch.Tensor | None, up: torch.Tensor) -> float:
    if stored is None:
        return float(up.shape[1]) if up.ndim > 1 else 1.0
    if stored.numel() != 1:
        raise BadInput(f"alpha has the shape {list(stored.shape)}: it must be one number")
    return float(stored.float())
