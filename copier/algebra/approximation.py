"""The best approximation of a sum of low-rank products by a lower rank, without multiplying it out.

For delta = sum_i c_i U_i D_i = U C D, with U (out, r) and D (r, in) the factors side by side, C the diagonal
matrix of the c_i and r the sum of the ranks, everything but the first and the last product happens in r x r:

    G_u = U^T U,  G_d = D D^T = L L^T,  A = L^T C G_u C L = Y diag(s^2) Y^T

The eigenvalues of A are the squares of the singular values s. The rows of V = Z^T D, Z = L^-T Y, are the
right singular vectors, and delta V^T = U C L Y, as G_d Z = L Y. Keeping the k largest is best (Eckart and
Young, 1936), and ||delta||^2 is the sum of the entries of C G_u C times those of G_d.

A Gram matrix halves the number of digits: what is smaller than the square root of the precision, beside
the largest, is lost. So each result is checked, and computed again where the check fails: in float64, then by
QR and SVD, which have no such limit. An error e in V costs only e^2: delta V^T V is the best approximation in
the span of V, and what it leaves behind is orthogonal to it. That is why float32 is enough wherever a
noticeable part is lost anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from copier.errors import BadInput

Counted = Callable[[int, int], None]
"""Hears of progress: how many are done, and how many there are."""

Term = tuple[torch.Tensor, torch.Tensor, float]
"""up (out, rank), down (rank, in) and the factor c of their product."""

RESIDUAL_ERROR = 5e-6
"""Largest error of lost / norm, and of the approximation beside the norm, that a Gram matrix may cause."""

EXCESS = 1e-3
"""Largest departure of V from orthonormal rows, beside lost / norm: the loss grows by half its square."""

GRAM_ROUNDING = 4.0
"""Error of ||delta||^2 and of its kept part in units of eps * sum_i ||c_i u_i||^2 ||d_i||^2. Measured on
random factors of rank 16 to 128 with spectra 0.5^i to 1^i, sides of 320 to 23,040: at most 3.5."""

NOISE = 1e-13
"""Singular values below this part of sum_i ||c_i u_i|| ||d_i|| are rounding of the float64 QR: taken as 0."""

BATCH = 32
"""Matrices of r x r that are decomposed together; at r = 128 a few such batches fit a processor's cache."""


def not_counted(done: int, total: int) -> None:
    """The one that does nothing."""


@dataclass(frozen=True, eq=False)
class Sum:
    """sum_i c_i up_i @ down_i, and how many of its singular values are kept.

    ``choose`` gets all of them (n,), descending and in float64, and returns how many, 1 to n.
    ``every_value`` says that it looks at small ones too, not only at large ones and the norm.
    """

    terms: Sequence[Term]
    choose: Callable[[torch.Tensor], int]
    every_value: bool = False

    @property
    def rank(self) -> int:
        """The number of columns of all ups together, r."""
        return sum(up.shape[1] for up, _, _ in self.terms)

    @property
    def wants_float64(self) -> bool:
        """Do small singular values count, or is one of the c_i beyond float32?"""
        return self.every_value or any(abs(c) > torch.finfo(torch.float32).max for _, _, c in self.terms)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        up, down, _ = self.terms[0]
        return up.shape[0], down.shape[1]


@dataclass(frozen=True, eq=False)
class Approximation:
    """left (out, k) @ right (k, in), in float32, with the root of each singular value in either.

    ``norm`` is the Frobenius norm of what was approximated, ``lost`` that of what is missing.
    """

    left: torch.Tensor
    right: torch.Tensor
    norm: float
    lost: float


