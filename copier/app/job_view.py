"""Folds a job's events into what a page shows; its size does not grow with the job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copier.app.job_values import Job, JobState, JobView, StageView

MOST_POINTS = 400
"""Of a loss curve: more than a chart is wide."""
LATEST_SAMPLES = 60
LATEST_LINES = 300


@dataclass
class _Stage:
    """One stage as far as the events tell."""

    name: str
    round: int
    state: str = "running"
    reason: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    rate: float | None = None
    left: float | None = None
    began: float | None = None
    seconds: float | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def add_loss(self, step: int, loss: float) -> None:
        """One more point; every second one goes where there are too many."""
        self.loss = loss
        if self.seen % self.stride == 0:
            self.losses.append((step, loss))
        self.seen += 1
        if len(self.losses) > MOST_POINTS:
            del self.losses[1::2]
            self.stride *= 2


class ViewBuilder:
    """What is known of one job; not safe for several threads."""

    def __init__(self) -> None:
        self.cursor = 0
        self._stages: dict[tuple[int, str], _Stage] = {}
        self._samples: deque[tuple[str, Path]] = deque(maxlen=LATEST_SAMPLES)
        self._log: deque[str] = deque(maxlen=LATEST_LINES)
        self._takers = {
            "stage": self._stage,
            "progress": self._progress,
            "sample": self._sample,
            "log": self._message,
        }

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take one event in; what is not understood is passed over."""
        kind = event.get("type")
        if kind == "state":
            self._state(event)
        elif kind in self._takers and "stage" in event:
            self._takers[kind](self._stage_of(event), event)

    def view(self, job: Job) -> JobView:
        """All of it, for the job as it is now."""
        stages = tuple(_shown(stage, job) for stage in self._stages.values())
        return JobView(job, stages, tuple(self._samples), tuple(self._log), self.cursor)

    def _stage_of(self, event: Mapping[str, Any]) -> _Stage:
        key = (int(event.get("round", 0)), str(event["stage"]))
        if key not in self._stages:
            self._stages[key] = _Stage(key[1], key[0], began=event.get("time"))
        return self._stages[key]

    def _state(self, event: Mapping[str, Any]) -> None:
        message = event.get("message")
        self._log.append(f"{event.get('state')}: {message}" if message else str(event.get("state")))

    def _stage(self, stage: _Stage, event: Mapping[str, Any]) -> None:
        stage.state = str(event.get("state"))
        if stage.state in ("running", "reused"):
            stage.reason = str(event.get("reason", ""))
            became = "runs" if stage.state == "running" else "reused"
            self._log.append(f"{stage.name}: {became}: {stage.reason}")
        if stage.state == "running":
            stage.began = event.get("time")
        if stage.state == "done" and stage.began is not None:
            stage.seconds = max(0.0, event.get("time", stage.began) - stage.began)
            stage.left = None

    def _progress(self, stage: _Stage, event: Mapping[str, Any]) -> None:
        stage.step, stage.steps = int(event.get("step", 0)), int(event.get("steps", 0))
        stage.rate, stage.left = event.get("rate"), event.get("left")
        for step, loss in event.get("losses", ()):
            if loss is not None:
                stage.add_loss(step, loss)

    def _sample(self, stage: _Stage, event: Mapping[str, Any]) -> None:
        self._samples.append((str(event.get("label", stage.name)), Path(str(event.get("path")))))

    def _message(self, stage: _Stage, event: Mapping[str, Any]) -> None:
        self._log.append(f"{stage.name}: {event.get('message')}")


def _shown(stage: _Stage, job: Job) -> StageView:
    state, seconds, left = stage.state, stage.seconds, stage.left
    if state == "running" and job.state.ended:
        ends = {JobState.FAILED: "failed", JobState.DONE: "done"}
        state, left = ends.get(job.state, "stopped"), None
    if state == "running" and stage.began is not None:
        seconds = max(0.0, time.time() - stage.began)
    return StageView(
        name=stage.name,
        round=stage.round,
        state=state,
        reason=stage.reason,
        step=stage.step,
        steps=stage.steps,
        loss=stage.loss,
        rate=stage.rate,
        left=left,
        seconds=seconds,
        losses=tuple(stage.losses),
    )
