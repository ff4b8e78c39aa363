"""The host's queue lock: one piece of work at a time, shown by the host's progress, stopped by its Interrupt.

The lock is not reentrant, and everything of the host that draws takes it. So whoever has it here may nest,
and calls nothing of the host that takes it by itself.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Between two looks for whether someone pressed Interrupt."""


@dataclass(frozen=True)
class Shown:
    """What the host's progress says after the turn's title, and the step of so many (0: unknown)."""

    text: str = ""
    step: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Watch:
    """What a turn looks at while it lasts.

    Attributes:
        interrupted: called once, when someone pressed the host's Interrupt.
        shown: what the host's progress is to say; None: what draws says it itself.
        cancelled: whether the host's own work is to be stopped.
    """

    interrupted: Callable[[], None] = lambda: None
    shown: Callable[[], Shown] | None = None
    cancelled: Callable[[], bool] = lambda: False


class Turns:
    """Takes turns with the host; of one thread those that nest count as one."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._wanted = 0
        self._count = threading.Lock()

    @property
    def taken(self) -> bool:
        """Whether someone has or waits for a turn here."""
        return self._wanted > 0

    @property
    def mine(self) -> bool:
        """Whether this thread has it."""
        return self._owner == threading.get_ident()

    @contextlib.contextmanager
    def turn(self, title: str, watch: Watch) -> Iterator[None]:
        """Wait for the host to be idle and hold its queue lock while the block runs."""
        from modules import call_queue

        if self.mine:
            yield
            return
        with self._count:
            self._wanted += 1
        try:
            with call_queue.queue_lock:
                self._owner = threading.get_ident()
                try:
                    with _in_progress(title), _watched(title, watch):
                        yield
                finally:
                    self._owner = None
        finally:
            with self._count:
                self._wanted -= 1


@contextlib.contextmanager
def _in_progress(title: str) -> Iterator[None]:
    """The host's own record of what is done now."""
    from modules import progress, shared

    # The host takes a number that it saw before for work that is done.
    task = f"task(copier-{secrets.token_hex(6)})"
    try:
        shared.state.begin(job=title)
        progress.start_task(task)
        yield
    finally:
        try:
            progress.finish_task(task)
        finally:
            shared.state.interrupted = False
            shared.state.textinfo = None
            shared.state.end()


@contextlib.contextmanager
def _watched(title: str, watch: Watch) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=_look, args=(title, watch, ended), name="copier-turn", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look(title: str, watch: Watch, ended: threading.Event) -> None:
    from modules import shared

    told = False
    while True:
        try:
            if watch.cancelled():
                shared.state.interrupt()
            if shared.state.interrupted and not told:
                told = True
                watch.interrupted()
            if watch.shown is not None:
                _say(title, watch.shown())
        except Exception:
            # Whatever it is: the work goes on, and the next look may see more.
            log.exception("the host's progress cannot be kept up")
        if ended.wait(LOOK_SECONDS):
            return


def _say(title: str, shown: Shown) -> None:
    from modules import shared

    state = shared.state
    # Set again each time: whatever else a page asks of the host puts them back when it is done.
    state.job, state.job_count, state.job_no = title, 1, 0
    state.textinfo = f"{title}: {shown.text}" if shown.text else title
    state.sampling_step, state.sampling_steps = shown.step, shown.steps