def approximate(
    sums: Sequence[Sum], *, threads: int = 1, counted: Counted = not_counted
) -> list[Approximation]:
    """The best approximation of each sum by the rank that it chooses.

    Its error is at most (1 + 1e-5) times the smallest possible one, or that plus 1e-5 of the norm where
    next to nothing is lost. It does not depend on which other sums are given, nor on ``threads``, how many
    batches are worked on at once. ``counted`` hears how many are done; what it raises ends the work.

    Raises:
        BadInput: a sum overflows.
    """
    # Hosts allow TF32, whose products have 10 bits.
    exact_products = torch.get_float32_matmul_precision() == "highest"
    done: dict[int, Approximation] = {}
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for dtype in (torch.float32, torch.float64):
            left = [
                index
                for index, one in enumerate(sums)
                if index not in done
                and one.rank <= min(one.shape)
                and (dtype == torch.float64 or (exact_products and not one.wants_float64))
            ]
            batches = _batches(left, sums)
            results = pool.map(lambda batch, dtype=dtype: _by_gram([sums[i] for i in batch], dtype), batches)
            for batch, found in zip(batches, results, strict=True):
                done.update((index, one) for index, one in zip(batch, found, strict=True) if one is not None)
                counted(len(done), len(sums))
        left = [index for index in range(len(sums)) if index not in done]
        for index, approximation in zip(left, pool.map(lambda index: _by_qr(sums[index]), left), strict=True):
            done[index] = approximation
            counted(len(done), len(sums))
    return [done[index] for index in range(len(sums))]


def _batches(indices: Sequence[int], sums: Sequence[Sum]) -> list[list[int]]:
    """``indices`` in groups of one rank, at most ``BATCH`` in each."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(sums[index].rank, []).append(index)
    return [
        group[start : start + BATCH] for group in groups.values() for start in range(0, len(group), BATCH)
    ]


def _by_gram(sums: Sequence[Sum], dtype: torch.dtype) -> list[Approximation | None]:
    """The approximations by Gram matrices in ``dtype``, all of one rank r; None where it is too coarse."""
    eps, smallest = torch.finfo(dtype).eps, torch.finfo(dtype).tiny / torch.finfo(dtype).eps
    factors, gram_up, gram_down = _grams(sums, dtype)
    weights = gram_down.diagonal(dim1=-2, dim2=-1)
    squared = (gram_up * gram_down).sum((-2, -1), dtype=torch.float64)
    parts = (gram_up.diagonal(dim1=-2, dim2=-1) * weights).sum(-1, dtype=torch.float64)
    rounding = GRAM_ROUNDING * eps * parts / squared
    # A residual is at most 1, so that its error is at least half of that of the squares.
    usable = (squared > smallest) & (rounding <= 2.0 * RESIDUAL_ERROR) & (weights.amin(-1) > smallest)
    if not bool(usable.any()):
        return [None] * len(sums)
    lower, failed = torch.linalg.cholesky_ex(gram_down)
    core = lower.mT @ (gram_up @ lower)
    usable &= (failed == 0) & torch.isfinite(core.diagonal(dim1=-2, dim2=-1).sum(-1))
    squares, vectors = torch.linalg.eigh(torch.where(usable[:, None, None], core, 1.0))
    squares, vectors = squares.flip(-1).double().clamp_min(0.0), vectors.flip(-1)
    counts = [one.choose(values) for one, values in zip(sums, squares.sqrt(), strict=True)]
    vectors = vectors[..., : max(counts)]
    inner = torch.linalg.solve_triangular(lower.mT, vectors, upper=True)
    skew = eps * (inner.square() * weights[..., None]).sum(-2)
    roots = squares.clamp_min(eps * squared[:, None]).sqrt().sqrt()[:, None, : max(counts)].to(dtype)
    mixing_up, mixing_down = (lower @ vectors) * factors / roots, inner * roots
    result: list[Approximation | None] = []
    for index, (one, count) in enumerate(zip(sums, counts, strict=True)):
        norm = math.sqrt(float(squared[index])) if usable[index] else 0.0
        gone = norm**2 - float(squares[index, :count].sum()) if count < one.rank else 0.0
        lost = math.sqrt(max(gone, 0.0))
        precise = norm > 0.0 and _precise(
            residual=lost / norm,
            rounding=float(rounding[index]),
            skew=float(skew[index, :count].max()),
            every_value=one.every_value,
        )
        if precise:
            _check_range(norm)
            left, right = _products(one, mixing_up[index, :, :count], mixing_down[index, :, :count])
            result.append(Approximation(left, right, norm, lost))
        else:
            result.append(None)
    return result


def _grams(sums: Sequence[Sum], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The diagonals of C as columns (b, r, 1), C G_u C and G_d (b, r, r)."""
    factors = torch.stack(
        [torch.cat([up.new_full((up.shape[1], 1), c, dtype=dtype) for up, _, c in one.terms]) for one in sums]
    )
    ups = torch.stack([_gram([up.to(dtype).mT for up, _, _ in one.terms]) for one in sums])
    downs = torch.stack([_gram([down.to(dtype) for _, down, _ in one.terms]) for one in sums])
    return factors, ups * factors * factors.mT, downs


