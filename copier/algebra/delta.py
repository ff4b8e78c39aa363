"""The change that one LoRA module makes to one weight; most often as two thin factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from copier.errors import BadInput


class Delta(Protocol):
    """What every kind of module offers; ``LowRankDelta`` here, the others in ``products.py``."""

    kind: ClassVar[str]
    """"lora", "loha", "lokr" or "full"."""

    @property
    def rank(self) -> int | None:
        """The rank that the file gives it; None for what has none."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes.

        (out, in * height * width) where a LoHa or LoKr file does not say the kernel: the number of
        elements is right, the weight's own shape decides.
        """
        ...

    @property
    def is_conv(self) -> bool:
        """Has it a kernel that is known to be larger than 1x1?"""
        ...

    def dense(self, weight: float = 1.0) -> torch.Tensor:
        """weight * delta, multiplied out, in ``shape``."""
        ...

    def frobenius(self) -> float:
        """The Frobenius norm of the delta."""
        ...

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Delta:
        """The same delta in another dtype or on another device."""
        ...


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """delta = (alpha / rank) * up @ down, never multiplied out unless ``dense`` is called.

    Linear layers: up (out, rank), down (rank, in). Convolutions: up (out, rank, 1, 1), down
    (rank, in, height, width); the product then runs over rank for each tap of the kernel.
    The factors share one floating dtype and one device; float32 wherever maths is done on them,
    because fp16 loses 3 of its 11 bits in a sum over a rank of 64 already.

    Source of the layout: kohya's ``networks/lora.py``, LoCon (KohakuBlueleaf/LyCORIS).

    Raises on construction:
        BadInput: the shapes do not multiply, the dtype is no floating one, or alpha is not finite.
    """

    kind: ClassVar[str] = "lora"
    up: torch.Tensor
    down: torch.Tensor
    alpha: float

    def __post_init__(self) -> None:
        up, down = self.up, self.down
        if up.ndim not in (2, 4) or down.ndim != up.ndim or up.shape[1] != down.shape[0]:
            raise BadInput(
                f"up {list(up.shape)} and down {list(down.shape)} do not multiply: they must be "
                "(out, rank) and (rank, in), or (out, rank, 1, 1) and (rank, in, height, width)"
            )
        if up.shape[2:] not in ((), (1, 1)):
            raise BadInput(f"up {list(up.shape)} must have a 1x1 kernel: down carries the kernel")
        if 0 in up.shape or 0 in down.shape:
            raise BadInput(f"up {list(up.shape)} and down {list(down.shape)} must not be empty")
        if not up.dtype.is_floating_point or down.dtype != up.dtype:
            raise BadInput(f"up is {up.dtype}, down {down.dtype}: both must be of one floating dtype")
        if not math.isfinite(self.alpha):
            raise BadInput(f"alpha is {self.alpha}: it must be a finite number")

    @property
    def rank(self) -> int:
        """The number of columns of up, which is an upper bound of the true rank."""
        return self.up.shape[1]

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of ``up @ down``."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it changes: (out, in) or (out, in, height, width)."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def is_conv(self) -> bool:
        """Has it a kernel larger than 1x1? (kohya's ``conv_dim`` is the rank of those only.)"""
        return any(size > 1 for size in self.down.shape[2:])

    @property
    def up_matrix(self) -> torch.Tensor:
        """up as (out, rank)."""
        return self.up.flatten(1)

    @property
    def down_matrix(self) -> torch.Tensor:
        """down as (rank, in * height * width)."""
        return self.down.flatten(1)

    def dense(self, weight: float = 1.0) -> torch.Tensor:
        """weight * scale * up @ down, in the shape of the weight that it changes.

        Multiplied in the order of sd-scripts (product, weight, scale), so that a merge agrees
        with its own to the last bit.
        """
        product = self.up_matrix @ self.down_matrix
        return ((weight * product) * self.scale).reshape(self.shape)

    def fill(self, up: torch.Tensor, down: torch.Tensor, scale: float) -> None:
        """Put the factors into the first columns of ``up`` and rows of ``down``, which count ``scale``.

        Those may be of a higher rank, (out, r, ...) and (r, in, ...): with zeros in the other columns of
        ``up``, scale * up @ down is this delta.
        """
        down[: self.rank] = self.down.to(down).reshape(self.rank, *down.shape[1:])
        columns = self.up.to(up).reshape(up.shape[0], self.rank, *up.shape[2:])
        up[:, : self.rank] = columns * (self.scale / scale)

    def core(self) -> torch.Tensor:
        """scale * R_up R_down^T from thin QRs: a small matrix with the delta's singular values.

        up = Q_up R_up and down^T = Q_down R_down, so delta = Q_up core Q_down^T with orthonormal
        Q; its shape is (min(out, rank), min(in * height * width, rank)).
        """
        r_up = torch.linalg.qr(self.up_matrix, mode="r").R
        r_down = torch.linalg.qr(self.down_matrix.T, mode="r").R
        core: torch.Tensor = self.scale * (r_up @ r_down.T)
        return core

    def frobenius(self) -> float:
        """The Frobenius norm of the delta, from its small core."""
        return float(torch.linalg.norm(self.core()))

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> LowRankDelta:
        """The same delta with its factors in another dtype or on another device."""
        return LowRankDelta(
            up=self.up.to(dtype=dtype or self.up.dtype, device=device or self.up.device),
            down=self.down.to(dtype=dtype or self.down.dtype, device=device or self.down.device),
            alpha=self.alpha,
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Has a tensor of one element or more neither NaN nor infinite values?"""
    low, high = torch.aminmax(tensor)
    return math.isfinite(float(low)) and math.isfinite(float(high))


def cast(
    tensor: torch.Tensor, dtype: torch.dtype, name: str, *, source: torch.Tensor | None = None
) -> torch.Tensor:
    """``tensor`` in ``dtype``; arguments and errors are those of ``cast_into``."""
    result = tensor.to(dtype)
    _check_cast(tensor, dtype, name, source)
    return result


def cast_into(
    tensor: torch.Tensor, out: torch.Tensor, name: str, *, source: torch.Tensor | None = None
) -> None:
    """Write ``tensor`` into ``out``, in its dtype, refused where a number would not be near itself any more.

    That is what rounds to infinity in ``dtype``. (fp8's e4m3 has none: there torch makes NaN of it, or the
    largest number, depending on its version.) ``source`` (default: ``tensor``) is what ``tensor`` was
    computed from, element by element: where it is infinite or NaN already, the result may be so.

    Raises:
        BadInput: a value is outside the dtype's range; the message names ``name``, value and limit.
    """
    out.copy_(tensor)
    _check_cast(tensor, out.dtype, name, source)


def _check_cast(tensor: torch.Tensor, dtype: torch.dtype, name: str, source: torch.Tensor | None) -> None:
    limit = torch.finfo(dtype).max
    if tensor.numel() == 0 or bool((torch.stack(torch.aminmax(tensor.detach())).abs() <= limit).all()):
        return
    exact = tensor.detach().double().abs()
    half_step = torch.finfo(dtype).eps / 2.0 * 2.0 ** math.floor(math.log2(limit))
    lost = ~(exact < limit + half_step) & torch.isfinite((tensor if source is None else source).double())
    if not bool(lost.any()):
        return
    reached = float(exact[lost].nan_to_num(nan=math.inf, posinf=math.inf).max())
    plain = str(dtype).removeprefix("torch.")
    representable = reached <= torch.finfo(torch.float32).max
    remedy = "choose bf16 or fp32" if representable else "the LoRA's weights are broken"
    raise BadInput(f"{name} reaches {reached:g}, {plain} ends at {limit:g}: {remedy}")
