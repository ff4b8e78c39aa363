"""Server-sent events of a job: as they happen, from a cursor on, until the job has ended.

Format: HTML Living Standard, "Server-sent events". The id of each is the cursor behind its page of events, so
whoever comes back with ``Last-Event-ID`` misses nothing; the events of one page may come twice.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping

import anyio
from starlette.responses import StreamingResponse

from copier.api.calls import Json, json_text
from copier.api.problems import Problem
from copier.app.job_json import job_json
from copier.app.jobs import EventPage, Job, JobService
from copier.errors import UnknownName

LOOK_SECONDS = 0.2
"""Between two looks for what happened."""
QUIET_SECONDS = 15.0
"""After so long without an event a comment is sent: proxies close what is silent."""
LONGEST_SECONDS = 3600.0
"""Then the client has to come back, which browsers do by themselves."""
MOST_STREAMS = 64
THREADS = 4
"""In which all streams look."""
_PAGE = 100


class Streams:
    """All streams of one application; there are never more than ``MOST_STREAMS``."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs
        self._open = 0
        self._limiter: anyio.CapacityLimiter | None = None

    def response(self, id: str, since: int, headers: Mapping[str, str]) -> StreamingResponse:
        """The stream of a job's events.

        Raises:
            Problem: there are too many streams.
        """
        if self._open >= MOST_STREAMS:
            raise Problem(503, "TooMany", f"{MOST_STREAMS} streams are open: close one, or ask for events")
        return StreamingResponse(
            self._counted(id, since),
            media_type="text/event-stream",
            # nginx keeps answers back otherwise.
            headers={**headers, "X-Accel-Buffering": "no"},
        )

    async def _counted(self, id: str, since: int) -> AsyncIterator[str]:
        self._open += 1
        try:
            async for text in self._texts(id, since):
                yield text
        finally:
            self._open -= 1

    async def _texts(self, id: str, since: int) -> AsyncIterator[str]:
        # Not before: a limiter belongs to a running loop. The host's own threads may all be at work.
        self._limiter = self._limiter or anyio.CapacityLimiter(THREADS)
        cursor, began = since, time.monotonic()
        said = began
        while time.monotonic() - began < LONGEST_SECONDS:
            try:
                job, found = await anyio.to_thread.run_sync(self._look, id, cursor, limiter=self._limiter)
            except UnknownName as error:
                yield _text("gone", {"message": str(error)}, cursor)
                return
            for text in _page(found):
                yield text
            if found.cursor > cursor:
                cursor, said = found.cursor, time.monotonic()
            elif job.state.ended:
                yield _text("end", job_json(job), cursor)
                return
            else:
                if time.monotonic() - said > QUIET_SECONDS:
                    said = time.monotonic()
                    yield ": still here\n\n"
                await anyio.sleep(LOOK_SECONDS)

    def _look(self, id: str, cursor: int) -> tuple[Job, EventPage]:
        # In this order: once a job has ended, all that happened to it is written.
        return self._jobs.job(id), self._jobs.events(id, cursor, most=_PAGE)


def _page(found: EventPage) -> Iterator[str]:
    last = len(found.events) - 1
    for i, event in enumerate(found.events):
        yield _text(str(event.get("type", "log")), event, found.cursor if i == last else None)


def _text(kind: str, data: Json, cursor: int | None) -> str:
    id = "" if cursor is None else f"id: {cursor}\n"
    return f"{id}event: {kind}\ndata: {json_text(data)}\n\n"
