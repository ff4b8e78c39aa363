"""What a child process takes, and medians of ratios from alternating runs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PYTHON = (sys.executable,)
BARE = (*PYTHON, "-c", "")
TORCH = (*PYTHON, "-c", "import torch")
COPIER = (*PYTHON, "-m", "copier")

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Failed(Exception):
    """A measured command failed; the text is the last line that it wrote."""


@dataclass(frozen=True)
class Usage:
    """Seconds by the clock, of the processor (user and system), and peak resident memory in bytes."""

    wall: float
    cpu: float
    rss: int


def usage(command: Sequence[str | Path], *, fresh: Path | None = None) -> Usage:
    """Run ``command`` in the repository and measure it; ``fresh`` is deleted first.

    Raises:
        Failed: it ended with an error.
    """
    if fresh is not None:
        fresh.unlink(missing_ok=True)
    launcher = (*PYTHON, "-m", "benchmarks.launch", *map(str, command))
    found = json.loads(subprocess.run(launcher, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    if found["code"] != 0:
        raise Failed(found["last_line"] or f"exit code {found['code']}")
    return Usage(found["wall"], found["cpu"], found["rss"] * _RSS_UNIT)


def copying(source: Path, target: Path) -> tuple[str, ...]:
    """The yardstick: the bytes of a file, copied and on the disk."""
    reflink = "" if sys.platform == "darwin" else "--reflink=never"
    return ("sh", "-c", f'cp {reflink} "$0" "$1" && sync "$1"', str(source), str(target))


class Series:
    """Runs of several commands in turn, again and again, so that what the machine does meanwhile hits all."""

    def __init__(self, commands: Mapping[str, tuple[Sequence[str | Path], Path | None]], count: int) -> None:
        """``commands``: name -> command, and the file that is deleted before each run."""
        self._runs: dict[str, list[Usage]] = {name: [] for name in commands}
        for _ in range(count):
            for name, (command, fresh) in commands.items():
                self._runs[name].append(usage(command, fresh=fresh))

    def over(self, name: str, base: str, what: str) -> float:
        """Median of ``what`` (wall, cpu, rss) of one command minus that of another."""
        pairs = zip(self._runs[name], self._runs[base], strict=True)
        return statistics.median(getattr(one, what) - getattr(other, what) for one, other in pairs)

    def ratio(self, name: str, base: str, yardstick: str) -> float:
        """Median of (wall of one - wall of base) / wall of the yardstick."""
        runs = zip(self._runs[name], self._runs[base], self._runs[yardstick], strict=True)
        return statistics.median((one.wall - bare.wall) / unit.wall for one, bare, unit in runs)

    def median(self, name: str, what: str) -> float:
        """Median of ``what`` (wall, cpu, rss) of one command."""
        return statistics.median(getattr(one, what) for one in self._runs[name])
