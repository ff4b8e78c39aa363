"""Merges LoRAs into a checkpoint file in parts: reading, computing, writing and hashing run side by side."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from copier.algebra.approximation import Counted
from copier.algebra.merging import Change, add_changes, block_rows, matrix_of
from copier.checkpoint.block_weights import block_weights
from copier.checkpoint.blocks import TEXT_PREFIXES, block_of, block_of_module
from copier.checkpoint.dtypes import chosen_dtype, dtype_name, torch_dtype
from copier.checkpoint.family import detect
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import FLOATS, ITEM_BYTES, Header, TensorInfo
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.straight import BLOCK, block_memory
from copier.checkpoint.targets import Target
from copier.checkpoint.writer import Pieces, TensorWriter
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
    told,
)
from copier.ops.threads import one_thread_each, side_by_side
from copier.progress import CancelToken, Observer, ignore

PART_BYTES = 16 << 20
"""Written at a time, by each thread."""
THREADS = 4
"""That compute at most: by then the disk is what everything waits for."""
WAITING = 2
"""Threads beyond those, because so many wait for the disk at a time."""

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

    Some parts of 16 MB and a module or two of each LoRA are in memory at a time; a module that is no product
    of two factors is multiplied out. Tensors that no LoRA changes are copied byte for byte (with ``dtype``
    fp16, bf16 or fp32 instead of "keep", all floating tensors are cast); the others are computed in float32
    on ``device`` and cast once. A LoRA of weight 0 changes nothing. ``blocks`` has one text for all LoRAs or
    one for each, as ``block_weights`` reads it: each module's weight is multiplied by that of its block.
    ``observer`` hears of every part; ``cancel`` is asked between them.

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
        threads = stack.enter_context(one_thread_each())
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
            _Merger(reader, additions, plan, device).write(writer, threads, told("merge", observer, cancel))
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
    """Bytes ``start`` to ``end`` of a tensor of the source; what becomes of them has ``size`` bytes, from
    ``offset`` on in its window."""

    key: str
    start: int
    end: int
    offset: int
    size: int


@dataclass(frozen=True)
class _Window:
    """Parts that follow each other in the new file; ``busy``: one of them has to be computed."""

    parts: tuple[_Part, ...]
    busy: bool

    @property
    def size(self) -> int:
        """In the new file, in bytes."""
        return self.parts[-1].offset + self.parts[-1].size


class _Memory(threading.local):
    """What a thread needs for one window, used again: fresh memory costs more than what is done in it."""

    def __init__(self, source: int, window: int) -> None:
        self.source = torch.empty(source, dtype=torch.uint8)
        self._window = block_memory(window + BLOCK)

    def window(self, place: int, size: int) -> torch.Tensor:
        """Bytes (size,) whose address fits a place in a file."""
        return self._window[place % BLOCK :][:size]


class _Merger:
    """Writes the tensors of a plan, window by window; several threads each read, compute and write one."""

    def __init__(
        self,
        reader: TensorReader,
        additions: Mapping[str, list[_Addition]],
        plan: Mapping[str, tuple[str, tuple[int, ...]]],
        device: str,
    ) -> None:
        self._reader, self._additions, self._device = reader, additions, device
        self._dtypes = {key: name for key, (name, _) in plan.items()}
        self._windows = _by_turns(list(self._cut(plan)))
        parts = [part for window in self._windows for part in window.parts]
        self._memory = _Memory(
            max((part.end - part.start for part in parts), default=0),
            max((window.size for window in self._windows), default=0),
        )
        self._lock = threading.Lock()
        self._changes: dict[str, list[Change]] = {}

    def write(self, writer: TensorWriter, threads: int, counted: Counted) -> None:
        """Give the writer every tensor."""
        count = (min(threads, THREADS) if self._device == "cpu" else 1) + WAITING
        with (
            writer.in_pieces() as pieces,
            ThreadPoolExecutor(count, "merge", torch.set_num_threads, (1,)) as pool,
        ):
            made = side_by_side(pool, lambda window: self._make(window, pieces), self._windows, counted)
            for _ in made:
                pass

    def _cut(self, keys: Iterable[str]) -> Iterator[_Window]:
        """The file, in windows of at most ``PART_BYTES`` unless a part has more."""
        parts: list[_Part] = []
        size, busy = 0, False
        for key in keys:
            for start, end in self._spans(key):
                length = self._made_of(key, end - start)
                if parts and size + length > PART_BYTES:
                    yield _Window(tuple(parts), busy)
                    parts, size, busy = [], 0, False
                parts.append(_Part(key, start, end, size, length))
                size += length
                busy = busy or not self._copied(key)
        if parts:
            yield _Window(tuple(parts), busy)

    def _spans(self, key: str) -> list[tuple[int, int]]:
        """First and last byte (exclusive) of each part; a changed tensor has whole blocks of rows."""
        info, width = self._reader.info(key), self._width(key)
        step = PART_BYTES // max(width, ITEM_BYTES[self._dtypes[key]]) * width
        if key in self._additions:
            columns = math.prod(info.shape[1:])
            block = block_rows(columns) * columns * width
            step = block * max(1, step // block)
        return [(start, min(start + step, info.nbytes)) for start in range(0, info.nbytes, step)]

    def _width(self, key: str) -> int:
        return ITEM_BYTES[self._reader.info(key).dtype]

    def _made_of(self, key: str, count: int) -> int:
        """How many bytes become of ``count`` bytes of a tensor."""
        return count // self._width(key) * ITEM_BYTES[self._dtypes[key]]

    def _copied(self, key: str) -> bool:
        return key not in self._additions and self._dtypes[key] == self._reader.info(key).dtype

    def _make(self, window: _Window, pieces: Pieces) -> None:
        first = window.parts[0]
        place = pieces.place(first.key) + self._made_of(first.key, first.start)
        whole = self._memory.window(place, window.size)
        for part in window.parts:
            target = whole[part.offset : part.offset + part.size]
            if self._copied(part.key):
                self._reader.read_into(target.numpy().data, part.key, part.start)
            else:
                self._compute(part, target)
        pieces.write(whole, place)

    def _compute(self, part: _Part, target: torch.Tensor) -> None:
        """The part with its changes, in the new dtype."""
        source = self._memory.source[: part.end - part.start]
        self._reader.read_into(source.numpy().data, part.key, part.start)
        info, dtype = self._reader.info(part.key), torch_dtype(self._dtypes[part.key])
        changes = self._changes_of(part.key)
        columns = math.prod(info.shape[1:]) if changes else 1
        weight = source.view(torch_dtype(info.dtype)).view(-1, columns).to(self._device)
        fits = weight.device == target.device and target.storage_offset() % dtype.itemsize == 0
        out = target.view(dtype).view(weight.shape) if fits else torch.empty_like(weight, dtype=dtype)
        row = part.start // (self._width(part.key) * columns)
        add_changes(weight, changes, out, first_row=row, name=part.key)
        if not fits:
            target.copy_(out.view(-1).view(torch.uint8))

    def _changes_of(self, key: str) -> list[Change]:
        """What is added to a tensor; kept while its other parts, which are made next, want it too."""
        with self._lock:
            if key not in self._changes:
                found = [self._change(addition) for addition in self._additions.get(key, [])]
                self._changes = {key: found}
            return self._changes[key]

    def _change(self, addition: _Addition) -> Change:
        rows = addition.target.rows
        delta = matrix_of(addition.lora.delta(addition.module, self._device))
        return Change(delta, addition.ratio, rows[0] if rows else 0)


def _by_turns(windows: Sequence[_Window]) -> list[_Window]:
    """Busy windows and others in turn: so the disk writes copies while the processor computes."""
    busy = [window for window in windows if window.busy]
    copied = [window for window in windows if not window.busy]
    turns = [(n / len(group), window) for group in (busy, copied) for n, window in enumerate(group)]
    return [window for _, window in sorted(turns, key=lambda turn: turn[0])]
