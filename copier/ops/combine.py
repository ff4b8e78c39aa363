"""Sums and differences of LoRA files, exact or truncated."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from copier.algebra import arithmetic
from copier.algebra.agreement import cosines
from copier.algebra.approximation import Counted
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.algebra.truncation import RankRule, Resized, no_residuals, truncate_sum
from copier.digest import file_digest
from copier.errors import BadInput
from copier.ops.digests import described_inputs
from copier.ops.lora_file import LoraFile, aligned, derived_metadata, read_lora, write_lora
from copier.ops.report import (
    Digest,
    OperationReport,
    check_weights,
    rank_ranges,
    refuse_own_input,
    told,
)
from copier.ops.threads import one_thread_each
from copier.progress import CancelToken, Observer, ignore

FilePath = str | os.PathLike[str]


def difference(
    minuend: FilePath,
    subtrahend: FilePath,
    out: FilePath,
    *,
    ratios: tuple[float, float] = (1.0, -1.0),
    rank: int | None = None,
    conv_rank: int | None = None,
    exact: bool = False,
    dtype: str = "fp16",
    device: str = "cpu",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> OperationReport:
    """Write ratios[0] * minuend + ratios[1] * subtrahend: by default their difference.

    Arguments and errors are those of ``combine``.
    """
    return _combine(
        "difference",
        [(minuend, ratios[0]), (subtrahend, ratios[1])],
        out,
        rank=rank,
        conv_rank=conv_rank,
        exact=exact,
        dtype=dtype,
        device=device,
        metadata=metadata,
        overwrite=overwrite,
        digest=digest,
        observer=observer,
        cancel=cancel,
    )


def combine(
    loras: Sequence[tuple[FilePath, float]],
    out: FilePath,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    exact: bool = False,
    dtype: str = "fp16",
    device: str = "cpu",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> OperationReport:
    """Write the sum of ratio * LoRA over ``loras`` as a LoRA file.

    ``exact`` concatenates the factors: nothing is lost and the ranks add up. Otherwise each module
    is truncated to ``rank``, kernels larger than 1x1 to ``conv_rank`` (default: ``rank``); where
    neither is given, to the largest rank that the module has in any input. Computed in float32 on
    ``device``, cast once to ``dtype`` (fp16, bf16, fp32). ``metadata`` is added to what
    ``derived_metadata`` writes. ``digest`` computes the inputs' digests; ``observer`` hears of the modules,
    and ``cancel`` is asked between them.

    Raises:
        BadInput: no such file, no LoRA, LoRAs of different families or shapes, both a rank and
            ``exact``, an output that exists (without ``overwrite``) or is an input; no file is left.
        BadCheckpoint: a damaged file, or a kind of LoRA that is not supported.
        Cancelled: the token was set; no file is left.
    """
    return _combine(
        "combine",
        loras,
        out,
        rank=rank,
        conv_rank=conv_rank,
        exact=exact,
        dtype=dtype,
        device=device,
        metadata=metadata,
        overwrite=overwrite,
        digest=digest,
        observer=observer,
        cancel=cancel,
    )


def agreement(loras: Sequence[FilePath], *, device: str = "cpu") -> list[list[float]]:
    """The cosines of the deltas of LoRA files (``copier.algebra.agreement``); raises as ``combine``."""
    with one_thread_each() as threads:
        return cosines([source.weights for source in aligned(_read(loras, device, threads))])


def _combine(
    operation: str,
    loras: Sequence[tuple[FilePath, float]],
    out: FilePath,
    *,
    rank: int | None,
    conv_rank: int | None,
    exact: bool,
    dtype: str,
    device: str,
    metadata: Mapping[str, str] | None,
    overwrite: bool,
    digest: Digest,
    observer: Observer,
    cancel: CancelToken | None,
) -> OperationReport:
    started = time.perf_counter()
    if exact and (rank is not None or conv_rank is not None):
        raise BadInput("an exact combination has no rank of its own: give a rank or exact, not both")
    if not loras:
        raise BadInput("there is no LoRA to combine: give at least one")
    refuse_own_input(out, [path for path, _ in loras])
    check_weights(loras)
    with one_thread_each() as threads, described_inputs(loras, digest) as inputs:
        sources = aligned(_read([path for path, _ in loras], device, threads))
        terms = [(source.weights, ratio) for source, (_, ratio) in zip(sources, loras, strict=True)]
        counted = told(operation, observer, cancel)
        result = _exact(terms, counted) if exact else _truncated(terms, rank, conv_rank, threads, counted)
        files = inputs()
        what = {
            "operation": operation,
            "inputs": [file.named for file in files],
            "exact": exact,
            "residual": result.residuals.total,
        }
        described = derived_metadata(sources, result.lora, out, what, metadata)
        write_lora(out, result.lora, described, dtype=dtype, overwrite=overwrite)
    return OperationReport(
        operation=operation,
        inputs=files,
        output=str(out),
        changed=len(result.lora),
        ranks=rank_ranges(result.lora.items()),
        residual=result.residuals.total,
        residuals=result.residuals.modules,
        seconds=time.perf_counter() - started,
    )


def _read(paths: Sequence[FilePath], device: str, threads: int) -> list[LoraFile]:
    with ThreadPoolExecutor(threads, "read") as pool:
        return list(pool.map(lambda path: read_lora(path, device=device), paths))


def _exact(terms: Sequence[tuple[LoraWeights, float]], counted: Counted) -> Resized:
    total = arithmetic.combine(terms)
    counted(len(total), len(total))
    return Resized(total, no_residuals(total))


def _truncated(
    terms: Sequence[tuple[LoraWeights, float]],
    rank: int | None,
    conv_rank: int | None,
    threads: int,
    counted: Counted,
) -> Resized:
    inputs = [weights for weights, _ in terms]
    return truncate_sum(
        terms,
        lambda name, delta: _rule(name, delta, inputs, rank, conv_rank),
        threads=threads,
        counted=counted,
    )


def _rule(
    name: str,
    delta: LowRankDelta,
    inputs: Sequence[LoraWeights],
    rank: int | None,
    conv_rank: int | None,
) -> RankRule:
    if delta.is_conv and conv_rank is not None:
        return RankRule(rank=conv_rank)
    if rank is not None:
        return RankRule(rank=rank)
    return RankRule(rank=max(weights[name].rank for weights in inputs if name in weights))
