"""Changes of a weight that are no plain product of two factors: LoHa, LoKr, full differences.

Formulas: LyCORIS (KohakuBlueleaf/LyCORIS, ``lycoris/functional``; Yeh et al., 2024, arXiv:2309.14859);
scales as A1111 (``extensions-builtin/Lora/network_*.py``) and Forge (``backend/patcher/lora.py``) apply
them, which is what users see. They are multiplied out module by module, for merging.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from copier.errors import BadInput


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix or kernel as a product of factors.

    Without core: a (out, rank), b (rank, in) -> a @ b (out, in); a may carry a 1x1 kernel and b one of
    any size, (rank, in, height, width), which the product has then.
    With core, a Tucker decomposition: core (m, n, height, width), a (m, out), b (n, in) ->
    sum over i, j of a[i, out] b[j, in] core[i, j, height, width].

    Raises on construction:
        BadInput: the shapes do not multiply.
    """

    a: torch.Tensor
    b: torch.Tensor
    core: torch.Tensor | None = None

    def __post_init__(self) -> None:
        a, b, core = self.a, self.b, self.core
        if core is None:
            fit = a.ndim in (2, 4) and b.ndim in (2, 4) and a.shape[1] == b.shape[0]
            fit = fit and a.shape[2:] in ((), (1, 1))
        else:
            fit = a.ndim == b.ndim == 2 and core.ndim == 4
            fit = fit and core.shape[:2] == (a.shape[0], b.shape[0])
        if not fit:
            through = f" through {list(core.shape)}" if core is not None else ""
            raise BadInput(f"the factors {list(a.shape)} and {list(b.shape)} do not multiply{through}")

    @property
    def rank(self) -> int:
        """The number of rows of b: the rank that hosts divide alpha by."""
        return self.b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, height, width)."""
        if self.core is None:
            return (self.a.shape[0], *self.b.shape[1:])
        return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])

    def dense(self) -> torch.Tensor:
        """The product, in the factors' dtype."""
        if self.core is None:
            return (self.a.flatten(1) @ self.b.flatten(1)).reshape(self.shape)
        height, width = self.core.shape[2:]
        right = torch.einsum("mnhw,ni->mihw", self.core, self.b)
        left = self.a.T @ right.flatten(1)
        return left.reshape(self.a.shape[1], self.b.shape[1], height, width)

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Product:
        """The same product with its factors in another dtype or on another device."""
        return Product(
            _moved(self.a, dtype, device),
            _moved(self.b, dtype, device),
            None if self.core is None else _moved(self.core, dtype, device),
        )


