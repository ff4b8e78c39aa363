"""The best low-rank approximation of a dense matrix, by a randomised SVD whose error is certified.

Range finder and subspace iteration: Halko, Martinsson, Tropp, "Finding structure with randomness" (2011),
sections 4.5 and 5.1. It ends with V (columns, width), orthonormal right Ritz vectors of A (rows, columns):
A V = U diag(s), and with the residuals F = A^T U - V diag(s), which are orthogonal to V.

How good that is follows from bounds on the eigenvalues l_1 >= l_2 >= ... of H = A^T A. Take the first w
Ritz vectors, t_i = s_i^2, and C = the compression of H to what is orthogonal to them. Then

    l_i     <= m_i      m: the eigenvalues of [[diag(t), (F diag(s))^T], [F diag(s), nu I]],
                        of which only the Gram matrix of F is needed, where C <= nu I;
    l_{w+i} <= c_i      the eigenvalues of C (Cauchy's interlacing theorem).

So the k largest eigenvalues of H sum up to T = m_1 + ... + m_min(w,k) + (c_1 + ... + c_(k-w)) at most, and
no approximation of rank k has an error below sqrt(|A|_F^2 - T). The first bound is sharp where the
spectrum falls, the second where it is flat (the rounding noise of fp16 weights).

Of C a few things are known. Its trace is |A|_F^2 - t_1 - ... - t_w. Beyond that it is probed with a block G
of b independent normal columns, drawn after V: X = C^(p/2) G, p products with A or A^T. With probability
of at least 1 - delta each (delta = 1e-8),

    c_1^p    <= |X|_2^2 / x      x: the delta-quantile of chi squared with b degrees of freedom,
    trace C^p <= what |X|_F^2 allows by the lower tail of a weighted sum of chi squared
                 (Laurent and Massart 2000, lemma 1),

and c_1 + ... + c_j <= j^(1-1/p) (trace C^p)^(1/p), by Hoelder's inequality.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch

from copier.algebra.truncation import RankRule
from copier.errors import BadInput

GOAL = 1.01
"""The certified ratio of an approximation's error to the smallest possible one."""
RESOLUTION = 1e-5
"""Errors below this part of the matrix' norm count as none: a LoRA in fp16 rounds 30 times as coarsely."""
SPARE = 16
"""Columns of the block beyond the rank, at least (Halko et al. advise 5 to 10 and more for flat spectra)."""
PIECE = 1 << 18
"""Elements that are summed in float32 at once."""

_PROBES = 32
_PRODUCTS = 10
"""Products with the matrix that a probe takes at most."""
_ROUNDS = 3
"""Blocks that are tried before the exact route is taken."""
_DELTA = 1e-8
_FALL, _STEP = 0.7, 2.0
"""A spectrum falls where the block's last energy is below this part of the last one that is kept; a step is a
ratio of two energies, one after the other."""
_ENERGY_ERROR = 1e-5
"""Error of a sum of energies computed in float32, as part of the whole: about ten times what was seen."""
_VALUE_ERROR = 1e-6
"""The same of a singular value, as part of the norm."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Approximation:
    """left (rows, rank) diag(values) right (rank, columns), with orthonormal left columns and right rows.

    ``norm`` is the Frobenius norm of the matrix, ``lost`` that of matrix - approximation. No approximation
    of this rank has an error below ``lost / bound``; ``bound`` is 1 where the SVD is exact, and at most
    ``GOAL``. Where ``lost`` is below ``RESOLUTION * norm`` nothing counts as lost, and ``bound`` is 1.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    norm: float
    lost: float
    bound: float


