"""Merges LoRAs into a checkpoint file, streamed: reading, computing and hashing run side by side."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from copier.algebra.merging import Change, add_changes, block_rows, matrix_of
from copier.checkpoint.ahead import Buffers, in_thread
from copier.checkpoint.block_weights import block_weights
from copier.checkpoint.blocks import TEXT_PREFIXES, block_of, block_of_module
from copier.checkpoint.dtypes import chosen_dtype, dtype_name, torch_dtype
from copier.checkpoint.family import detect
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import FLOATS, ITEM_BYTES, Header, TensorInfo
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.targets import Target
from copier.checkpoint.writer import TensorWriter
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
from copier.ops.threads import one_thread_each
from copier.progress import CancelToken, Observer, ProgressEvent, ignore

PART_BYTES = 16 << 20
"""Of a tensor, read and written at a time."""
BUFFERS = 3
"""Parts that may be in memory between reading and computing, and between computing and writing."""

_UNKNOWN_DIGEST = "0" * 64


@dataclass(frozen=True)
class _Addition:
    """One module of one LoRA, to be added with a ratio to some rows of a tensor."""

    lora: LoraReader
    module: str
    ratio: float
    target: Target


@dataclass(frozen=True)
class MergeReport(OperationReport):
    """What was merged.

    ``left_out`` are names and shapes of modules for text encoders, where the file has none: those of FLUX,
    SD3 and of a U-Net alone are files of their own.
    """

    left_out: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as an object that ``json.dumps`` takes."""
        left_out = [{"module": name, "shape": list(shape)} for name, shape in self.left_out]
        return {**super().to_json(), "left_out": left_out}


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
) -> MergeReport:
    """Write the checkpoint with the sum of weight * LoRA added to its weights.

    Some parts of 16 MB and one module of each LoRA are in memory at a time; a module that is no product of
    two factors is multiplied out. Tensors that no
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
        stack.enter_context(one_thread_each())
        reader = stack.enter_context(TensorReader(checkpoint))
        opened = [(stack.enter_context(LoraReader(path)), weight) for path, weight in loras]
        nowhere = [_without_encoder(lora, reader.header) for lora, _ in opened]
        additions = _additions(reader, opened, nowhere, blocks)
        everything = [(checkpoint, 1.0), *loras]
        hashes = stack.enter_context(described_inputs(everything, digest, cancel))
        # What is written first must be as long as what is known in the end.
        files = tuple(InputFile(str(path), _UNKNOWN_DIGEST, weight) for path, weight in everything)
        plan = _plan(reader, dtype)
        with TensorWriter(out, plan, _metadata(reader, files, metadata), overwrite=overwrite) as writer:
            _Merger(reader, additions, plan, device).write(writer, observer, cancel)
            files = hashes()
            writer.restate(_metadata(reader, files, metadata))
        merged = [one for several in additions.values() for one in several]
        ranks = rank_ranges((one.module, one.lora.outlines[one.module]) for one in merged)
    return MergeReport(
        operation="merge",
        inputs=files,
        output=str(out),
        changed=len(additions),
        ranks=ranks,
        residual=0.0,
        seconds=time.perf_counter() - started,
        left_out=tuple(module for modules in nowhere for module in modules.items()),
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
    reader: TensorReader,
    loras: Sequence[tuple[LoraReader, float]],
    nowhere: Sequence[Mapping[str, tuple[int, ...]]],
    blocks: Sequence[str],
) -> Mapping[str, list[_Addition]]:
    """Key -> what is added to it; all LoRAs are checked before the first tensor is read.

    ``nowhere`` has for each LoRA the modules that are left out.
    """
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
    for (lora, weight), left_out, scale in zip(loras, nowhere, scales, strict=True):
        shapes = {name: shape for name, shape in lora.shapes.items() if name not in left_out}
        if left_out and not shapes:
            raise BadInput(
                f"{lora.path.name!r} changes text encoders only, and {reader.path.name!r} has none: merge it "
                "into a checkpoint with its text encoders"
            )
        targets = require_modules_fit(shapes, lora.family, reader.header)
        for module, target in targets.items():
            ratio = weight * scale.get(block_of(target.key), 1.0)
            if ratio != 0.0:
                additions.setdefault(target.key, []).append(_Addition(lora, module, ratio, target))
    whole = [key for key in additions if reader.info(key).dtype not in FLOATS]
    if whole:
        raise BadInput(
            f"{len(whole)} weights that the LoRA changes are integers ({whole[0]!r} is "
            f"{reader.info(whole[0]).dtype}): use the fp16 or bf16 file of the model"
        )
    return additions


def _without_encoder(lora: LoraReader, checkpoint: Header) -> dict[str, tuple[int, ...]]:
    """The LoRA's modules for text encoders, if the checkpoint has no text encoder at all."""
    if any(key.startswith(TEXT_PREFIXES) for key in checkpoint.tensors):
        return {}
    family = detect(checkpoint).family
    return {name: shape for name, shape in lora.shapes.items() if block_of_module(name, family) == "BASE"}


