"""Truncation alone, in a warm process: `python -m benchmarks.compute B A` prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.algebra.truncation import RankRule, Resized, resize, truncate_sum
from copier.ops.lora_file import read_lora

RANK = 8
REPEATS = 7


def seconds(work: Callable[[], object], device: str, repeats: int = REPEATS) -> float:
    """Median of the processor's seconds; on a GPU of those by the clock, until it has finished."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 1):
        started = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return statistics.median(times[1:])


def difference(minuend: LoraWeights, subtrahend: LoraWeights) -> Resized:
    """What `copier difference --rank 8` computes."""
    return truncate_sum([(minuend, 1.0), (subtrahend, -1.0)], lambda *_: RankRule(rank=RANK))


def dense_seconds(terms: Sequence[tuple[LoraWeights, float]]) -> float:
    """The straightforward way, one module of each shape, times the number of modules of that shape."""
    names = {delta.shape[:2]: name for name, delta in terms[0][0].items()}
    counts = Counter(delta.shape[:2] for delta in terms[0][0].values())
    total = 0.0
    for shape, name in names.items():
        parts = [(lora[name], ratio) for lora, ratio in terms]
        started = time.process_time()
        dense_truncation(parts)
        total += counts[shape] * (time.process_time() - started)
    return total


def dense_truncation(parts: Sequence[tuple[LowRankDelta, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Multiply out, sum up, SVD, cut."""
    dense = sum(delta.dense(ratio).flatten(1) for delta, ratio in parts)
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    return left[:, :RANK] * values[:RANK], right[:RANK]


def gemm_flops() -> float:
    """Operations a second of one thread in a float32 product of 1024 x 1024: the ceiling of everything."""
    matrix = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: matrix @ matrix, "cpu")


def truncation_seconds(first: LoraWeights, second: LoraWeights, device: str) -> dict[str, float]:
    """Both operations on ``device``."""
    first, second = first.to(device), second.to(device)
    return {
        "difference": seconds(lambda: difference(first, second), device),
        "resize": seconds(lambda: resize(first, RankRule(rank=RANK)), device),
    }


def main(minuend: str, subtrahend: str) -> dict[str, Any]:
    """All figures: with one BLAS thread, and on a GPU where there is one."""
    torch.set_num_threads(1)
    first, second = (read_lora(path).weights for path in (minuend, subtrahend))
    devices = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
    return {
        **{device: truncation_seconds(first, second, device) for device in devices},
        "dense": dense_seconds([(first, 1.0), (second, -1.0)]),
        "flops": gemm_flops(),
        "residual": difference(first, second).residuals.total,
        "modules": len(first),
        "shapes": len({delta.shape[:2] for delta in first.values()}),
        "sides": sum(sum(delta.shape[:2]) for delta in first.values()),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