def _products(
    one: Sum, mixing_up: torch.Tensor, mixing_down: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """U mixing_up (out, k) and mixing_down^T D (k, in) in float32."""
    # With few columns MKL is three times as fast when the long side comes last.
    left = _product([up.to(mixing_up.dtype).mT for up, _, _ in one.terms], mixing_up)
    right = _product([down.to(mixing_down.dtype) for _, down, _ in one.terms], mixing_down)
    return left.mT.float(), right.float()


def _precise(*, residual: float, rounding: float, skew: float, every_value: bool) -> bool:
    """Is a relative error ``rounding`` of the squares small enough for the residual, and V orthonormal?"""
    error = math.sqrt(rounding)
    if not every_value and residual > error:
        error = rounding / (2.0 * residual)
    return error <= RESIDUAL_ERROR and skew <= max(EXCESS * residual, RESIDUAL_ERROR)


def _gram(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """The inner products of all rows with each other (r, r), for rows in blocks (r_i, n)."""
    if len(rows) == 1:
        return rows[0] @ rows[0].mT
    blocks = {(i, j): rows[i] @ rows[j].mT for i in range(len(rows)) for j in range(i, len(rows))}
    places = range(len(rows))
    lines = [[blocks[i, j] if i <= j else blocks[j, i].mT for j in places] for i in places]
    return torch.cat([torch.cat(line, dim=1) for line in lines])


def _product(rows: Sequence[torch.Tensor], mixing: torch.Tensor) -> torch.Tensor:
    """mixing^T @ rows, (k, n), for rows in blocks (r_i, n) and mixing (r, k)."""
    result = mixing.new_zeros(mixing.shape[1], rows[0].shape[1])
    start = 0
    for block in rows:
        result.addmm_(mixing[start : start + block.shape[0]].mT, block)
        start += block.shape[0]
    return result


def _by_qr(one: Sum) -> Approximation:
    """The approximation by thin QRs of both factors and the SVD of their small core, in float64."""
    up = torch.cat([c * up.double() for up, _, c in one.terms], dim=1)
    down = torch.cat([down.double() for _, down, _ in one.terms])
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    core = r_up @ r_down.mT
    if not bool(torch.isfinite(core).all()):
        _check_range(math.inf)
    vectors, values, right = torch.linalg.svd(core, full_matrices=False)
    noise = NOISE * float((up.norm(dim=0) * down.norm(dim=1)).sum())
    values = torch.where(values > noise, values, 0.0)
    _check_range(float(values.norm()))
    count = one.choose(values)
    roots = values[:count].sqrt()
    return Approximation(
        left=(q_up @ (vectors[:, :count] * roots)).float(),
        right=((roots[:, None] * right[:count]) @ q_down.mT).float(),
        norm=float(values.norm()),
        lost=float(values[count:].norm()),
    )


def _check_range(norm: float) -> None:
    if not norm <= torch.finfo(torch.float32).max:
        raise BadInput(
            f"the LoRA's weights are so large that their product overflows (norm {norm:g}, float32 ends at "
            f"{torch.finfo(torch.float32).max:g}): it is broken"
        )
