"""Merges LoRAs into a checkpoint file, tensor by tensor."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence

import torch

from copier.algebra.delta import LowRankDelta, cast, merged_weight
from copier.checkpoint.blocks import block_of
from copier.checkpoint.dtypes import chosen_dtype, dtype_name, torch_dtype
from copier.checkpoint.fit import require_lora_fits
from copier.checkpoint.header import ITEM_BYTES, TensorInfo, read_header
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.rows import Rows
from copier.checkpoint.writer import TensorWriter
from copier.digest import file_digest
from copier.errors import BadInput
from copier.ops.lora_file import STALE_HASHES, read_lora
from copier.ops.report import (
    Digest,
    InputFile,
    OperationReport,
    check_weights,
    rank_ranges,
    refuse_own_input,
)
from copier.progress import CancelToken, Observer, ProgressEvent, ignore

_FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")

_Parts = dict[Rows | None, list[tuple[LowRankDelta, float]]]
_Deltas = dict[str, _Parts]
"""Key -> rows (None: all) -> what is added to them."""


def merge(
    checkpoint: str | os.PathLike[str],
    loras: Sequence[tuple[str | os.PathLike[str], float]],
    out: str | os.PathLike[str],
    *,
    dtype: str = "keep",
    device: str = "cpu",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> OperationReport:
    """Write the checkpoint with the sum of weight * LoRA added to its weights.

    One tensor is in memory at a time. Tensors that no LoRA changes are copied byte for byte
    (with ``dtype`` fp16, bf16 or fp32 instead of "keep", all floating tensors are cast); the
    others are computed in float32 on ``device`` and cast once. A LoRA of weight 0 changes nothing.
    ``observer`` hears of every tensor; ``cancel`` is asked between them.

    Raises:
        BadInput: no such file, another family, LoRA modules that match nothing or differ in shape
            (all are named), values that the dtype cannot hold, an output that exists (without
            ``overwrite``) or is an input, a full disk; no file is left.
        BadCheckpoint: a damaged file, or a kind of LoRA that is not supported.
        Cancelled: ``cancel`` was set; no file is left.
    """
    started = time.perf_counter()
    refuse_own_input(out, [checkpoint, *(path for path, _ in loras)])
    check_weights(loras)
    with TensorReader(checkpoint) as reader:
        deltas = _deltas(reader, loras, device)
        inputs = (
            InputFile(str(checkpoint), digest(checkpoint)),
            *(InputFile(str(path), digest(path), weight) for path, weight in loras),
        )
        written = {
            **{key: text for key, text in reader.metadata.items() if key not in STALE_HASHES},
            "copier_operation": json.dumps(
                {"operation": "merge", "inputs": [file.named for file in inputs]}, sort_keys=True
            ),
            **(metadata or {}),
        }
        plan = _plan(reader, dtype)
        with TensorWriter(out, plan, written, overwrite=overwrite) as writer:
            for number, (key, (name, _)) in enumerate(plan.items(), start=1):
                if cancel is not None:
                    cancel.check()
                _write(reader, writer, key, name, deltas, device)
                observer(ProgressEvent("merge", step=number, steps=len(plan)))
    return OperationReport(
        operation="merge",
        inputs=inputs,
        output=str(out),
        changed=len(deltas),
        ranks=rank_ranges(_named(deltas)),
        residual=0.0,
        seconds=time.perf_counter() - started,
    )


def _deltas(
    reader: TensorReader, loras: Sequence[tuple[str | os.PathLike[str], float]], device: str
) -> _Deltas:
    """What is added to the checkpoint's tensors; every LoRA is checked before any is read."""
    if not loras:
        raise BadInput("there is no LoRA to merge: give at least one")
    targets = [require_lora_fits(read_header(path), reader.header) for path, _ in loras]
    deltas: _Deltas = {}
    for (path, weight), places in zip(loras, targets, strict=True):
        if weight == 0.0:
            continue
        for name, delta in read_lora(path, device=device).weights.items():
            place = places[name]
            deltas.setdefault(place.key, {}).setdefault(place.rows, []).append((delta, weight))
    whole = [key for key in deltas if reader.info(key).dtype not in _FLOATS]
    if whole:
        raise BadInput(f"{whole[0]!r} is {reader.info(whole[0]).dtype}: no LoRA can be added to it")
    return deltas


def _plan(reader: TensorReader, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    if dtype == "keep":
        return {key: (info.dtype, info.shape) for key, info in reader.header.tensors.items()}
    chosen = dtype_name(chosen_dtype(dtype))

    def new(info: TensorInfo) -> str:
        return chosen if info.dtype in _FLOATS else info.dtype

    plan = {key: (new(info), info.shape) for key, info in reader.header.tensors.items()}
    # Wide dtypes first, so that every tensor starts at a multiple of its item size.
    return dict(sorted(plan.items(), key=lambda item: -ITEM_BYTES[item[1][0]]))


def _write(
    reader: TensorReader, writer: TensorWriter, key: str, name: str, deltas: _Deltas, device: str
) -> None:
    if key not in deltas and reader.info(key).dtype == name:
        writer.write_raw(key, reader.raw(key))
        return
    weight = reader.tensor(key)
    if key in deltas:
        weight = _merged(weight.to(device), deltas[key])
    writer.write(key, cast(weight, torch_dtype(name), key))


def _merged(weight: torch.Tensor, parts: _Parts) -> torch.Tensor:
    whole = parts.get(None)
    result = merged_weight(weight, whole) if whole else weight.float().clone()
    for rows, added in parts.items():
        if rows is not None:
            result[slice(*rows)] = merged_weight(result[slice(*rows)], added)
    return result


def _named(deltas: _Deltas) -> list[tuple[str, LowRankDelta]]:
    def prefix(key: str) -> str:
        return "lora_te" if block_of(key) == "BASE" else "lora_unet"

    return [
        (prefix(key), delta)
        for key, parts in deltas.items()
        for added in parts.values()
        for delta, _ in added
    ]
