"""docs/benchmarks.md: page.md filled with the figures of one run."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.compute import RANK
from benchmarks.rows import Row, Skipped

INPUT_RANK = 64
_PAGE = Path(__file__).with_name("page.md")
_NAMES = {
    "difference": f"difference, two of rank {INPUT_RANK} -> {RANK}",
    "resize": f"resize, rank {INPUT_RANK} -> {RANK}",
}
_GRAM_BLOCKS = {"difference": 3, "resize": 1}


def document(
    *,
    start_up: tuple[float, float],
    rows: Sequence[Row | Skipped],
    compute: Mapping[str, Any],
    load: float,
    minutes: float,
    room: str,
) -> str:
    """The whole page; ``compute`` is what ``benchmarks.compute`` prints, ``load`` the load average."""
    flops = {name: blocks * 2 * INPUT_RANK**2 * compute["sides"] for name, blocks in _GRAM_BLOCKS.items()}
    return _PAGE.read_text(encoding="utf-8").format(
        load=load,
        minutes=minutes,
        room=room,
        date=datetime.date.today().isoformat(),
        processor=_processor(),
        cores=os.cpu_count(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        torch=torch.__version__,
        threads=f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}",
        system=platform.system(),
        rows="\n".join(map(_row, rows)),
        start_wall=start_up[0],
        start_cpu=start_up[1],
        compute="\n".join(_compute(name, compute, flops[name]) for name in _NAMES),
        gpu=_gpu(compute),
        rank=INPUT_RANK,
        kept=RANK,
        difference_flops=flops["difference"] / 1e9,
        resize_flops=flops["resize"] / 1e9,
        peak=compute["flops"] / 1e9,
        **{name: compute[name] for name in ("modules", "shapes", "residual", "sides")},
    )


def _row(row: Row | Skipped) -> str:
    if isinstance(row, Skipped):
        return f"| {row.work} | not run: {row.reason} | | | | |"
    return (
        f"| {row.work} | {row.wall:.2f} | {row.cpu:.2f} | {row.rss / 1e6:.0f} MB "
        f"| {row.copies:.2f} ({row.copied}) | {row.other_ways} |"
    )


def _compute(name: str, compute: Mapping[str, Any], flops: float) -> str:
    ours, dense = compute["cpu"][name], compute["dense"]
    limit = flops / compute["flops"]
    return f"| {_NAMES[name]} | {ours:.2f} | {dense:.0f} | {dense / ours:.0f} x | {limit:.2f} |"


def _gpu(compute: Mapping[str, Any]) -> str:
    if "cuda" not in compute:
        return ""
    seconds = ", ".join(f"{work} {compute['cuda'][name]:.3f} s" for name, work in _NAMES.items())
    return f"\nOn {torch.cuda.get_device_name()}, by the clock: {seconds}.\n"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