def _plan(reader: TensorReader, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    if dtype == "keep":
        return {key: (info.dtype, info.shape) for key, info in reader.header.tensors.items()}
    chosen = dtype_name(chosen_dtype(dtype))

    def new(info: TensorInfo) -> str:
        return chosen if info.dtype in FLOATS else info.dtype

    plan = {key: (new(info), info.shape) for key, info in reader.header.tensors.items()}
    # Wide dtypes first, so that every tensor starts at a multiple of its item size.
    return dict(sorted(plan.items(), key=lambda item: -ITEM_BYTES[item[1][0]]))


@dataclass(frozen=True)
class _Part:
    """Some bytes of a tensor, in a buffer of ``owner``."""

    data: torch.Tensor
    buffer: torch.Tensor
    owner: Buffers

    def release(self) -> None:
        """Its memory may be used again."""
        self.owner.give(self.buffer)


class _Merger:
    """Writes the tensors of a plan, part by part; reading and computing run ahead of it in threads."""

    def __init__(
        self,
        reader: TensorReader,
        additions: Mapping[str, list[_Addition]],
        plan: Mapping[str, tuple[str, tuple[int, ...]]],
        device: str,
    ) -> None:
        self._reader, self._additions, self._device = reader, additions, device
        self._dtypes = {key: name for key, (name, _) in plan.items()}
        self._spans = {key: self._cut(key) for key in plan}
        read = [max((end - start for start, end in cuts), default=0) for cuts in self._spans.values()]
        computed = [size * self._growth(key) for key, size in zip(self._spans, read, strict=True)]
        self._read = Buffers(BUFFERS, max(read, default=0))
        self._computed = Buffers(BUFFERS, max(computed, default=0))

    def write(self, writer: TensorWriter, observer: Observer, cancel: CancelToken | None) -> None:
        """Give the writer every tensor."""
        with (
            in_thread(self._reading(), self._read) as read,
            in_thread(self._computing(read), self._read, self._computed) as done,
        ):
            for number, (key, cuts) in enumerate(self._spans.items(), start=1):
                if cancel is not None:
                    cancel.check()
                writer.write_raw(key, _bytes(next(done) for _ in cuts))
                observer(ProgressEvent("merge", step=number, steps=len(self._spans)))

    def _cut(self, key: str) -> list[tuple[int, int]]:
        """First and last byte (exclusive) of each part; a changed tensor has whole blocks of rows."""
        info, step = self._reader.info(key), PART_BYTES // self._growth(key)
        if key in self._additions:
            columns = math.prod(info.shape[1:])
            block = block_rows(columns) * columns * ITEM_BYTES[info.dtype]
            step = block * max(1, step // block)
        return [(start, min(start + step, info.nbytes)) for start in range(0, info.nbytes, step)]

    def _growth(self, key: str) -> int:
        return max(1, ITEM_BYTES[self._dtypes[key]] // ITEM_BYTES[self._reader.info(key).dtype])

    def _reading(self) -> Iterator[_Part]:
        for key, cuts in self._spans.items():
            for start, end in cuts:
                buffer = self._read.take()
                part = buffer[: end - start]
                self._reader.read_into(part.numpy().data, key, start)
                yield _Part(part, buffer, self._read)

    def _computing(self, parts: Iterator[_Part]) -> Iterator[_Part]:
        for key, cuts in self._spans.items():
            changes = [self._change(addition) for addition in self._additions.get(key, [])]
            copied = not changes and self._dtypes[key] == self._reader.info(key).dtype
            for start, _ in cuts:
                part = next(parts)
                yield part if copied else self._changed(key, start, part, changes)

    def _changed(self, key: str, start: int, part: _Part, changes: Sequence[Change]) -> _Part:
        """The part, which begins at the byte ``start`` of the tensor, with its changes, in the new dtype."""
        info, dtype = self._reader.info(key), torch_dtype(self._dtypes[key])
        columns = math.prod(info.shape[1:]) if changes else 1
        weight = part.data.view(torch_dtype(info.dtype)).view(-1, columns).to(self._device)
        buffer = self._computed.take()
        result = buffer[: weight.numel() * dtype.itemsize].view(dtype).view(-1, columns)
        out = result if result.device == weight.device else torch.empty_like(weight, dtype=dtype)
        row = start // (ITEM_BYTES[info.dtype] * columns)
        add_changes(weight, changes, out, first_row=row, name=key)
        if out is not result:
            result.copy_(out)
        part.release()
        return _Part(result.view(torch.uint8).view(-1), buffer, self._computed)

    def _change(self, addition: _Addition) -> Change:
        rows = addition.target.rows
        delta = matrix_of(addition.lora.delta(addition.module, self._device))
        return Change(delta, addition.ratio, rows[0] if rows else 0)


def _bytes(parts: Iterable[_Part]) -> Iterator[memoryview]:
    """The bytes of each part, which is released when the next one is asked for."""
    for part in parts:
        yield part.data.numpy().data
        part.release()
