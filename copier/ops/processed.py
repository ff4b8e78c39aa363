"""A sum of LoRAs by way of a checkpoint: all are merged into it, and what that changed is extracted.

The copier memo's route (several originals: processed model, model difference, resize). In float32 its
outcome is the exact sum but for rounding; in float16 the checkpoint's own rounding is in it, about 2**-11 of
each weight, beside which the change is small.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from copier.algebra.delta import Delta
from copier.ops.extract import ExtractReport, extract
from copier.ops.lora_reader import LoraReader
from copier.ops.merge import merge
from copier.progress import CancelToken, Observer, ignore

FilePath = str | os.PathLike[str]


def combine_by_checkpoint(
    checkpoint: FilePath,
    loras: Sequence[tuple[FilePath, float]],
    out: FilePath,
    *,
    work: Path,
    processed: str,
    dtype: str = "fp16",
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    **ranks: Any,
) -> ExtractReport:
    """Write the LoRA of (checkpoint + the sum of weight * LoRA) - checkpoint.

    Args:
        work: a folder in which the processed checkpoint lies meanwhile, in the number format ``processed``
            (fp16, bf16, fp32).
        ranks: a rule for ``extract``; without one the ranks are those that the sum can have.

    Raises:
        BadInput, BadCheckpoint, Cancelled: as ``merge`` and ``extract``; no file is left.
    """
    modules = [_modules(path) for path, _ in loras]
    if not ranks:
        ranks["rank"] = sum(_largest(one, conv=False) for one in modules)
    if conv := sum(_largest(one, conv=True) for one in modules):
        ranks.setdefault("conv_rank", ranks.get("rank", conv))
    tuned = work / "processed.safetensors"
    try:
        merge(checkpoint, loras, tuned, dtype=processed, observer=observer, cancel=cancel)
        return extract(tuned, checkpoint, out, dtype=dtype, observer=observer, cancel=cancel, **ranks)
    finally:
        tuned.unlink(missing_ok=True)


def _modules(path: FilePath) -> list[Delta]:
    """Those of a LoRA, without their values: only its header is read."""
    with LoraReader(path) as lora:
        lora.require_factors()
        return list(lora.outlines.values())


def _largest(modules: Sequence[Delta], *, conv: bool) -> int:
    return max((delta.rank or 0 for delta in modules if delta.is_conv == conv), default=0)
