"""`python -m benchmarks`: makes the files, measures, and writes docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import operations
from benchmarks.document import document
from benchmarks.files import file_shapes, write_random_checkpoint, write_random_lora
from benchmarks.measuring import PYTHON, ROOT
from benchmarks.rows import Files, Row, Skipped

ROOM = 10_000_000_000
ROOM_WITH_LARGE = 26_000_000_000


def make_files(folder: Path) -> Files:
    """Two LoRAs of rank 64, a LoCon of rank 32, a 2 GB checkpoint, and a 7.7 GB one where there is room."""
    room = shutil.disk_usage(folder).free
    if room < ROOM:
        raise SystemExit(
            f"{folder} has {room / 1e9:.0f} GB free, the files need {ROOM / 1e9:.0f}: choose --work"
        )
    files = Files(
        folder=folder,
        minuend=folder / "b.safetensors",
        subtrahend=folder / "a.safetensors",
        locon=folder / "locon.safetensors",
        checkpoint=folder / "base.safetensors",
        large=folder / "large.safetensors" if room >= ROOM_WITH_LARGE else None,
    )
    write_random_lora(files.minuend, seed=1, rank=64)
    write_random_lora(files.subtrahend, seed=2, rank=64)
    write_random_lora(files.locon, seed=3, rank=32, conv=True)
    write_random_checkpoint(files.checkpoint, file_shapes(), seed=4, dtype=torch.float16)
    if files.large is not None:
        write_random_checkpoint(files.large, file_shapes(ema=True), seed=5, dtype=torch.float32)
    return files


def main() -> None:
    """Measure everything and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--work", type=Path, help="where the files are made (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page to write")
    arguments = parser.parse_args()
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="copier-bench-", dir=arguments.work) as folder:
        say("making the files")
        files = make_files(Path(folder))
        say("start-up")
        start_up = operations.start_up(files)
        rows: list[Row | Skipped] = []
        for operation in operations.WHOLE:
            say(operation.__name__.replace("_", " "))
            rows.append(operation(files))
        say("truncation alone, and dense SVDs")
        command = (*PYTHON, "-m", "benchmarks.compute", files.minuend, files.subtrahend)
        compute = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        page = document(
            start_up=start_up,
            rows=rows,
            compute=json.loads(compute),
            load=load,
            minutes=(time.perf_counter() - started) / 60,
            room=f"{ROOM_WITH_LARGE / 1e9:.0f} GB",
        )
    arguments.out.write_text(page, encoding="utf-8")
    say(f"wrote {arguments.out}")


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
