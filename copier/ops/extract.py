"""The LoRA that turns one checkpoint into another, extracted tensor by tensor."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copier.algebra.approximation import Counted
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.algebra.randomised import Approximation, approximate, squared_norm
from copier.algebra.truncation import RankRule
from copier.checkpoint.dtypes import chosen_dtype
from copier.checkpoint.family import Family
from copier.checkpoint.fit import require_single_file
from copier.checkpoint.header import FLOATS, Header, TensorInfo, read_header
from copier.checkpoint.targets import Target, written_names
from copier.digest import file_digest
from copier.errors import BadInput
from copier.ops.differences import Differences
from copier.ops.digests import described_inputs
from copier.ops.lora_file import network_metadata, says_velocity, write_lora
from copier.ops.report import Digest, InputFile, OperationReport, rank_ranges, refuse_own_input, told
from copier.ops.threads import one_thread_each, side_by_side
from copier.progress import CancelToken, Observer, ignore

_DIFFERENCES = 256 << 20
"""Bytes of all differences that are in memory at a time, if they are more than one."""
_CONV_PART = re.compile(r"\.(in_layers|out_layers|emb_layers|skip_connection|op|conv)\.")
"""LDM's residual blocks and samplers, which kohya's networks have only with a conv rank."""


class Why(enum.Enum):
    """Why a tensor of the two checkpoints is not in the LoRA."""

    ONLY_TUNED = "only in the tuned checkpoint"
    ONLY_BASE = "only in the base checkpoint"
    SHAPE = "of different shape in the two"
    NO_LORA = "changed, but no LoRA can carry it"
    NO_CONV_RANK = "changed, but carried only with a rank for convolutions"


@dataclass(frozen=True)
class LeftOut:
    """A tensor that differs between the two checkpoints and is not in the LoRA; its shape, and why.

    ``base_shape`` is that in the base checkpoint, where it is another.
    """

    key: str
    shape: tuple[int, ...]
    why: Why
    base_shape: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as an object that ``json.dumps`` takes."""
        other = {} if self.base_shape is None else {"base_shape": list(self.base_shape)}
        return {"key": self.key, "shape": list(self.shape), **other, "why": self.why.value}


