"""Works the queue: one job at a time, in one thread of one process, until it is told to stop.

The thread that starts a job lives until the job has ended: on Linux a training child ends with the thread
that started it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from copier.app.job_events import EventLog, Recorder
from copier.app.job_files import STOP, JobFiles
from copier.app.job_values import Failure, Job, JobKind, JobState, Needs
from copier.app.settings import Settings
from copier.errors import BadInput, Cancelled, CopierError
from copier.lock import FileLock
from copier.progress import CancelToken, Observer, ProgressEvent, ignore

log = logging.getLogger(__name__)

QUEUE_SECONDS = 0.5
"""Between two looks for what other processes submitted, or whether the one that works is gone."""
STOP_SECONDS = 0.1
"""Between two looks for whether another process asked a job to stop."""
_DISK_SECONDS = 1.0
"""Between two tries to write down how a job ended."""


class Runner:
    """Works the queue of ``files`` while it holds the lock ``runner.lock`` beside the jobs."""

    def __init__(
        self,
        files: JobFiles,
        settings: Settings,
        kinds: Mapping[str, JobKind],
        has: Mapping[Needs, Callable[[], AbstractContextManager[None]]],
    ) -> None:
        """``has``: for what a kind of job needs of the host, the block in which it is had."""
        self._files = files
        self._settings = settings
        self._kinds = kinds
        self._has = has
        self._lock = FileLock(files.root / "runner.lock")
        self._closing = CancelToken()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._running: tuple[str, CancelToken] | None = None

    @property
    def here(self) -> bool:
        """Whether this object works the queue."""
        return self._lock.held

    def anywhere(self) -> bool:
        """Whether any process does."""
        return self._lock.taken()

    def start(self) -> None:
        """Work in a thread from now on, as soon as nobody else does. Harmless when repeated."""
        if self._thread is None or not self._thread.is_alive():
            self._closing = CancelToken()
            self._thread = threading.Thread(target=self._work_always, name="copier-jobs", daemon=True)
            self._thread.start()

    def close(self, timeout: float) -> bool:
        """Stop the running job, as interrupted, and the thread; whether that took less than ``timeout`` s."""
        self._closing.cancel()
        self.wake()
        running = self._running
        if running is not None:
            running[1].cancel()
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return True

    def wake(self) -> None:
        """There may be something new in the queue."""
        self._wake.set()

    def stop(self, id: str) -> None:
        """Stop the job at once where this object runs it; else its ``STOP`` file is found soon."""
        running = self._running
        if running is not None and running[0] == id:
            running[1].cancel()

    def work_here(self, *, observer: Observer, cancel: CancelToken) -> list[Job]:
        """Carry out what is queued, in this thread, until the queue is empty; the jobs as they ended.

        Raises:
            BadInput: another process works the queue, or a thread of this one.
            Cancelled: the token was set; the running job is ``interrupted``.
        """
        if self.here or not self._lock.acquire():
            raise BadInput("the queue is worked already, here or by another process: wait for what is queued")
        done = []
        try:
            self._files.recover()
            while (job := self._files.claim()) is not None:
                done.append(self._carried_out(job, observer, cancel))
                cancel.check()
        finally:
            self._lock.release()
        return done

    def _work_always(self) -> None:
        closing = self._closing
        while not closing.cancelled:
            try:
                self._work_while_held(closing)
            except (OSError, CopierError):
                log.exception("the queue in %s cannot be worked; trying again", self._files.root)
            finally:
                self._lock.release()
            if not closing.cancelled:
                self._pause()

    def _work_while_held(self, closing: CancelToken) -> None:
        if not self._lock.acquire():
            return
        self._files.recover()
        while not closing.cancelled:
            job = self._files.claim()
            if job is None:
                self._pause()
            else:
                self._carried_out(job, ignore, closing)

    def _pause(self) -> None:
        self._wake.wait(QUEUE_SECONDS)
        self._wake.clear()

    def _carried_out(self, job: Job, observer: Observer, closing: CancelToken) -> Job:
        """The job as it ended. ``closing`` interrupts it."""
        token = CancelToken()
        events = EventLog(job.folder)
        recorder = Recorder(job.folder, events)

        def observe(event: ProgressEvent) -> None:
            recorder(event)
            observer(event)

        events.append("state", state=JobState.RUNNING.value, message="")
        self._running = job.id, token
        try:
            with _watched(job, token, closing):
                ended = self._ended(job, observe, token)
        finally:
            self._running = None
        recorder.close()
        message = ended.failure.message if ended.failure else ""
        events.append("state", state=ended.state.value, message=message)
        return self._written(ended)

    def _ended(self, job: Job, observer: Observer, token: CancelToken) -> Job:
        """Do the work; every failure ends here, as a value."""
        try:
            kind = self._kinds.get(job.kind)
            if kind is None:
                raise BadInput(f"this version knows no jobs of the kind {job.kind!r}: update the program")
            with self._has[kind.needs]():
                outcome = kind.work(job.payload, self._settings, observer, token)
            ended = replace(job, state=JobState.DONE, outcome=outcome)
        except Cancelled:
            asked = (job.folder / STOP).exists()
            ended = replace(job, state=JobState.STOPPED if asked else JobState.INTERRUPTED)
        except CopierError as error:
            settings = tuple(map(str, getattr(error, "settings", ())))
            failure = Failure(type(error).__name__, str(error), settings)
            ended = replace(job, state=JobState.FAILED, failure=failure)
        except Exception as error:
            log.exception("the job %s failed unexpectedly", job.id)
            failure = Failure(type(error).__name__, f"{type(error).__name__}: {error}")
            ended = replace(job, state=JobState.FAILED, failure=failure)
        return replace(ended, finished=time.time())

    def _written(self, ended: Job) -> Job:
        """Write down how the job ended; on a full disk again and again, for without it the queue lies."""
        while True:
            try:
                self._files.change(ended.id, lambda job: ended)
                return ended
            except (OSError, CopierError):
                log.exception("how the job %s ended cannot be written down; trying again", ended.id)
            if self._closing.cancelled:
                return ended
            time.sleep(_DISK_SECONDS)


@contextlib.contextmanager
def _watched(job: Job, token: CancelToken, closing: CancelToken) -> Iterator[None]:
    """While the block runs ``token`` is set soon after someone asked for a stop, or ``closing`` was set."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(STOP_SECONDS):
            if closing.cancelled or (job.folder / STOP).exists():
                token.cancel()
                return

    thread = threading.Thread(target=watch, name="copier-jobs-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