def approximate(
    matrix: torch.Tensor, rule: RankRule, *, seed: int, energy: float | None = None
) -> Approximation:
    """The best approximation of ``matrix`` (rows, columns), float32, by the rank that ``rule`` chooses.

    Its error is at most ``GOAL`` times the smallest possible one, or below ``RESOLUTION`` of the norm.
    ``seed`` determines all random numbers; ``energy`` is the squared Frobenius norm, where it is known.
    Where a block of half the smaller side would be needed, or the bound is not reached, the eigenvalues of
    the Gram matrix in float64 decide.

    Raises:
        BadInput: the matrix has NaN or infinite values, or such large ones that their squares overflow.
    """
    total = squared_norm(matrix) if energy is None else energy
    if not math.isfinite(total):
        raise BadInput("the matrix has values that are not finite, or whose squares are not")
    side = min(matrix.shape)
    draw = torch.Generator().manual_seed(seed)
    wanted = min(rule.rank or rule.max_rank or SPARE, rule.max_rank or side)
    width = wanted + max(SPARE, wanted // 2)
    block = _normal(matrix, matrix.shape[1], 0, draw)
    for _ in range(_ROUNDS):
        if total == 0.0 or 2 * width >= side:
            break
        fresh = _normal(matrix, matrix.shape[1], width - block.shape[1], draw)
        ritz = _iterate(matrix, torch.cat([block, fresh], dim=1))
        rank = _decided(rule, ritz.better, total, side)
        if rank is not None and rank + SPARE <= width:
            found = _certified(matrix, ritz, rank, total, draw)
            if found is not None:
                return found
        block = ritz.right
        # A flat spectrum wants more products, a falling one a larger block.
        if rank is None or _separated(ritz, rank) == width:
            width = 2 * width
    return _exact(matrix, rule, total)


def squared_norm(matrix: torch.Tensor) -> float:
    """The squared Frobenius norm, summed in float32 by pieces, these in float64."""
    pieces = torch.split(matrix.reshape(-1), PIECE)
    return float(sum(float(torch.dot(piece, piece)) for piece in pieces))


@dataclass(frozen=True, eq=False)
class _Ritz:
    """What ``_iterate`` found; energies (squared singular values) in float64 on the CPU.

    ``basis`` (columns, width) has the right Ritz vectors, ``energies`` are theirs, ``coupling`` is the Gram
    matrix of F diag(s). ``left``, ``better`` and ``right`` are of the Ritz pairs of A A^T, half a step on.
    """

    basis: torch.Tensor
    energies: torch.Tensor
    coupling: torch.Tensor
    left: torch.Tensor
    better: torch.Tensor
    right: torch.Tensor


def _iterate(matrix: torch.Tensor, block: torch.Tensor) -> _Ritz:
    """Two products with the matrix and two with its transpose, from the block (columns, width)."""
    left = torch.linalg.qr(matrix @ block).Q
    basis = torch.linalg.qr(_transposed_product(matrix, left)).Q
    left, values, turned = _thin_svd(matrix @ basis)
    basis = basis @ turned
    image = _transposed_product(matrix, left)
    residual = (image - basis * values.to(basis)).double()
    coupling = (residual.T @ residual).cpu() * values * values[:, None]
    right, better, turned = _thin_svd(image)
    return _Ritz(basis, values.square(), coupling, left @ turned, better.square(), right)


def _transposed_product(matrix: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """matrix^T @ block; in this order BLAS is up to three times as fast on wide matrices."""
    return (block.T.contiguous() @ matrix).T.contiguous()


def _thin_svd(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U, s (float64, on the CPU) and V of block = U diag(s) V^T, by QR and the SVD of a small core."""
    q, r = torch.linalg.qr(block)
    left, values, right = torch.linalg.svd(r.double().cpu())
    return q @ left.to(q), values, right.T.to(q)


def _normal(like: torch.Tensor, rows: int, columns: int, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, columns, generator=draw).to(like)


def _decided(rule: RankRule, energies: torch.Tensor, total: float, side: int) -> int | None:
    """The rank that the rule chooses, or None where that depends on singular values not yet known.

    Those have the energy that is left, and none exceeds the last known one: the two extremes are as few
    as possible, and all equal.
    """
    known, last = energies.sqrt(), float(energies[-1])
    left, places = max(0.0, total - float(energies.sum())), side - energies.numel()
    few = int(min(places, left / last)) if last > 0.0 else 0
    steep, flat = torch.zeros(places, dtype=torch.float64), torch.full((places,), math.sqrt(left / places))
    steep[:few] = math.sqrt(last)
    if few < places:
        steep[few] = math.sqrt(max(0.0, left - few * last))
    ranks = {rule.choose(torch.cat([known, tail.double()])) for tail in (steep, flat)}
    return ranks.pop() if len(ranks) == 1 else None


def _certified(
    matrix: torch.Tensor, ritz: _Ritz, rank: int, total: float, draw: torch.Generator
) -> Approximation | None:
    """The approximation of rank ``rank``, if at most ``_PRODUCTS`` products certify its error."""
    basis = ritz.basis[:, : _separated(ritz, rank)]
    tail = _Tail(trace=max(0.0, total - float(ritz.energies[: basis.shape[1]].sum())) + _ENERGY_ERROR * total)
    lost = _squared_error(matrix, ritz, rank, total)
    allowed = lost * (1.0 - GOAL**-2)
    gap = 0.0 if lost <= RESOLUTION**2 * total else _gap(ritz, rank, basis.shape[1], tail, total)
    probe = _without(basis, _normal(matrix, matrix.shape[1], _PROBES, draw))
    for product in range(1, _PRODUCTS + 1):
        if gap <= allowed:
            break
        probe = _transposed_product(matrix, probe) if product % 2 == 0 else matrix @ probe
        probe = tail.learn(product, _without(basis, probe) if product % 2 == 0 else probe)
        before, gap = gap, min(gap, _gap(ritz, rank, basis.shape[1], tail, total))
        # The gap falls as 1 / product does: where even its limit is too much, more products are in vain.
        if product > 2 and gap - product * (before - gap) > allowed:
            break
    if gap > allowed:
        return None
    return Approximation(
        left=ritz.left[:, :rank],
        values=ritz.better[:rank].sqrt().to(matrix),
        right=ritz.right[:, :rank].T,
        norm=math.sqrt(total),
        lost=math.sqrt(lost),
        bound=1.0 / math.sqrt(1.0 - max(0.0, gap) / lost) if lost > 0.0 else 1.0,
    )


def _squared_error(matrix: torch.Tensor, ritz: _Ritz, rank: int, total: float) -> float:
    """|matrix - approximation|_F^2: the energy that is missing, or element by element where that cancels."""
    missing = total - float(ritz.better[:rank].sum())
    if missing > 1e3 * _ENERGY_ERROR * total:
        return missing
    left = ritz.left[:, :rank] * ritz.better[:rank].sqrt().to(matrix)
    right = ritz.right[:, :rank].T
    pieces = zip(torch.split(matrix, _ROWS_AT_ONCE), torch.split(left, _ROWS_AT_ONCE), strict=True)
    return sum(squared_norm(piece - part @ right) for piece, part in pieces)


def _separated(ritz: _Ritz, rank: int) -> int:
    """How many Ritz vectors are taken out before what is left is probed: w in the module's docstring.

    All of them where the spectrum falls within the block, otherwise those above its steepest step.
    """
    energies = ritz.energies
    if energies[-1] <= _FALL * energies[rank - 1]:
        return energies.numel()
    steps = energies[:rank] / energies[1 : rank + 1]
    steepest = int(steps.argmax())
    return steepest + 1 if steps[steepest] >= _STEP else 0


@dataclass(eq=False)
class _Tail:
    """What is known of C, from its trace and from probes."""

    trace: float
    largest: float = field(init=False)
    """nu, a bound of its largest eigenvalue."""
    roots: dict[int, float] = field(default_factory=dict)
    """p -> a bound of (trace C^p)^(1/p)."""
    log_scale: float = 0.0

    def __post_init__(self) -> None:
        self.largest = self.trace

    def learn(self, product: int, probe: torch.Tensor) -> torch.Tensor:
        """Take in the probe after ``product`` products; returns it scaled to norm 1."""
        squares = torch.linalg.eigvalsh((probe.T @ probe).double().cpu())
        energy = float(squares.sum())
        if not energy > 0.0:
            self.largest = 0.0
            return probe
        squares = squares / energy
        self.log_scale += math.log(energy)
        first = float(squares[-1]) / _chi_squared_quantile(_PROBES, _DELTA)
        spread = _PROBES * first * -math.log(_DELTA)
        trace = ((math.sqrt(spread) + math.sqrt(spread + _PROBES)) / _PROBES) ** 2
        self.largest = min(self.largest, math.exp((math.log(first) + self.log_scale) / product))
        self.roots[product] = math.exp((math.log(trace) + self.log_scale) / product)
        return probe / math.sqrt(energy)

    def sum_of(self, count: int) -> float:
        """A bound of the sum of the ``count`` largest eigenvalues."""
        hoelder = (count ** (1.0 - 1.0 / power) * root for power, root in self.roots.items())
        return min(self.trace, count * self.largest, *hoelder) if count else 0.0


def _gap(ritz: _Ritz, rank: int, kept: int, tail: _Tail, total: float) -> float:
    """By how much energy at most the best approximation of rank ``rank`` exceeds ours."""
    both = min(kept, rank)
    root = _root(ritz.coupling[:kept, :kept])
    nu = tail.largest * torch.eye(kept, dtype=root.dtype)
    ends = torch.linalg.eigvalsh(
        torch.cat([torch.cat([ritz.energies[:kept].diag(), root.T], 1), torch.cat([root, nu], 1)])
    ).flip(0)
    above = float((ends[:both] - ritz.energies[:both]).sum())
    captured = (ritz.better[both:rank].sqrt() - _VALUE_ERROR * math.sqrt(total)).clamp(min=0.0)
    rest = max(0.0, tail.sum_of(rank - both) - float(captured.square().sum()))
    gained = float((ritz.better[:both] - ritz.energies[:both]).sum()) - _ENERGY_ERROR * total
    return above + rest - max(0.0, gained)


def _root(gram: torch.Tensor) -> torch.Tensor:
    """R with R^T R = ``gram``, positive semidefinite."""
    values, vectors = torch.linalg.eigh(gram)
    root: torch.Tensor = values.clamp(min=0.0).sqrt()[:, None] * vectors.T
    return root


def _without(basis: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    rest: torch.Tensor = block - basis @ (basis.T @ block)
    return rest


@functools.cache
def _chi_squared_quantile(degrees: int, probability: float) -> float:
    """x with P(chi squared < x) = ``probability``, by bisection."""
    low, high = 0.0, float(degrees)
    for _ in range(60):
        middle = (low + high) / 2.0
        half = torch.tensor([degrees / 2.0, middle / 2.0], dtype=torch.float64)
        below = float(torch.special.gammainc(half[0], half[1])) < probability
        low, high = (middle, high) if below else (low, middle)
    return low


def _exact(matrix: torch.Tensor, rule: RankRule, total: float) -> Approximation:
    """By the eigenvectors of the smaller Gram matrix, in float64 throughout."""
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64, device=matrix.device)
    for piece in torch.split(wide, _ROWS_AT_ONCE, dim=1):
        exact = piece.double()
        gram += exact @ exact.T
    energies, vectors = torch.linalg.eigh(gram)
    energies, vectors = energies.flip(0).clamp(min=0.0), vectors.flip(1)
    rank = rule.choose(energies.sqrt())
    basis, values = vectors[:, :rank], energies[:rank].sqrt()
    image = torch.cat([basis.T @ piece.double() for piece in torch.split(wide, _ROWS_AT_ONCE, dim=1)], dim=1)
    inverse = torch.where(values > RESOLUTION**2 * values[0], 1.0 / values, 0.0)
    other = inverse[:, None] * image
    left, right = (other.T, basis.T) if tall else (basis, other)
    return Approximation(
        left=left.to(matrix),
        values=values.to(matrix),
        right=right.to(matrix),
        norm=math.sqrt(total),
        lost=math.sqrt(float(energies[rank:].sum())),
        bound=1.0,
    )
