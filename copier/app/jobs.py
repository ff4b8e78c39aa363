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

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from copier.app.job_compare import compare
from copier.app.job_disk import disk_use, stages_of
from copier.app.job_events import read_events
from copier.app.job_files import STOP, JobFiles, interrupted
from copier.app.job_kinds import KINDS
from copier.app.job_runner import Runner
from copier.app.job_values import (
    RUN,
    DiskUse,
    EventPage,
    Failure,
    Job,
    JobKind,
    JobState,
    JobView,
    Json,
    Needs,
    StageView,
    Work,
    run_payload,
)
from copier.app.job_view import ViewBuilder
from copier.app.settings import Settings
from copier.codec import recipe_to_json, with_values
from copier.errors import NotNow, UnknownName
from copier.fields import check_text
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ignore
from copier.request import RunRequest

__all__ = [
    "RUN",
    "DiskUse",
    "EventPage",
    "Failure",
    "Job",
    "JobKind",
    "JobService",
    "JobState",
    "JobView",
    "Json",
    "Needs",
    "StageView",
    "Work",
    "run_payload",
]

_VIEWS = 8
"""Jobs whose view is kept: those that someone looks at."""


class JobService:
    """The queue of a data directory. Several services, in one or several processes, may share one.

    Reading and submitting need no ``start``. All methods may be called from any thread and return soon,
    but for ``work``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        kinds: Sequence[JobKind] = (),
        released: Callable[[], AbstractContextManager[None]] = nullcontext,
        turn: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        """
        Args:
            kinds: in addition to those of ``copier.app.job_kinds`` (runs, operations on files, installation).
            released: ``HostServices.released``: the host gives its memory back while a job trains or draws.
            turn: the host draws nothing while an operation on files computes, and keeps its model; None:
                operations are carried out as the other jobs are.
        """
        self._settings = settings
        self._kinds = {kind.name: kind for kind in (*KINDS, *kinds)}
        self._files = JobFiles(settings.jobs)
        has = {Needs.MEMORY: released, Needs.TURN: turn or released, Needs.NOTHING: nullcontext}
        self._runner = Runner(self._files, settings, self._kinds, has)
        self._views: OrderedDict[str, ViewBuilder] = OrderedDict()
        self._views_lock = threading.Lock()

    def start(self) -> None:
        """Work the queue in a thread of this process whenever no other does. Harmless when repeated."""
        self._runner.start()

    def close(self, *, timeout: float = 30.0) -> bool:
        """Stop working the queue; a job that runs is stopped, and is ``interrupted``.

        Whether that took less than ``timeout`` seconds.
        """
        return self._runner.close(timeout)

    def work(self, *, observer: Observer = ignore, cancel: CancelToken | None = None) -> list[Job]:
        """Carry out what is queued, in this thread, until the queue is empty; the jobs as they ended.

        Raises:
            BadInput: another process works the queue, or the thread that ``start`` began.
            Cancelled: the token was set; the job that ran is ``interrupted``.
        """
        return self._runner.work_here(observer=observer, cancel=cancel or CancelToken())

    def runner(self) -> str:
        """Who works the queue: "here", "elsewhere" or "nobody"."""
        if self._runner.here:
            return "here"
        return "elsewhere" if self._runner.anywhere() else "nobody"

    def submit(
        self, request: RunRequest, *, control: bool = False, seeds: int = 1, title: str = ""
    ) -> Job:
        """Put a run at the end of the queue; without a ``title`` it is called by its recipe.

        Raises:
            CopierError: as ``app.service.check``; nothing was written.
        """
        payload = run_payload(request, control=control, seeds=seeds)
        return self.submit_work(RUN, payload, title=title or request.title or request.recipe.title)

    def submit_work(
        self, kind: str, payload: Mapping[str, Any], *, title: str = "", retry_of: str = ""
    ) -> Job:
        """Put work of any kind at the end of the queue; ``payload`` is JSON with absolute paths.

        Raises:
            UnknownName: there is no such kind.
            CopierError: as its check; nothing was written.
        """
        if kind not in self._kinds:
            raise UnknownName("kind of job", kind, self._kinds)
        check_text("the job's title", title)
        self._kinds[kind].check(payload, self._settings)
        job = self._files.create(kind, title or kind, payload, retry_of=retry_of)
        self._runner.wake()
        return job

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, the newest first. Folders that cannot be read are left out."""
        return tuple(map(self._as_it_is, reversed(self._files.every())))

    def current(self) -> Job | None:
        """The one that runs, else the first of the queue; None: there is nothing to do."""
        waiting = [job for job in reversed(self.jobs()) if not job.state.ended]
        running = (job for job in waiting if job.state is JobState.RUNNING)
        return next(running, waiting[0] if waiting else None)

    def job(self, id: str) -> Job:
        """The job of that id, of that number, or the only one whose id begins so.

        Raises:
            UnknownName: there is none, or several.
        """
        every = self._files.every()
        numbered = [job for job in every if id.isdecimal() and job.number == int(id)]
        found = [job for job in every if job.id == id] or numbered
        found = found or [job for job in every if id and job.id.startswith(id)]
        if len(found) != 1:
            raise UnknownName("job", id, [job.id for job in every] or ["no job at all"])
        return self._as_it_is(found[0])

    def events(self, id: str, since: int = 0, *, most: int = 500) -> EventPage:
        """What happened since the cursor ``since`` (0: from the beginning), at most so many events.

        Raises:
            UnknownName: as ``job``.
        """
        return read_events(self.job(id).folder, max(0, since), most)

    def view(self, id: str) -> JobView:
        """The job as a page shows it. Costs only what is new since anyone asked for it last.

        Raises:
            UnknownName: as ``job``.
        """
        job = self.job(id)
        with self._views_lock:
            builder = self._views.setdefault(job.id, ViewBuilder())
            self._views.move_to_end(job.id)
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
            while (page := read_events(job.folder, builder.cursor, 500)).cursor > builder.cursor:
                for event in page.events:
                    builder.feed(event)
                builder.cursor = page.cursor
            return builder.view(job)

    def cancel(self, id: str) -> Job:
        """Stop it, soon; harmless for one that has ended. The job as it is now: it may still be running.

        Raises:
            UnknownName: as ``job``.
        """
        job = self.job(id)

        def stopped(job: Job) -> Job:
            if job.state is JobState.QUEUED:
                return replace(job, state=JobState.STOPPED, finished=time.time())
            if job.state is JobState.RUNNING:
                (job.folder / STOP).touch()
            return job

        changed = self._files.change(job.id, stopped)
        self._runner.stop(job.id)
        return job if changed is None else self._as_it_is(changed)

    def retry(self, id: str, *, changes: Sequence[str] = ()) -> Job:
        """A new job like that one, at the end of the queue; what it finished is reused.

        Args:
            changes: of the recipe, as ``codec.with_value`` takes them (``training.batch_size=1``): those that
                ``Failure.settings`` offers, or others.

        Raises:
            NotNow: the job has not ended.
            BadInput: its kind takes no changes.
            CopierError: as ``submit_work``.
        """
        job = self.job(id)
        _require_ended(job, "repeated")
        payload = dict(job.payload)
        if changes:
            recipe = with_values(job.request.recipe, changes)
            payload["request"] = {**payload["request"], "recipe": recipe_to_json(recipe)}
        return self.submit_work(job.kind, payload, title=job.title, retry_of=job.id)

    def disk_use(self, id: str) -> DiskUse:
        """What it takes on the disk. Raises ``UnknownName`` as ``job``."""
        job = self.job(id)
        return disk_use(job, self._others(job), StageStore(self._settings.stages))

    def remove(self, id: str, *, output: bool = False, stages: bool = False) -> DiskUse:
        """Forget a job that has ended; what was deleted.

        Args:
            output: also delete the files that it put into its output folder, those that are unchanged.
            stages: also delete the finished stages that no other job used.

        Raises:
            NotNow: it has not ended; or ``stages``, while a run is making one.
        """
        job = self.job(id)
        store = StageStore(self._settings.stages)
        others = self._others(job)
        use = disk_use(job, others, store)
        running = any(self._as_it_is(other).state is JobState.RUNNING for other in others)
        if stages and (running or store.in_use()):
            raise NotNow("a run is at work and may need any finished stage: delete them when it has ended")
        self._files.delete(job.id, lambda job: _require_ended(self._as_it_is(job), "removed"))
        with self._views_lock:
            self._views.pop(job.id, None)
        for path in use.files if output else ():
            path.unlink(missing_ok=True)
        for entry in stages_of(job, others, store) if stages else ():
            store.remove(entry)
        return DiskUse(
            job=use.job,
            output=use.output if output else 0,
            stages=use.stages if stages else 0,
            files=use.files if output else (),
        )

    def compare(self, first: str, second: str) -> Json:
        """Two jobs beside each other, for a table.

        ``settings`` that differ (path -> [first, second]), and ``figures`` (label -> [first, second]; None
        where a job has none).

        Raises:
            UnknownName: as ``job``.
        """
        return compare(self.job(first), self.job(second))

    def _others(self, job: Job) -> list[Job]:
        return [other for other in self._files.every() if other.id != job.id]

    def _as_it_is(self, job: Job) -> Job:
        """A job that runs according to its file, but nobody works the queue, is interrupted."""
        if job.state is not JobState.RUNNING or self._runner.anywhere():
            return job
        # It may have ended, and its process too, between the two looks.
        return interrupted(self._files.read(job.id) or job)


def _require_ended(job: Job, what: str) -> None:
    if not job.state.ended:
        raise NotNow(f"the job {job.id} is {job.state.value}: stop it first, then it can be {what}")
