"""SIGKILL of a run while the real worker trains or draws: the worker ends, the same run again finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from copier.pipeline.store import StageStore

pytest.importorskip("diffusers")
psutil = pytest.importorskip("psutil")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL"),
]

PROMPT = '["a blue heart on pink background"]'
COMMAND = (
    *(sys.executable, "-m", "copier", "run", "copier-quick-pocket", "--edit", "grayscale"),
    *("--a-prompt", "a red star on cyan background", "--device", "cpu", "--json"),
    *("--set", "training.steps=20", "--set", "training.batch_size=1", "--set", "second.sampling_steps=2"),
    *("--set", f"second.prompts={PROMPT}", "--set", "second.seeds=[1001]"),
    *("--set", f"gate.prompts={PROMPT}", "--set", "gate.seeds=[1001]", "--set", "gate.sampling_steps=20"),
    *("--set", f"evaluate.prompts={PROMPT}", "--set", "evaluate.seeds=[2001]"),
    *("--set", "evaluate.weights=[-1, 1]", "--set", "evaluate.sampling_steps=20"),
)
KILLS = ("copier", "gate.base", "evaluate.lora")
"""Stages of the run, each killed once inside; the runs after the first resume."""


def finished(data: Path) -> set[str]:
    """The names of the finished stages in the store."""
    return {entry.record.name for entry in StageStore(data / "stages").entries()}


def killed_inside(stage: str, folder: Path) -> None:
    """Start the run, kill it while its worker is at work on ``stage``, and wait for the worker to end."""
    log, data = folder / "stderr.txt", folder / "data"
    with log.open("w") as stderr:
        child = subprocess.Popen(
            [*COMMAND, "--out", str(folder / "out"), "--data", str(data)],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        limit = time.monotonic() + 240
        while not at_work(log.read_text(), stage):
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.02)
        time.sleep(0.3)
        workers = psutil.Process(child.pid).children(recursive=True)
    finally:
        child.kill()
        child.wait()
    assert workers
    limit = time.monotonic() + 40
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < limit, "the worker outlived its parent"
        time.sleep(0.05)
    assert stage not in finished(data)


def at_work(log: str, stage: str) -> bool:
    """Whether the run has begun the stage, and its worker loads or has the checkpoint."""
    return f"{stage:<18} runs:" in log and "loading" in log


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has reaped yet does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_killed_run_leaves_no_worker_and_resumes_where_it_was(tmp_path: Path) -> None:
    for stage in KILLS:
        killed_inside(stage, tmp_path)
    kept = finished(tmp_path / "data")
    assert "copier" in kept and "evaluate.lora" not in kept
    done = subprocess.run(
        [*COMMAND, "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    reused = {stage["name"] for stage in answer["stages"] if stage["status"] == "reused"}
    assert reused == kept
    strays = [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert strays == []