@dataclass(frozen=True, eq=False)
class HadamardDelta:
    """LoHa: delta = (alpha / rank) * w1 * w2, multiplied element by element; w1 and w2 are products.

    Files hold the kernel of a convolution only with a core; without one, in * height * width is one
    axis of ``shape``, and the result has to be reshaped.

    Raises on construction:
        BadInput: the two differ in shape, or alpha is not finite.
    """

    kind: ClassVar[str] = "loha"
    w1: Product
    w2: Product
    alpha: float

    def __post_init__(self) -> None:
        _finite(self.alpha)
        if self.w1.shape != self.w2.shape:
            raise BadInput(
                f"its products {list(self.w1.shape)} and {list(self.w2.shape)} differ in shape: "
                "a LoHa multiplies them element by element"
            )

    @property
    def rank(self) -> int:
        """That of the first product; the delta's own may reach the product of both."""
        return self.w1.rank

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, height, width); (out, in * height * width) for a kernel without core."""
        return self.w1.shape

    @property
    def is_conv(self) -> bool:
        """Has it a kernel that is known to be larger than 1x1?"""
        return any(size > 1 for size in self.shape[2:])

    def dense(self, weight: float = 1.0) -> torch.Tensor:
        """weight * scale * w1 * w2, in ``shape``."""
        return (weight * (self.w1.dense() * self.w2.dense())) * self.scale

    def frobenius(self) -> float:
        """The Frobenius norm of the delta; it is multiplied out for that."""
        return float(torch.linalg.norm(self.dense()))

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> HadamardDelta:
        """The same delta in another dtype or on another device."""
        return replace(
            self, w1=self.w1.to(dtype=dtype, device=device), w2=self.w2.to(dtype=dtype, device=device)
        )


@dataclass(frozen=True, eq=False)
class KroneckerDelta:
    """LoKr: delta = scale * w1 (x) w2, the Kronecker product.

    w1 (p, q) and w2 (r, s) or (r, s, height, width), each whole or a product -> (p*r, q*s, ...). A
    kernel may be flattened into s, as with ``HadamardDelta``. scale is alpha / rank, the rank being that of
    w2 or else of w1; 1 where both are whole, whatever alpha says (LyCORIS stores the rank in it then).

    Raises on construction:
        BadInput: w1 is no matrix, w2 neither matrix nor kernel, or alpha is not finite.
    """

    kind: ClassVar[str] = "lokr"
    w1: torch.Tensor | Product
    w2: torch.Tensor | Product
    alpha: float

    def __post_init__(self) -> None:
        _finite(self.alpha)
        if len(self.w1.shape) != 2 or len(self.w2.shape) not in (2, 4):
            raise BadInput(
                f"w1 {list(self.w1.shape)} and w2 {list(self.w2.shape)} make no LoKr: they must be "
                "(p, q) and (r, s), or (p, q) and (r, s, height, width)"
            )

    @property
    def rank(self) -> int | None:
        """The rank that alpha is divided by; None where both are whole."""
        return next((w.rank for w in (self.w2, self.w1) if isinstance(w, Product)), None)

    @property
    def scale(self) -> float:
        """alpha / rank, 1 without a rank."""
        return 1.0 if self.rank is None else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) or (out, in, height, width); (out, in * height * width) for a flattened kernel."""
        (p, q), (r, s, *kernel) = self.w1.shape, self.w2.shape
        return (p * r, q * s, *kernel)

    @property
    def is_conv(self) -> bool:
        """Has it a kernel that is known to be larger than 1x1?"""
        return any(size > 1 for size in self.shape[2:])

    def dense(self, weight: float = 1.0) -> torch.Tensor:
        """weight * scale * w1 (x) w2, in ``shape``."""
        w1, w2 = _whole(self.w1), _whole(self.w2)
        product = torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())
        return (weight * product) * self.scale

    def frobenius(self) -> float:
        """The Frobenius norm of the delta: |scale| * |w1| * |w2|, not multiplied out."""
        norms = [float(torch.linalg.norm(_whole(w))) for w in (self.w1, self.w2)]
        return abs(self.scale) * norms[0] * norms[1]

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> KroneckerDelta:
        """The same delta in another dtype or on another device."""
        w1, w2 = (
            w.to(dtype=dtype, device=device) if isinstance(w, Product) else _moved(w, dtype, device)
            for w in (self.w1, self.w2)
        )
        return replace(self, w1=w1, w2=w2)


@dataclass(frozen=True, eq=False)
class FullDelta:
    """A difference stored whole (``.diff``), of a weight, a norm or a bias; no alpha, no scale."""

    kind: ClassVar[str] = "full"
    change: torch.Tensor

    @property
    def rank(self) -> None:
        """It has none."""
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what it changes."""
        return tuple(self.change.shape)

    @property
    def is_conv(self) -> bool:
        """Has it a kernel larger than 1x1?"""
        return any(size > 1 for size in self.shape[2:])

    def dense(self, weight: float = 1.0) -> torch.Tensor:
        """weight * change."""
        return weight * self.change

    def frobenius(self) -> float:
        """The Frobenius norm of the change."""
        return float(torch.linalg.norm(self.change))

    def to(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> FullDelta:
        """The same delta in another dtype or on another device."""
        return FullDelta(_moved(self.change, dtype, device))


def _moved(tensor: torch.Tensor, dtype: torch.dtype | None, device: str | None) -> torch.Tensor:
    return tensor.to(dtype=dtype or tensor.dtype, device=device or tensor.device)


def _whole(factor: torch.Tensor | Product) -> torch.Tensor:
    return factor.dense() if isinstance(factor, Product) else factor


def _finite(alpha: float) -> None:
    if not math.isfinite(alpha):
        raise BadInput(f"alpha is {alpha}: it must be a finite number")
