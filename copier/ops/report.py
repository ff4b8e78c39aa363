"""What an operation did, as a value."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from copier.algebra.approximation import Counted
from copier.algebra.delta import Delta
from copier.errors import BadInput
from copier.progress import CancelToken, Observer, ProgressEvent


class Digest(Protocol):
    """A function from a path to the file's SHA-256 (hex): ``file_digest``, or one that remembers."""

    def __call__(self, path: str | os.PathLike[str], *, cancel: CancelToken | None = None) -> str:
        """Raises ``Cancelled`` soon after ``cancel`` was set."""
        ...


@dataclass(frozen=True)
class InputFile:
    """A file that went in: its path, the SHA-256 of its content, and its ratio (1 where none)."""

    path: str
    sha256: str
    ratio: float = 1.0

    @property
    def named(self) -> dict[str, Any]:
        """For metadata that travels: the file's name without its folder, digest and ratio."""
        return {"name": Path(self.path).name, "sha256": self.sha256, "ratio": self.ratio}


@dataclass(frozen=True)
class OperationReport:
    """What an operation read, wrote and lost.

    ``ranks`` maps "text" (text encoder), "linear" (U-Net, 1x1 convolutions included) and "conv"
    (larger kernels) to the smallest and largest rank in the LoRA written, or merged. ``residuals``
    are relative Frobenius norms of what truncation threw away, per module, ``residual`` that of the
    whole; 0 where nothing was truncated. ``changed`` counts modules written, or tensors changed.
    """

    operation: str
    inputs: tuple[InputFile, ...]
    output: str
    changed: int
    ranks: Mapping[str, tuple[int, int]]
    residual: float
    seconds: float
    residuals: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """The report as an object that ``json.dumps`` takes."""
        return {
            "operation": self.operation,
            "inputs": [
                {"path": item.path, "sha256": item.sha256, "ratio": item.ratio} for item in self.inputs
            ],
            "output": self.output,
            "changed": self.changed,
            "ranks": {kind: {"min": low, "max": high} for kind, (low, high) in self.ranks.items()},
            "residual": self.residual,
            "residuals": dict(self.residuals),
            "seconds": round(self.seconds, 3),
        }


def kind_of(name: str, delta: Delta) -> str:
    """ "text", "linear" or "conv", as ``OperationReport.ranks`` counts them."""
    if name.startswith(("lora_te", "text_encoder")):
        return "text"
    return "conv" if delta.is_conv else "linear"


def rank_ranges(modules: Iterable[tuple[str, Delta]]) -> Mapping[str, tuple[int, int]]:
    """Smallest and largest rank of each kind of module that is there and has ranks."""
    ranks: dict[str, list[int]] = {}
    for name, delta in modules:
        if delta.rank is not None:
            ranks.setdefault(kind_of(name, delta), []).append(delta.rank)
    return MappingProxyType({kind: (min(found), max(found)) for kind, found in ranks.items()})


def told(operation: str, observer: Observer, cancel: CancelToken | None) -> Counted:
    """Tells ``observer`` how far ``operation`` is, and raises ``Cancelled`` once ``cancel`` is set."""

    def counted(done: int, total: int) -> None:
        if cancel is not None:
            cancel.check()
        observer(ProgressEvent(operation, step=done, steps=total))

    return counted


LARGEST_WEIGHT = 1000.0
"""Of a LoRA in a sum; beyond it float32 may overflow, and no picture needs it."""


def check_weights(loras: Iterable[tuple[str | os.PathLike[str], float]]) -> None:
    """Raise BadInput where a LoRA's weight is no number, or too large."""
    for path, weight in loras:
        if not abs(weight) <= LARGEST_WEIGHT:
            raise BadInput(
                f"the weight of {Path(path).name} is {weight:g}: give one between -{LARGEST_WEIGHT:g} and "
                f"{LARGEST_WEIGHT:g}"
            )


def refuse_own_input(out: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise BadInput where ``out`` is one of the files that are read."""
    target = os.path.realpath(out)
    for path in inputs:
        if os.path.realpath(path) == target:
            raise BadInput(f"{str(out)!r} is an input too: choose another name for the output")
