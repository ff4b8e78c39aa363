"""What happens to a job, in a file that only grows: one JSON object a line, read from where one left off."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from copier.app.job_files import EVENTS, SAMPLES
from copier.app.job_values import EventPage
from copier.progress import Phase, ProgressEvent

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
"""Progress is written this often at most; the losses of all steps since then are with it."""
MOST_LOSSES = 64
"""In one event: where steps are faster than that, every second loss is left out."""
MOST_MESSAGES = 5_000
"""Of one job; a child that says more is not listened to."""
MOST_SAMPLES = 500
"""Pictures that are kept of one job."""
_CHUNK = 1 << 20


class EventLog:
    """The events of one job, to be written; any thread may."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._lock = threading.Lock()

    def append(self, kind: str, **values: object) -> None:
        """Write one event, at once; a disk that is full costs the event, not the job."""
        line = json.dumps({"type": kind, "time": round(time.time(), 3), **values}, ensure_ascii=True)
        with self._lock, contextlib.suppress(OSError), open(self._path, "a+b", buffering=0) as file:
            # A process that was killed may have left half a line.
            file.write(b"" if _ends_whole(file.fileno()) else b"\n")
            file.write(line.encode("ascii") + b"\n")


def _ends_whole(handle: int) -> bool:
    end = os.lseek(handle, 0, os.SEEK_END)
    if end == 0:
        return True
    os.lseek(handle, end - 1, os.SEEK_SET)
    return os.read(handle, 1) == b"\n"


def read_events(folder: Path, since: int, most: int) -> EventPage:
    """The events of the job in ``folder`` after the cursor ``since``; only lines that are whole."""
    content = b""
    with contextlib.suppress(OSError), open(folder / EVENTS, "rb") as file:
        file.seek(since)
        while chunk := file.read(_CHUNK):
            content += chunk
            if b"\n" in content:
                break
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)[:most]
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict):
                found.append(event)
    return EventPage(tuple(found), since + sum(map(len, lines)))


class Recorder:
    """An observer that writes what it is told to the job's log; of a memory and a pace that do not grow."""

    def __init__(
        self, folder: Path, events: EventLog, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._round = 0
        self._planning = False
        self._reused = False
        self._pending: ProgressEvent | None = None
        self._losses: list[tuple[int, float]] = []
        self._written = float("-inf")
        self._messages = 0
        self._samples = 0

    def __call__(self, event: ProgressEvent) -> None:
        """Write the event, or keep it for the next that is written."""
        with self._lock:
            if self._pending is not None and self._pending.stage != event.stage:
                self._flush()
            if event.phase is not Phase.WORKING:
                self._flush()
                self._stage(event)
            elif event.message:
                self._message(event)
            self._pictures(event)
            if event.steps:
                self._progress(event)

    def close(self) -> None:
        """Write what is still kept."""
        with self._lock:
            self._flush()

    def _stage(self, event: ProgressEvent) -> None:
        if event.phase is Phase.PLANNED and not self._planning:
            self._round += 1
        self._planning = event.phase is Phase.PLANNED
        if event.phase is Phase.DONE and self._reused:
            return
        self._reused = event.phase is Phase.REUSED
        state = "running" if event.phase is Phase.STARTED else event.phase.value
        reason = event.message.partition(": ")[2] or event.message
        self._append("stage", event, state=state, reason=reason)

    def _message(self, event: ProgressEvent) -> None:
        self._messages += 1
        if self._messages <= MOST_MESSAGES:
            self._append("log", event, message=event.message)
        elif self._messages == MOST_MESSAGES + 1:
            self._append("log", event, message=f"{MOST_MESSAGES} messages are enough: the rest is left out")

    def _pictures(self, event: ProgressEvent) -> None:
        for picture in map(Path, event.pictures):
            if self._samples >= MOST_SAMPLES:
                return
            self._samples += 1
            label = event.stage
            if event.phase is Phase.WORKING:
                picture = self._kept(picture)
                label = f"{event.stage} {self._samples}"
            elif picture.parent.name[:1] in "+-" and (weight := float(picture.parent.name)):
                label = f"{event.stage} {weight:+g}"
            self._append("sample", event, path=os.path.abspath(picture), label=label)

    def _kept(self, picture: Path) -> Path:
        """A copy that stays when the stage's folder is moved; where it fails, the picture itself."""
        place = self._folder / SAMPLES / f"{self._samples:04d}{picture.suffix}"
        try:
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(picture, place)
        except OSError as error:
            log.warning("the sample %s cannot be kept: %s", picture.name, error)
            return picture
        return place

    def _progress(self, event: ProgressEvent) -> None:
        self._pending = event
        if event.loss is not None and (not self._losses or self._losses[-1][0] != event.step):
            self._losses.append((event.step, event.loss))
        if len(self._losses) > MOST_LOSSES:
            del self._losses[::2]
        if self._clock() - self._written >= PROGRESS_SECONDS or event.step >= event.steps:
            self._flush()

    def _flush(self) -> None:
        event, losses = self._pending, self._losses
        if event is None:
            return
        self._pending, self._losses, self._written = None, [], self._clock()
        self._append(
            "progress",
            event,
            step=event.step,
            steps=event.steps,
            rate=_short(event.rate),
            left=_short(event.seconds_left),
            losses=[[step, _short(loss)] for step, loss in losses],
        )

    def _append(self, kind: str, event: ProgressEvent, **values: object) -> None:
        self._events.append(kind, stage=event.stage, round=self._round, **values)


def _short(value: float | None) -> float | None:
    """Six significant digits, for a person's eyes; NaN and infinity, which JSON lacks, are None."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
