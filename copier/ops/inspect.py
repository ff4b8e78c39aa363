"""What a checkpoint or LoRA file is and holds."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from copier.algebra.lora import LoraWeights
from copier.checkpoint.blocks import block_of_module
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.reader import TensorReader
from copier.ops.report import kind_of


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe the file at ``path`` as plain data that ``json.dumps`` takes.

    Always: name, bytes, family, kind, layout, details, tensors (count), dtypes (count of each),
    metadata. For a LoRA in kohya's layout also: modules and ranks by kind ("text", "linear",
    "conv"; ranks as {rank: count}), alphas as {alpha: count}, norm (Frobenius, of the whole) and norms
    (by block, as ``block_of`` names them).

    Raises:
        BadInput: there is no such file.
        BadCheckpoint: it is no valid safetensors file, or a LoRA whose weights are damaged.
    """
    with TensorReader(path) as reader:
        identity = detect(reader.header)
        found: dict[str, Any] = {
            "name": Path(path).name,
            "bytes": reader.header.file_size,
            "family": identity.family.value,
            "kind": identity.kind.value,
            "layout": identity.layout,
            "details": dict(identity.details),
            "tensors": len(reader.header.tensors),
            "dtypes": dict(Counter(info.dtype for info in reader.header.tensors.values())),
            "metadata": dict(reader.metadata),
        }
        plain = identity.layout == "kohya" and not {"dora", "tucker"} & set(identity.details)
        if identity.kind is Kind.LORA and plain:
            tensors = {key: reader.tensor(key) for key in reader.header.tensors}
            found.update(_describe(LoraWeights.from_tensors(tensors), identity.family))
    return found


def _describe(weights: LoraWeights, family: Family) -> dict[str, Any]:
    ranks: dict[str, Counter[int]] = defaultdict(Counter)
    squares: dict[str, float] = defaultdict(float)
    for name, delta in weights.items():
        ranks[kind_of(name, delta)][delta.rank] += 1
        squares[block_of_module(name, family)] += delta.frobenius() ** 2
    return {
        "modules": {kind: sum(counts.values()) for kind, counts in ranks.items()},
        "ranks": {kind: _texts(counts) for kind, counts in ranks.items()},
        "alphas": _texts(Counter(delta.alpha for delta in weights.values())),
        "norm": _root(sum(squares.values())),
        "norms": {block: _root(square) for block, square in sorted(squares.items())},
    }


def _root(square: float) -> float | None:
    """None for what no number can say: factors that overflow float32, or are no numbers."""
    return math.sqrt(square) if math.isfinite(square) else None


def _texts(counts: Counter[Any]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(counts.items())}
