"""Merges LoRAs into a checkpoint file, streamed: reading, computing and hashing run side by side."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from copier.algebra.merging import Change, add_changes, block_rows
from copier.checkpoint.ahead import ReadAhead, Span
from copier.checkpoint.block_weights import block_weights
from copier.checkpoint.blocks import block_of
from copier.checkpoint.dtypes import chosen_dtype, dtype_name, torch_dtype
from copier.checkpoint.family import detect
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import ITEM_BYTES, TensorInfo
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.targets import Target
from copier.checkpoint.writer import TensorWriter, tensor_bytes
from copier.digest import file_digest
from copier.errors import BadInput
from copier.ops.digests import described_inputs
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

PART_BYTES = 16 << 20
"""Of a tensor, in memory at a time."""

_FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")
_UNKNOWN_DIGEST = "0" * 64


@dataclass(frozen=True)
class _Addition:
    """One module of one LoRA, to be added with a ratio to some rows of a tensor."""

    lora: LoraReader
    module: str
    ratio: float
    target: Target


def merge(
    checkpoint: str | os.PathLike[str],
    loras: Sequence[tuple[str | os.PathLike[str], float]],
    out: str | os.PathLike[str],
    *,
    blocks: Sequence[str] = (),
    dtype: str = "keep",
    device: str = "cpu",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> OperationReport:
    """Write the checkpoint with the sum of weight * LoRA added to its weights.

    Some 16 MB of the checkpoint and one module of each LoRA are in memory at a time. Tensors that no
    LoRA changes are copied byte for byte (with ``dtype`` fp16, bf16 or fp32 instead of "keep", all
    floating tensors are cast); the others are computed in float32 on ``device`` and cast once. A
    LoRA of weight 0 changes nothing. ``blocks`` has one text for all LoRAs or one for each, as
    ``block_weights`` reads it: each module's weight is multiplied by that of its block.
    ``observer`` hears of every tensor; ``cancel`` is asked between them.

    Raises:
        BadInput: no such file, another family, LoRA modules that match nothing or differ in shape
            (all are named), block weights that the family does not have, values that the dtype cannot
            hold, an output that exists (without ``overwrite``) or is an input, a full disk; no file
            is left.
        BadCheckpoint: a damaged file, or a kind of LoRA that is not supported.
        Cancelled: ``cancel`` was set; no file is left.
    """
    started = time.perf_counter()
    refuse_own_input(out, [checkpoint, *(path for path, _ in loras)])
    check_weights(loras)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(TensorReader(checkpoint))
        opened = [(stack.enter_context(LoraReader(path)), weight) for path, weight in loras]
        additions = _additions(reader, opened, blocks)
        everything = [(checkpoint, 1.0), *loras]
        hashes = stack.enter_context(described_inputs(everything, digest))
        # What is written first must be as long as what is known in the end.
        files = tuple(InputFile(str(path), _UNKNOWN_DIGEST, weight) for path, weight in everything)
        plan = _plan(reader, dtype)
        with TensorWriter(out, plan, _metadata(reader, files, metadata), overwrite=overwrite) as writer:
            _Merger(reader, additions, device).write(writer, plan, observer, cancel)
            files = hashes()
            writer.restate(_metadata(reader, files, metadata))
        merged = [one for several in additions.values() for one in several]
        ranks = rank_ranges((one.module, one.lora.outlines[one.module]) for one in merged)
    return OperationReport(
        operation="merge",
        inputs=files,
        output=str(out),
        changed=len(additions),
        ranks=ranks,
        residual=0.0,
        seconds=time.perf_counter() - started,
    )


def _metadata(
    reader: TensorReader, inputs: Sequence[InputFile], extra: Mapping[str, str] | None
) -> dict[str, str]:
    operation = {"operation": "merge", "inputs": [file.named for file in inputs]}
    return {
        **{key: text for key, text in reader.metadata.items() if key not in STALE_HASHES},
        "copier_operation": json.dumps(operation, sort_keys=True),
        **(extra or {}),
    }


def _additions(
    reader: TensorReader, loras: Sequence[tuple[LoraReader, float]], blocks: Sequence[str]
) -> Mapping[str, list[_Addition]]:
    """Key -> what is added to it; all LoRAs are checked before the first tensor is read."""
    if not loras:
        raise BadInput("there is no LoRA to merge: give at least one")
    if len(blocks) not in (0, 1, len(loras)):
        raise BadInput(
            f"there are {len(blocks)} sets of block weights for {len(loras)} LoRAs: give one for all, or "
            "one for each"
        )
    family = detect(reader.header).family
    scales = [block_weights(text, family) for text in blocks] or [{}]
    if len(scales) == 1:
        scales *= len(loras)
    additions: dict[str, list[_Addition]] = {}
    for (lora, weight), scale in zip(loras, scales, strict=True):
        targets = require_modules_fit(lora.shapes, lora.family, reader.header)
        for module, target in targets.items():
            ratio = weight * scale.get(block_of(target.key), 1.0)
            if ratio != 0.0:
                additions.setdefault(target.key, []).append(_Addition(lora, module, ratio, target))
    whole = [key for key in additions if reader.info(key).dtype not in _FLOATS]
    if whole:
        raise BadInput(f"{whole[0]!r} is {reader.info(whole[0]).dtype}: no LoRA can be added to it")
    return additions


def _plan(reader: TensorReader, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    if dtype == "keep":
        return {key: (info.dtype, info.shape) for key, info in reader.header.tensors.items()}
    chosen = dtype_name(chosen_dtype(dtype))

    def new(info: TensorInfo) -> str:
        return chosen if info.dtype in _FLOATS else info.dtype

    plan = {key: (new(info), info.shape) for key, info in reader.header.tensors.items()}
    # Wide dtypes first, so that every tensor starts at a multiple of its item size.
    return dict(sorted(plan.items(), key=lambda item: -ITEM_BYTES[item[1][0]]))


class _Merger:
    """Writes the tensors of a plan, part by part."""

    def __init__(self, reader: TensorReader, additions: Mapping[str, list[_Addition]], device: str) -> None:
        self._reader, self._additions, self._device = reader, additions, device

    def write(
        self,
        writer: TensorWriter,
        plan: Mapping[str, tuple[str, tuple[int, ...]]],
        observer: Observer,
        cancel: CancelToken | None,
    ) -> None:
        spans = {key: self._spans(key) for key in plan}
        with ReadAhead(self._reader, [span for parts in spans.values() for span in parts]) as ahead:
            parts = iter(ahead)
            for number, (key, (name, _)) in enumerate(plan.items(), start=1):
                if cancel is not None:
                    cancel.check()
                mine = zip(spans[key], parts, strict=False)
                writer.write_raw(key, self._written(key, name, mine))
                observer(ProgressEvent("merge", step=number, steps=len(plan)))

    def _spans(self, key: str) -> list[Span]:
        """The parts in which the tensor is read; those of a changed one are whole blocks of rows."""
        info = self._reader.info(key)
        step = PART_BYTES
        if key in self._additions:
            columns = math.prod(info.shape[1:])
            block = block_rows(columns) * columns * ITEM_BYTES[info.dtype]
            step = block * max(1, PART_BYTES // block)
        return [(key, start, min(start + step, info.nbytes)) for start in range(0, info.nbytes, step)]

    def _written(
        self, key: str, name: str, parts: Iterator[tuple[Span, torch.Tensor]]
    ) -> Iterator[memoryview]:
        """The bytes to write for the parts that were read."""
        info = self._reader.info(key)
        changes = [self._change(addition) for addition in self._additions.get(key, [])]
        for (_, start, _), part in parts:
            if not changes and info.dtype == name:
                yield part.numpy().data
                continue
            columns = math.prod(info.shape[1:]) if changes else 1
            weight = part.view(torch_dtype(info.dtype)).view(-1, columns).to(self._device)
            out = torch.empty(weight.shape, dtype=torch_dtype(name), device=self._device)
            row = start // (ITEM_BYTES[info.dtype] * columns)
            add_changes(weight, changes, out, first_row=row, name=key)
            yield tensor_bytes(out)

    def _change(self, addition: _Addition) -> Change:
        delta = addition.lora.delta(addition.module, self._device)
        rows = addition.target.rows
        return Change(delta, addition.ratio, rows[0] if rows else 0)
