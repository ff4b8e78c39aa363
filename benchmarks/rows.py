"""One line of the table: an operation as whole processes, with its yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import sd_scripts
from benchmarks.measuring import COPIER, PYTHON, TORCH, Failed, Series, copying, usage

PAIRS = 3


@dataclass(frozen=True)
class Files:
    """The files that everything is measured on; results go into ``folder`` too."""

    folder: Path
    minuend: Path
    subtrahend: Path
    locon: Path
    checkpoint: Path
    large: Path | None
    """A bigger checkpoint, or None where the disk has no room for it and its copy."""


@dataclass(frozen=True)
class Row:
    """Seconds and bytes over those of a process that only imports torch; "" where something was not run."""

    work: str
    wall: float
    cpu: float
    rss: int
    copies: float
    """How many times the seconds of copying ``copied``."""
    copied: str
    other_ways: str
    """The same by sd-scripts or a plain script, as multiples of ours, or why there is no such figure."""


@dataclass(frozen=True)
class Skipped:
    """A row that was not measured, and why."""

    work: str
    reason: str


def sd_scripts_ratio(ours: float, tool: str, arguments: Sequence[str | Path], out: Path) -> str:
    """What one run of sd-scripts' ``tool`` takes (over torch's import): seconds as a multiple of ``ours``."""
    folder, reason = sd_scripts.checkout()
    if folder is None:
        return f"not run: {reason}"
    run = sd_scripts.command(folder, (tool, *arguments, "--save_to", out))
    try:
        theirs = usage(run, fresh=out)
        bare = usage((run[0], "-c", "import torch"))
    except Failed as error:
        return f"failed: {error}"
    wall, cpu, rss = theirs.wall - bare.wall, theirs.cpu - bare.cpu, theirs.rss - bare.rss
    return f"{wall / ours:.0f} x ({wall:.0f} s, {cpu:.0f} CPU-s, {rss / 1e6:.0f} MB)"


def measured(
    work: str,
    arguments: Sequence[str | Path],
    out: Path,
    copied: Path,
    other_ways: Callable[[float], str],
    pairs: int = PAIRS,
) -> Row:
    """`copier ARGUMENTS -o OUT`, alternating with torch's import and with a copy of ``copied``."""
    copy = out.with_name("copy.safetensors")
    series = Series(
        {
            "torch": (TORCH, None),
            "copy": (copying(copied, copy), copy),
            "copier": ((*COPIER, *arguments, "-o", out), out),
        },
        pairs,
    )
    copy.unlink()
    wall = series.over("copier", "torch", "wall")
    return Row(
        work=work,
        wall=wall,
        cpu=series.over("copier", "torch", "cpu"),
        rss=int(series.over("copier", "torch", "rss")),
        copies=series.ratio("copier", "torch", "copy"),
        copied=size(copied),
        other_ways=other_ways(wall),
    )


def has_command(name: str) -> bool:
    """Is there such a command?"""
    try:
        usage((*COPIER, name, "--help"))
    except Failed:
        return False
    return True


def script_ratio(ours: float, arguments: Sequence[str | Path]) -> str:
    """Seconds of `python -m ARGUMENTS` without torch's import, as a multiple of ``ours``."""
    theirs = usage((*PYTHON, "-m", *arguments))
    return f"{(theirs.wall - usage(TORCH).wall) / ours:.1f} x"


def size(path: Path) -> str:
    """The size of a file as the document writes it."""
    count = path.stat().st_size
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
