"""Truncation of a LoRA file to fewer ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from copier.algebra import truncation
from copier.algebra.truncation import RankRule
from copier.digest import file_digest
from copier.ops.digests import described_inputs
from copier.ops.lora_file import STALE_HASHES, derived_metadata, read_lora, write_lora
from copier.ops.report import Digest, OperationReport, rank_ranges, refuse_own_input, told
from copier.ops.threads import one_thread_each
from copier.progress import CancelToken, Observer, ignore


def resize(
    lora: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    sv_ratio: float | None = None,
    sv_fro: float | None = None,
    sv_cumulative: float | None = None,
    max_rank: int | None = None,
    dtype: str = "fp16",
    device: str = "cpu",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> OperationReport:
    """Write ``lora`` truncated by one of rank, sv_ratio, sv_fro and sv_cumulative (``RankRule``).

    ``conv_rank`` is the rank of kernels larger than 1x1; without it the same rule holds for them.
    The metadata of the input is kept, its description of the network and its hash are renewed. ``observer``
    hears of the modules, and ``cancel`` is asked between them.

    Raises:
        BadInput: no rule or several, or as ``combine``; no file is left.
        BadCheckpoint: a damaged file, or a kind of LoRA that is not supported.
        Cancelled: the token was set; no file is left.
    """
    started = time.perf_counter()
    rule = RankRule(
        rank=rank,
        sv_ratio=sv_ratio,
        sv_fro=sv_fro,
        sv_cumulative=sv_cumulative,
        max_rank=max_rank,
    )
    conv_rule = None if conv_rank is None else RankRule(rank=conv_rank)
    refuse_own_input(out, [lora])
    with one_thread_each() as threads, described_inputs([(lora, 1.0)], digest) as inputs:
        source = read_lora(lora, device=device)
        counted = told("resize", observer, cancel)
        result = truncation.resize(source.weights, rule, conv_rule, threads=threads, counted=counted)
        (file,) = inputs()
        what = {"operation": "resize", "inputs": [file.named], "residual": result.residuals.total}
        described = {
            **{key: text for key, text in source.metadata.items() if key not in _STALE},
            **derived_metadata([source], result.lora, out, what, metadata),
        }
        write_lora(out, result.lora, described, dtype=dtype, overwrite=overwrite)
    return OperationReport(
        operation="resize",
        inputs=(file,),
        output=str(out),
        changed=len(result.lora),
        ranks=rank_ranges(result.lora.items()),
        residual=result.residuals.total,
        residuals=result.residuals.modules,
        seconds=time.perf_counter() - started,
    )


_STALE = ("ss_network_args", "copier.provenance", *STALE_HASHES)
"""Metadata that described the file as it was."""
