"""A child process in a process group of its own: started, drained in the background, stopped.

Standard output comes as lines; standard error is kept as its last lines, for messages, and goes to a
log file where one is named. Where everything it says is text for people (``on_line``), both are treated
as standard error. Stopping signals the whole group: INT, TERM, KILL, each with its time. On Windows, where
there are no such groups, the child and all that it starts are in a job that ends with this process.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from copier.training import windows_job

log = logging.getLogger(__name__)

KEPT_LINES = 200
"""Lines of standard error that messages can quote."""
QUOTED_LINES = 12
_WINDOWS = os.name == "nt"
_DRAIN_SECONDS = 2.0
_LINE_ENDS = re.compile(rb"(\r\n|\n|\r(?!\Z))")
"""A carriage return at the very end may be half of a line end: what follows will tell."""


@dataclass(frozen=True)
class StopTimes:
    """Seconds that a child has after each signal before the next one; 0 leaves the signal out."""

    interrupt: float = 2.0
    terminate: float = 5.0
    kill: float = 5.0


class Child:
    """A running child process.

    Raises on construction ``OSError`` where the program cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        log_path: Path | None = None,
        on_error_line: Callable[[str], None] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            environment: the child's whole environment; None: ours.
            folder: where it runs.
            log_path: a file to which its standard error is appended, without progress bars.
            on_error_line: gets every line of its standard error, and every state of a progress
                bar, at once, from a thread of this object.
            on_line: instead of it, gets those of standard output too, one at a time; both streams are
                kept and logged then, and ``read_line`` has nothing but the end.
        """
        self._on_text = on_line or on_error_line
        self._text_lock = threading.Lock()
        self._last_output = time.monotonic()
        self._others_ended = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._tail: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._log: IO[str] | None = (
            open(log_path, "a", encoding="utf-8") if log_path else None  # noqa: SIM115
        )
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=None if environment is None else dict(environment),
                cwd=folder,
                start_new_session=not _WINDOWS,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except BaseException:
            if self._log:
                self._log.close()
            raise
        self._job = windows_job.enclose(self._process)
        # The last stream to end closes the log.
        self._open_texts = 2 if on_line else 1
        output = self._drain_spoken_output if on_line else self._drain_output
        self._threads = [
            threading.Thread(target=target, name=f"child-{self.pid}", daemon=True)
            for target in (output, self._drain_errors)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """The child's process id, which is also its group's."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    @property
    def tail(self) -> list[str]:
        """The last lines of its standard error (and output, with ``on_line``), oldest first."""
        with self._text_lock:
            return list(self._tail)

    @property
    def silent_seconds(self) -> float:
        """Time since it last wrote anything as text for people, or since it was started."""
        return time.monotonic() - self._last_output

    def send(self, line: str) -> bool:
        """Write one line to its standard input; False where it no longer reads."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode("utf-8") + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def close_input(self) -> None:
        """Close its standard input. Harmless when repeated."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def read_line(self, timeout: float) -> str | None:
        """The next line of its standard output, without its end; None when there will be no more.

        Raises:
            TimeoutError: none came within ``timeout`` seconds.
        """
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            self._lines.put(None)
        return line

    def wait(self, timeout: float) -> bool:
        """Whether it ended within ``timeout`` seconds."""
        if not self._ends_within(timeout):
            return False
        for thread in self._threads:
            thread.join(_DRAIN_SECONDS)
        return True

    def _ends_within(self, timeout: float) -> bool:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, times: StopTimes = StopTimes()) -> None:
        """End it and all that it started: INT, TERM, KILL to its group, until it is gone."""
        steps = (
            (getattr(signal, "SIGINT", None), times.interrupt),
            (signal.SIGTERM, times.terminate),
            (getattr(signal, "SIGKILL", signal.SIGTERM), times.kill),
        )
        for number, seconds in steps:
            if self.exit_code is not None:
                break
            if not seconds:
                continue
            self._signal(number)
            if self._ends_within(seconds):
                break
        self._end_others()  # before its streams are waited for, which they may hold open
        self.close_input()
        if not self.wait(0):
            log.error("the child process %d does not end", self.pid)

    def _end_others(self) -> None:
        """End what the child started and left: once, for later another group may bear its number."""
        if self._others_ended or self.exit_code is None:
            return
        self._others_ended = True
        if sys.platform == "win32":
            windows_job.terminate(self._job)
        else:
            self._signal(getattr(signal, "SIGKILL", None))

    def _signal(self, number: int | None) -> None:
        if sys.platform == "win32":
            # There are no groups to signal; CTRL_BREAK would also reach a console's other programs.
            if number == signal.SIGTERM:
                windows_job.terminate(self._job)
                self._process.terminate()
            return
        if number is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _drain_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(None)

    def _drain_spoken_output(self) -> None:
        self._drain_text(self._process.stdout)
        self._lines.put(None)

    def _drain_errors(self) -> None:
        self._drain_text(self._process.stderr)

    def _drain_text(self, stream: IO[bytes] | None) -> None:
        """Lines and states of progress bars, until the stream ends."""
        assert stream is not None
        rest, told, returned = b"", b"", False
        try:
            with stream:
                while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
                    self._last_output = time.monotonic()
                    *pieces, rest = _LINE_ENDS.split(rest + chunk)
                    for text, end in zip(pieces[::2], pieces[1::2], strict=True):
                        self._take_text(text, whole=end != b"\r", known=text == told)
                        told, returned = b"", end == b"\r"
                    # tqdm begins a state with the return: its end comes with the next one, a step later.
                    state = rest.rstrip(b"\r")
                    if (returned or state != rest) and state != told:
                        self._take_text(state, whole=False)
                        told = state
                self._take_text(rest, whole=True, known=rest.rstrip(b"\r") == told)
        finally:
            with self._text_lock:
                self._open_texts -= 1
                if self._log and not self._open_texts:
                    self._log.close()

    def _take_text(self, raw: bytes, *, whole: bool, known: bool = False) -> None:
        """A line, or (not ``whole``) a state of a progress bar that the next one overwrites.

        ``known``: it was told as a state already.
        """
        text = raw.decode("utf-8", "replace").rstrip()
        if not text:
            return
        with self._text_lock:
            if whole:
                self._tail.append(text)
                if self._log:
                    self._log.write(text + "\n")
                    self._log.flush()
            if self._on_text and not known:
                self._on_text(text)


def available_cores() -> int:
    """The cores that this process may use, which in a container are often fewer than there are.

    ``OMP_NUM_THREADS`` says so too: beside other work threads that spin take ten times as long.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quoted(lines: Sequence[str], most: int = QUOTED_LINES) -> str:
    """The last lines of a log that are not empty, ``most`` of them, as the end of a message."""
    return "".join(f"\n    {line}" for line in [line for line in lines if line.strip()][-most:])


def describe_exit(code: int | None) -> str:
    """How a child ended, in words: its exit code or the name of the signal."""
    if code is None:
        return "stopped answering"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
