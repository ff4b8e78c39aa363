"""``copier jobs``: a queue that another process may work, for scripts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from copier.app.jobs import JobService, JobState
from copier.app.settings import Settings
from copier.errors import OutOfMemory
from copier.progress import CancelToken

RUN = ("short.json", "--checkpoint", "base.safetensors", "--a", "a.png", "--edit", "grayscale")


def test_a_run_is_submitted_listed_run_shown_and_removed(copier: Any, folder: Path, worker: Any) -> None:
    assert copier("jobs", "list").out.strip() == "no jobs"
    made = copier("jobs", "submit", *RUN, "--control", "--title", "Grau", "--json")
    assert made.code == 0
    assert "nobody works the queue" in made.err
    assert (made.json["state"], made.json["title"], made.json["outcome"]) == ("queued", "Grau", None)
    assert worker.calls == []
    assert JobService(Settings(folder / "data")).job("1").id == made.json["id"]
    done = copier("jobs", "run")
    assert done.code == 0
    assert "done" in done.out
    listed = copier("jobs", "list", "--json").json
    assert listed["runner"] == "nobody"
    assert [job["state"] for job in listed["jobs"]] == ["done"]
    shown = copier("jobs", "show", "1")
    assert "out/grau.safetensors" in shown.out
    for name in ("copier", "gate", "control", "evaluate"):
        assert name in shown.out
    data = copier("jobs", "show", made.json["id"], "--json").json
    assert data["outcome"]["checks"]["count"] > 0
    assert data["payload"]["control"] is True
    assert {stage["state"] for stage in data["stages"]} == {"done"}
    sizes = copier("jobs", "remove", "1", "--dry-run", "--json").json
    assert sizes["output"] > 0 < sizes["stages"]
    assert copier("jobs", "list", "--json").json["jobs"]
    removed = copier("jobs", "remove", "1", "--output", "--stages", "--json").json
    assert removed["bytes"] == sum(removed[name] for name in ("job", "output", "stages"))
    assert not (folder / "out" / "grau.safetensors").exists()
    assert copier("jobs", "list", "--json").json["jobs"] == []
    assert copier("jobs", "run").out.strip() == "the queue is empty"


def test_a_job_that_lacked_memory_says_how_to_repeat_it(copier: Any, folder: Path, worker: Any) -> None:
    def too_big(self: Any, cancel: CancelToken) -> None:
        raise OutOfMemory("the card is full", ["training.gradient_checkpointing=true"])

    worker.on_train = too_big
    copier("jobs", "submit", *RUN)
    assert "failed" in copier("jobs", "run").out
    shown = copier("jobs", "show", "1").out
    assert "the card is full" in shown
    command = next(line for line in shown.splitlines() if "copier jobs retry" in line)
    worker.on_train = None
    again = copier("jobs", *command.partition("copier jobs ")[2].split(), "--json")
    assert again.json["retry_of"].startswith("0001-")
    assert copier("jobs", "run").code == 0
    service = JobService(Settings(folder / "data"))
    (training, _) = service.job("2").request.recipe.trainings()
    assert training.training.gradient_checkpointing
    assert service.job("2").state is JobState.DONE


def test_a_job_that_waits_is_stopped_and_ctrl_c_interrupts_the_one_that_runs(
    copier: Any, folder: Path, worker: Any
) -> None:
    for _ in range(2):
        copier("jobs", "submit", *RUN)
    assert "is stopped" in copier("jobs", "stop", "2").out
    worker.on_train = lambda self, cancel: os.kill(os.getpid(), signal.SIGINT)
    stopped = copier("jobs", "run")
    assert stopped.code == 130
    assert "copier jobs retry" in stopped.err
    states = [job["state"] for job in copier("jobs", "list", "--json").json["jobs"]]
    assert states == ["stopped", "interrupted"]


def test_bad_input_is_refused_and_nothing_is_queued(copier: Any, folder: Path, worker: Any) -> None:
    missing = ["none.png" if word == "a.png" else word for word in RUN]
    for arguments in (
        ("submit", *missing),
        ("submit", *RUN, "--b", "b.png"),
        ("show", "9"),
        ("retry", "x"),
        ("stop", ".."),
        ("remove", ""),
    ):
        assert copier("jobs", *arguments).code == 2, arguments
    assert not (folder / "data" / "jobs").exists()
