"""Merges LoRAs into a checkpoint file, tensor by tensor."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from copier.algebra.delta import Delta, cast, merged_weight
from copier.checkpoint.dtypes import chosen_dtype, dtype_name, torch_dtype
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import ITEM_BYTES, TensorInfo
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.rows import Rows
from copier.checkpoint.writer import TensorWriter
from copier.digest import file_digest
from copier.errors import BadInput
from copier.ops.lora_file import STALE_HASHES
from copier.ops.lora_reader import LoraReader
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


@dataclass(frozen=True)
class _Change:
    """weight times the change of a LoRA's module, which is read when it is needed."""

    lora: LoraReader
    name: str
    weight: float

    def read(self, device: str) -> tuple[Delta, float]:
        return self.lora.delta(self.name, device), self.weight


_Parts = dict[Rows | None, list[_Change]]
_Changes = dict[str, _Parts]
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

    LoRAs may be of any kind that ``LoraReader`` reads. One tensor and the modules that change it are in
    memory at a time. Tensors that no LoRA changes are copied byte for byte
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
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(TensorReader(checkpoint))
        readers = [(stack.enter_context(LoraReader(path)), weight) for path, weight in loras]
        changes = _changes(reader, readers)
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
                _write(reader, writer, key, name, changes, device)
                observer(ProgressEvent("merge", step=number, steps=len(plan)))
    return OperationReport(
        operation="merge",
        inputs=inputs,
        output=str(out),
        changed=len(changes),
        ranks=rank_ranges(_outlines(changes)),
        residual=0.0,
        seconds=time.perf_counter() - started,
    )


def _changes(reader: TensorReader, loras: Sequence[tuple[LoraReader, float]]) -> _Changes:
    """What is added to the checkpoint's tensors; every LoRA is checked before any is read."""
    if not loras:
        raise BadInput("there is no LoRA to merge: give at least one")
    targets = [require_modules_fit(lora.shapes, lora.family, reader.header) for lora, _ in loras]
    changes: _Changes = {}
    for (lora, weight), places in zip(loras, targets, strict=True):
        if weight == 0.0:
            continue
        for name, place in places.items():
            change = _Change(lora, name, weight)
            changes.setdefault(place.key, {}).setdefault(place.rows, []).append(change)
    whole = [key for key in changes if reader.info(key).dtype not in _FLOATS]
    if whole:
        raise BadInput(f"{whole[0]!r} is {reader.info(whole[0]).dtype}: no LoRA can be added to it")
    return changes


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
    reader: TensorReader, writer: TensorWriter, key: str, name: str, changes: _Changes, device: str
) -> None:
    if key not in changes and reader.info(key).dtype == name:
        writer.write_raw(key, reader.raw(key))
        return
    weight = reader.tensor(key)
    if key in changes:
        weight = _merged(weight.to(device), changes[key], device)
    writer.write(key, cast(weight, torch_dtype(name), key))


def _merged(weight: torch.Tensor, parts: _Parts, device: str) -> torch.Tensor:
    """``weight``, which may be overwritten, with everything added; in float32."""
    result = weight.float()
    for rows, changes in parts.items():
        added = [change.read(device) for change in changes]
        if rows is None:
            result = merged_weight(result, added)
        else:
            result[slice(*rows)] = merged_weight(result[slice(*rows)], added)
    return result


def _outlines(changes: _Changes) -> list[tuple[str, Delta]]:
    return [
        (change.name, change.lora.outlines[change.name])
        for parts in changes.values()
        for added in parts.values()
        for change in added
    ]