@dataclass(frozen=True)
class ExtractReport(OperationReport):
    """What an extraction wrote and lost.

    ``residuals`` and ``residual`` are relative to the difference of the modules in the LoRA. No LoRA of the
    same ranks has a residual below ``residuals[name] / bounds[name]`` (``copier.algebra.randomised``).
    ``unchanged`` counts modules whose weights are the same in both.
    """

    bounds: Mapping[str, float] = field(default_factory=dict)
    unchanged: int = 0
    left_out: tuple[LeftOut, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as an object that ``json.dumps`` takes."""
        return {
            **super().to_json(),
            "bound": max(self.bounds.values()),
            "unchanged": self.unchanged,
            "left_out": [one.to_json() for one in self.left_out],
        }


def extract(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
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
    threads: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> ExtractReport:
    """Write the LoRA that is closest to tuned - base, of the ranks that one of rank and sv_... chooses.

    The rules are those of ``RankRule``; a rank beyond what a weight can have is cut to that. The modules
    are those that kohya trains; with ``conv_rank`` also residual blocks and samplers, whose kernels larger
    than 1x1 get that rank. Every tensor of both files is compared, and what differs without being in the
    LoRA is listed in the report.

    A few tensors are in memory at a time: as many as there are ``threads`` (default: torch's number of them),
    fewer where they are large, one where ``device`` is not the CPU. Two more threads compute the digests.
    ``observer`` hears of every tensor; ``cancel`` is asked between them.

    Raises:
        BadInput: no rule or several, no such file, no two checkpoints of one family, no difference that a
            LoRA can carry, NaN or infinite weights, values that the dtype cannot hold, an output that exists
            (without ``overwrite``) or is an input; no file is left.
        BadCheckpoint: a damaged file.
        Cancelled: ``cancel`` was set; no file is left.
    """
    started = time.perf_counter()
    rule = RankRule(
        rank=rank, sv_ratio=sv_ratio, sv_fro=sv_fro, sv_cumulative=sv_cumulative, max_rank=max_rank
    )
    conv_rule = None if conv_rank is None else RankRule(rank=conv_rank)
    chosen_dtype(dtype)
    refuse_own_input(out, [tuned, base])
    headers = Path(tuned), read_header(tuned), Path(base), read_header(base)
    family = _common_family(*headers)
    plan = _plan(headers[1], headers[3], rule, conv_rule)
    with described_inputs([(tuned, 1.0), (base, 1.0)], digest, cancel) as inputs_when_known:
        outcomes = _all_compared(tuned, base, plan, device, threads, observer, cancel)
        modules = {name: one for outcome in outcomes for name, one in outcome.modules.items()}
        unchanged = sum(outcome.unchanged for outcome in outcomes)
        left_out = (*plan.left_out, *(one.left_out for one in outcomes if one.left_out is not None))
        if not modules:
            raise BadInput(_nothing(unchanged, left_out))
        inputs = inputs_when_known()
    weights = LoraWeights({name: one.delta for name, one in modules.items()})
    norm = math.hypot(*(one.norm for one in modules.values()))
    residual = math.hypot(*(one.lost for one in modules.values())) / norm
    bounds = {name: one.bound for name, one in modules.items()}
    what = {
        "operation": "extract",
        "inputs": [file.named for file in inputs],
        "residual": residual,
        "bound": max(bounds.values()),
    }
    described = {
        **network_metadata(
            weights, name=Path(out).stem, family=family, velocity=says_velocity(headers[3].metadata)
        ),
        **_about_the_base(inputs[1]),
        "copier_operation": json.dumps(what, sort_keys=True),
        **(metadata or {}),
    }
    write_lora(out, weights, described, dtype=dtype, overwrite=overwrite)
    return ExtractReport(
        operation="extract",
        inputs=inputs,
        output=str(out),
        changed=len(weights),
        ranks=rank_ranges(weights.items()),
        residual=residual,
        seconds=time.perf_counter() - started,
        residuals={name: one.lost / one.norm for name, one in modules.items()},
        bounds=bounds,
        unchanged=unchanged,
        left_out=left_out,
    )


def _common_family(tuned: Path, theirs: Header, base: Path, ours: Header) -> Family:
    one = require_single_file(theirs, f"the checkpoint {tuned.name!r}")
    other = require_single_file(ours, f"the checkpoint {base.name!r}")
    if one.family is not other.family:
        raise BadInput(
            f"{tuned.name!r} is {one.family.name}, {base.name!r} is {other.family.name}: use two checkpoints "
            "of one family"
        )
    return one.family


@dataclass(frozen=True)
class _Module:
    """A module of the LoRA to be: its name, the rows of the tensor that it changes, and its rule."""

    name: str
    rows: tuple[int, int] | None
    rule: RankRule


@dataclass(frozen=True)
class _Task:
    """A tensor that both files have: the modules that change it, or why there are none."""

    key: str
    shape: tuple[int, ...]
    modules: tuple[_Module, ...]
    why: Why


@dataclass(frozen=True)
class _Plan:
    tasks: tuple[_Task, ...]
    left_out: tuple[LeftOut, ...]
    largest: int
    """Elements of the largest tensor that modules change."""


def _plan(tuned: Header, base: Header, rule: RankRule, conv_rule: RankRule | None) -> _Plan:
    """What is to be done, from the headers alone, in the order of the tuned file."""
    targets: dict[str, list[tuple[str, Target]]] = {}
    for name, target in written_names(base).items():
        targets.setdefault(target.key, []).append((name, target))
    tasks, left_out = [], []
    for key, info in tuned.tensors.items():
        other = base.tensors.get(key)
        if other is None:
            left_out.append(LeftOut(key, info.shape, Why.ONLY_TUNED))
        elif _plain(info.shape) != _plain(other.shape):
            left_out.append(LeftOut(key, info.shape, Why.SHAPE, other.shape))
        else:
            tasks.append(_task(key, info, other, targets.get(key, []), rule, conv_rule))
    left_out += [
        LeftOut(key, info.shape, Why.ONLY_BASE)
        for key, info in base.tensors.items()
        if key not in tuned.tensors
    ]
    sizes = [math.prod(task.shape) for task in tasks if task.modules]
    return _Plan(tuple(tasks), tuple(left_out), max(sizes, default=0))


def _task(
    key: str,
    tuned: TensorInfo,
    base: TensorInfo,
    targets: Sequence[tuple[str, Target]],
    rule: RankRule,
    conv_rule: RankRule | None,
) -> _Task:
    weights = tuned.dtype in FLOATS and base.dtype in FLOATS and len(base.shape) in (2, 4)
    if not targets or not weights or 0 in base.shape:
        return _Task(key, base.shape, (), Why.NO_LORA)
    if conv_rule is None and _CONV_PART.search(key):
        return _Task(key, base.shape, (), Why.NO_CONV_RANK)
    kernel = any(size > 1 for size in base.shape[2:])
    chosen = conv_rule if kernel and conv_rule is not None else rule
    modules = tuple(_Module(name, target.rows, chosen) for name, target in targets)
    return _Task(key, base.shape, modules, Why.NO_LORA)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of size 1 at its end: a 1x1 convolution may be stored as linear."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


@dataclass(frozen=True, eq=False)
class _Extracted:
    delta: LowRankDelta
    norm: float
    lost: float
    bound: float


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What became of one task."""

    modules: Mapping[str, _Extracted] = field(default_factory=dict)
    unchanged: int = 0
    left_out: LeftOut | None = None


def _all_compared(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    plan: _Plan,
    device: str,
    threads: int | None,
    observer: Observer,
    cancel: CancelToken | None,
) -> list[_Outcome]:
    """Every task's outcome, in order."""
    with one_thread_each() as cores:
        workers = 1 if device != "cpu" else min(threads or cores, _DIFFERENCES // max(1, 4 * plan.largest))
        counted = told("extract", observer, cancel)
        return _compared_by(tuned, base, plan, device, max(1, workers), counted)


def _compared_by(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    plan: _Plan,
    device: str,
    workers: int,
    counted: Counted,
) -> list[_Outcome]:
    idle = [_Worker(tuned, base, plan.largest, device) for _ in range(workers)]

    def work(task: _Task) -> _Outcome:
        worker = idle.pop()  # there are as many as threads
        try:
            return worker.compared(task)
        finally:
            idle.append(worker)

    with contextlib.ExitStack() as stack:
        for worker in idle:
            stack.enter_context(worker.differences)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        return list(side_by_side(pool, work, plan.tasks, counted))


class _Worker:
    """Extracts the modules of one tensor at a time, from files and into memory of its own."""

    def __init__(
        self, tuned: str | os.PathLike[str], base: str | os.PathLike[str], largest: int, device: str
    ) -> None:
        self.differences = Differences(tuned, base, largest)
        self._device = device

    def compared(self, task: _Task) -> _Outcome:
        """The modules of a task, or what differs without a module."""
        if not task.modules:
            same = self.differences.none(task.key)
            return _Outcome(left_out=None if same else LeftOut(task.key, task.shape, task.why))
        matrix, energy = self.differences.matrix(task.key)
        modules, unchanged = {}, 0
        for module in task.modules:
            part, norm = matrix, energy
            if module.rows is not None:
                part = matrix[slice(*module.rows)]
                norm = squared_norm(part)
            if norm == 0.0:
                unchanged += 1
                continue
            found = approximate(part.to(self._device), module.rule, seed=_seed(module.name), energy=norm)
            modules[module.name] = _extracted(found, task.shape[1:])
        return _Outcome(modules=modules, unchanged=unchanged)


def _extracted(found: Approximation, inner: tuple[int, ...]) -> _Extracted:
    """As a delta of scale 1, whose two factors share the singular values evenly."""
    roots = found.values.sqrt()
    rank = roots.numel()
    up, down = found.left * roots, roots[:, None] * found.right
    return _Extracted(
        LowRankDelta(
            up=up.reshape(*up.shape, *([1] * len(inner[1:]))).cpu(),
            down=down.reshape(rank, *inner).cpu(),
            alpha=float(rank),
        ),
        norm=found.norm,
        lost=found.lost,
        bound=found.bound,
    )


def _seed(name: str) -> int:
    """The same for a module whatever else is extracted."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


def _about_the_base(base: InputFile) -> dict[str, str]:
    """What sd-scripts writes of the checkpoint that a LoRA was trained on.

    ``ss_sd_model_hash`` is A1111's first hash, of 64 kB of the file (``train_util.model_hash``).
    """
    with open(base.path, "rb") as file:
        file.seek(0x100000)
        part = file.read(0x10000)
    return {
        "ss_sd_model_name": Path(base.path).name,
        "ss_sd_model_hash": hashlib.sha256(part).hexdigest()[:8],
        "ss_new_sd_model_hash": base.sha256,
    }


def _nothing(unchanged: int, left_out: Sequence[LeftOut]) -> str:
    text = f"the checkpoints have the same weights in all {unchanged} modules that the LoRA would have"
    reasons = Counter(one.why.value for one in left_out)
    others = "; ".join(f"{count} tensors {reason}" for reason, count in reasons.items())
    return f"{text}{f' ({others})' if others else ''}: there is nothing to extract"
