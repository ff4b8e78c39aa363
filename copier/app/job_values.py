"""What a job is, as values: its state, its failure, its events, and what a page shows of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from copier.app.request_json import request_from_json, request_to_json
from copier.app.settings import Settings
from copier.errors import BadInput
from copier.progress import CancelToken, Observer
from copier.request import RunRequest

Json = dict[str, Any]

RUN = "run"
"""The kind of a job that runs a recipe; its payload is made by ``run_payload``."""


class JobState(str, Enum):
    """``interrupted``: it ran when its program ended, and was not asked to stop."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Failure:
    """Why a job failed: the exception's class, its message, and what to change (as ``retry`` takes it)."""

    error: str
    message: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job as it is on the disk now; times are seconds since 1970, None where it is not so far.

    Attributes:
        id: short, unique, never used again: a number that counts up, and a few random letters.
        kind: ``RUN``, or another one that the service knows.
        payload: JSON; of a run see ``run_payload``.
        folder: where it is kept.
        outcome: JSON of a job that is done: of a run that of ``app.figures.outcome_json``, and ``written``,
            the SHA-256 of each file that it put into its output folder, by path.
        failure: of one that failed.
        retry_of: the job that this one repeats, or "".
    """

    id: str
    kind: str
    title: str
    state: JobState
    payload: Mapping[str, Any]
    folder: Path
    created: float
    started: float | None = None
    finished: float | None = None
    outcome: Mapping[str, Any] | None = None
    failure: Failure | None = None
    retry_of: str = ""

    @property
    def number(self) -> int:
        """Its place in the order of submission."""
        return int(self.id.partition("-")[0])

    @property
    def request(self) -> RunRequest:
        """The request of a run.

        Raises:
            BadInput: it is no run, or its request cannot be read by this version.
        """
        if self.kind != RUN:
            raise BadInput(f"the job {self.id} is no run of a recipe but of the kind {self.kind!r}")
        return request_from_json(self.payload.get("request"))

    @property
    def control(self) -> bool:
        """Whether a run also trains the control."""
        return bool(self.payload.get("control"))

    @property
    def seeds(self) -> int:
        """The number of training seeds of a run."""
        return int(self.payload.get("seeds", 1))

    @property
    def seconds(self) -> float | None:
        """What it took, or takes so far; None before it began."""
        if self.started is None:
            return None
        if self.finished is None and self.state is not JobState.RUNNING:
            return None
        return max(0.0, (self.finished or time.time()) - self.started)


@dataclass(frozen=True)
class EventPage:
    """Events as JSON objects, oldest first, and the cursor from which to go on reading.

    Each has ``type`` and ``time`` (seconds since 1970), and all but ``state`` have ``stage`` and ``round``
    (1, and one more for each repetition with another seed; 0 where nothing was planned):
    ``state``     state (a ``JobState``), message;
    ``stage``     state (planned, running, reused, done), reason;
    ``progress``  step, steps, rate (seconds a step), left (seconds), losses: [step, loss] since the last one;
    ``sample``    path (a picture file), label;
    ``log``       message.
    """

    events: tuple[Json, ...]
    cursor: int


@dataclass(frozen=True)
class StageView:
    """One stage of a job. ``state`` is planned, running, reused, done, failed or stopped.

    ``losses`` are (step, loss), thinned to a number that does not grow; ``rate`` seconds per step; ``left``
    the estimate of seconds left; ``seconds`` what the stage took so far.
    """

    name: str
    round: int
    state: str
    reason: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    rate: float | None = None
    left: float | None = None
    seconds: float | None = None
    losses: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class JobView:
    """All that a page shows of a job: folded from its events, of a size that does not grow.

    ``stages`` are in the order of the plan; ``samples`` (label, picture file) and ``log`` are the latest;
    ``cursor`` is where ``JobService.events`` goes on.
    """

    job: Job
    stages: tuple[StageView, ...] = ()
    samples: tuple[tuple[str, Path], ...] = ()
    log: tuple[str, ...] = ()
    cursor: int = 0

    @property
    def current(self) -> StageView | None:
        """The stage that runs."""
        return next((stage for stage in self.stages if stage.state == "running"), None)


@dataclass(frozen=True)
class DiskUse:
    """Bytes that a job takes: its own folder, what it put into its output folder, and finished stages.

    Attributes:
        stages: of the stages in the store that no other job used.
        files: those of the output folder that are still as the job wrote them.
    """

    job: int
    output: int
    stages: int
    files: tuple[Path, ...] = ()

    @property
    def total(self) -> int:
        """All of it."""
        return self.job + self.output + self.stages


Work = Callable[[Mapping[str, Any], Settings, Observer, CancelToken], Json]
"""Carries a payload out in the runner's thread; its outcome as JSON. Raises CopierError, ``Cancelled``."""

Check = Callable[[Mapping[str, Any], Settings], None]
"""Raises ``CopierError`` for a payload that cannot be carried out."""


def no_check(payload: Mapping[str, Any], settings: Settings) -> None:
    """The check of a kind that takes every payload."""


class Needs(str, Enum):
    """What a kind of job needs of the host: the model's memory, its turn alone, or nothing."""

    MEMORY = "memory"
    TURN = "turn"
    NOTHING = "nothing"


@dataclass(frozen=True)
class JobKind:
    """A kind of job: ``check`` is asked before one is queued, ``work`` carries it out."""

    name: str
    work: Work
    check: Check = field(default=no_check)
    needs: Needs = Needs.MEMORY


def run_payload(request: RunRequest, *, control: bool = False, seeds: int = 1) -> Json:
    """The payload of a job of the kind ``RUN``; all paths absolute."""
    return {"request": request_to_json(request), "control": control, "seeds": seeds}
