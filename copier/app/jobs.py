"""Jobs: runs and other work in a queue on the disk, one at a time, seen alike by every page and process.

    <data>/jobs/<id>/job.json       what is wanted and what became of it; replaced in one step
    <data>/jobs/<id>/events.jsonl   what happened, one event a line; only appended
    <data>/jobs/<id>/stop           someone asked for the job to stop
    <data>/jobs/<id>/samples/       pictures drawn on the way
    <data>/jobs/runner.lock         held by the process that works the queue

Whoever submits only writes; the process that holds the lock carries out, and another takes over when it
is gone. A job that ran when its process ended is ``interrupted``: nothing is lost but the stage that ran.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from copier.app.settings import Settings
from copier.progress import CancelToken, Observer
from copier.request import RunRequest

Json = dict[str, Any]

RUN = "run"
"""The kind of a job that runs a recipe; its payload is made by ``run_payload``."""


class JobState(str, Enum):
    """``interrupted``: it ran when the program ended, and was not asked to stop."""

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
        id: short, unique, never used again; sorts by the order of submission.
        kind: ``RUN``, or another one that the service knows.
        payload: JSON; of a run see ``run_payload``.
        outcome: JSON of a job that is done: of a run that of ``app.figures.outcome_json``.
        failure: of one that failed.
        retry_of: the job that this one repeats, or "".
        folder: where it is kept.
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
    def request(self) -> RunRequest:
        """The request of a run; raises BadInput for another kind, or where it cannot be read any more."""
        raise NotImplementedError

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
        raise NotImplementedError


@dataclass(frozen=True)
class EventPage:
    """Events as JSON objects, oldest first, and where to go on reading.

    Each has ``type`` and ``time`` (seconds since 1970):
    ``state``     state (a ``JobState``), message;
    ``stage``     stage, round, state (planned, running, reused, done), reason;
    ``progress``  stage, round, step, steps, rate (s/step), left (s), losses [[step, loss], ...] since the last;
    ``sample``    stage, round, path (a PNG file), label;
    ``log``       stage, round, message.
    """

    events: tuple[Json, ...]
    cursor: int


@dataclass(frozen=True)
class StageView:
    """One stage of a job. ``state`` is planned, running, reused, done, failed or stopped.

    ``losses`` are (step, loss), thinned to at most ``MOST_POINTS``; ``rate`` seconds per step; ``left`` the
    estimate of seconds left; ``seconds`` what the stage took so far.
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

    ``stages`` are in the order of the plan, ``samples`` (label, PNG file) and ``log`` the latest, ``cursor``
    where ``JobService.events`` goes on.
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
    """Bytes that a job takes: its own folder, the files that it put into its output folder, and finished
    stages in the store that no other job used; ``files`` are those of the output folder."""

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


@dataclass(frozen=True)
class JobKind:
    """A kind of job: ``check`` raises ``CopierError`` for a payload that cannot be carried out, before it is
    queued; ``work`` carries it out."""

    name: str
    work: Work
    check: Callable[[Mapping[str, Any], Settings], None] = field(default=lambda payload, settings: None)


def run_payload(request: RunRequest, *, control: bool = False, seeds: int = 1) -> Json:
    """The payload of a job of the kind ``RUN``; all paths absolute."""
    raise NotImplementedError


class JobService:
    """The queue of a data directory. Several services, in one or several processes, may share one.

    Reading and submitting need no ``start``. All methods may be called from any thread and return soon.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kinds: Sequence[JobKind] = (),
        released: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            kinds: in addition to those of ``copier.app.job_kinds`` (runs and the tools).
            released: ``HostServices.released``: the host gives its memory back while a job runs.
        """

    def start(self) -> None:
        """Work the queue in a thread of this process whenever no other process does. Harmless when repeated."""

    def close(self, *, timeout: float = 30.0) -> None:
        """Stop working the queue; a running job is stopped, and is ``interrupted``: it is offered again."""

    def submit(
        self, request: RunRequest, *, control: bool = False, seeds: int = 1, title: str = ""
    ) -> Job:
        """Put a run at the end of the queue.

        Raises:
            CopierError: as ``app.service.check``; nothing was written.
        """
        raise NotImplementedError

    def submit_work(self, kind: str, payload: Mapping[str, Any], *, title: str = "") -> Job:
        """Put work of any kind at the end of the queue; ``payload`` is JSON with absolute paths.

        Raises:
            UnknownName: there is no such kind.
            CopierError: as its check; nothing was written.
        """
        raise NotImplementedError

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, the newest first. Folders that cannot be read are left out."""
        raise NotImplementedError

    def current(self) -> Job | None:
        """The one that runs, else the first of the queue; None: there is nothing to do."""
        raise NotImplementedError

    def job(self, id: str) -> Job:
        """The job of that id, or the only one whose id begins so.

        Raises:
            UnknownName: there is none, or several.
        """
        raise NotImplementedError

    def events(self, id: str, since: int = 0, *, most: int = 500) -> EventPage:
        """What happened since the cursor ``since`` (0: from the beginning), at most so many events."""
        raise NotImplementedError

    def view(self, id: str) -> JobView:
        """The job as a page shows it. Costs only what is new since it was last asked for, by anyone."""
        raise NotImplementedError

    def cancel(self, id: str) -> Job:
        """Stop it, soon; harmless for one that has ended. The job as it is now: it may still be running."""
        raise NotImplementedError

    def retry(self, id: str, *, changes: Sequence[str] = ()) -> Job:
        """A new job like that one, at the end of the queue; what it finished is reused.

        Args:
            changes: of the recipe, as ``codec.with_value`` takes them (``training.batch_size=1``): those that
                ``Failure.settings`` offers, or others.

        Raises:
            BadInput: the job has not ended, or its kind takes no changes.
            CopierError: as ``submit_work``.
        """
        raise NotImplementedError

    def disk_use(self, id: str) -> DiskUse:
        """What it takes on the disk."""
        raise NotImplementedError

    def remove(self, id: str, *, output: bool = False, stages: bool = False) -> DiskUse:
        """Forget a job that has ended; what was deleted.

        Args:
            output: also delete the files that it put into its output folder, those that are unchanged.
            stages: also delete the finished stages that no other job used.

        Raises:
            BadInput: it has not ended.
        """
        raise NotImplementedError

    def runner(self) -> str:
        """Who works the queue: "here", "elsewhere" or "nobody"."""
        raise NotImplementedError

    def compare(self, first: str, second: str) -> Json:
        """Two runs beside each other: ``settings`` that differ (path -> [first, second]) and ``figures``
        (label -> [first, second]) of those that are done, for a table."""
        raise NotImplementedError
