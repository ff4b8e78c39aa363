"""The parent's side of the worker child; imports nothing heavy."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from copier.errors import Cancelled, TrainingFailed
from copier.progress import CancelToken, Observer, guarded, ignore
from copier.training import protocol
from copier.training.process import Child, StopTimes, available_cores, describe_exit, quoted
from copier.training.protocol import (
    PicturesResult,
    ReconstructRequest,
    Request,
    SampleRequest,
    TrainRequest,
    TrainResult,
)

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
CANCEL_SECONDS = 20.0
"""Time that a request has to stop between two steps before the child is ended by force."""
CLOSE_SECONDS = 5.0
_PROJECT = Path(__file__).resolve().parents[2]
_START = (
    "import runpy, sys; folders = sys.argv.pop(1).split('|'); "
    "sys.path[:] = folders + [one for one in sys.path if one and one not in folders]; "
    "runpy.run_module('copier.training.worker', run_name='__main__', alter_sys=True)"
)
"""Starts the worker with folders first on its path. Embeddable Pythons ignore PYTHONPATH; and without the
empty entry no module in the user's current folder hides one of ours."""


Drawn = Callable[[int], bool]
"""Called with the number of steps of a training whose check has been drawn: whether it ends."""


class BuiltinWorker:
    """A worker child that trains and samples; a context manager, and one request at a time.

    The child starts with the block and ends with it. It keeps the checkpoint of the last request in
    memory. It is never restarted: after it died, or had to be ended, every request raises
    ``TrainingFailed``; make a new one.
    """

    def __init__(
        self,
        *,
        python: str = sys.executable,
        threads: int | None = None,
        device: str = "auto",
        log_path: Path | None = None,
        tokenizer_folder: Path | None = None,
        search_path: Sequence[Path] = (),
    ) -> None:
        """
        Args:
            python: the interpreter whose packages the child uses.
            threads: of torch; None takes one for each core that may be used.
            device: ``auto``, ``cpu`` or ``cuda``.
            log_path: a file to which the child's standard error is appended.
            tokenizer_folder: keeps the tokenizer's files between children.
            search_path: folders that come first on the child's path, such as an overlay.
        """
        self._threads = threads or available_cores()
        folders = "|".join(map(str, (*search_path, _PROJECT)))
        self._command = [python, "-c", _START, folders, "--device", device]
        self._command += ["--threads", str(self._threads)]
        if tokenizer_folder:
            self._command += ["--tokenizer", str(tokenizer_folder)]
        self._log_path = log_path
        self._child: Child | None = None

    def __enter__(self) -> BuiltinWorker:
        environment = child_environment(self._threads)
        try:
            self._child = Child(self._command, environment=environment, log_path=self._log_path)
        except OSError as error:
            raise TrainingFailed(
                f"the worker cannot be started with {self._command[0]!r} ({error.strerror}): check "
                "the path of the Python interpreter"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(force=kind is not None)

    @property
    def pid(self) -> int | None:
        """Process id of the child while it is there."""
        return self._child.pid if self._child else None

    def close(self, *, force: bool = False) -> None:
        """End the child; ``force`` does not let it end by itself. Harmless when repeated."""
        if self._child is None:
            return
        if not force:
            self._child.send(json.dumps({"op": "stop"}))
        self._child.close_input()
        if not self._child.wait(0 if force else CLOSE_SECONDS):
            self._child.stop()
        self._child.wait(0)
        self._child = None

    def train(
        self,
        request: TrainRequest,
        *,
        observer: Observer = ignore,
        cancel: CancelToken | None = None,
        on_drawn: Drawn | None = None,
    ) -> TrainResult:
        """Train a LoRA; raises the ``CopierError`` of the child, ``Cancelled``, TrainingFailed.

        ``on_drawn`` is asked, while the child waits, whether the training ends with what ``request.check``
        drew. What it raises ends the child.
        """
        return protocol.train_result(self._call(request, observer, cancel, on_drawn))

    def sample(
        self,
        request: SampleRequest,
        *,
        observer: Observer = ignore,
        cancel: CancelToken | None = None,
    ) -> PicturesResult:
        """Draw pictures; raises as ``train``."""
        return protocol.pictures_result(self._call(request, observer, cancel))

    def reconstruct(
        self,
        request: ReconstructRequest,
        *,
        observer: Observer = ignore,
        cancel: CancelToken | None = None,
    ) -> PicturesResult:
        """What the autoencoder makes of pictures; raises as ``train``."""
        return protocol.pictures_result(self._call(request, observer, cancel))

    def _call(
        self,
        request: Request,
        observer: Observer,
        cancel: CancelToken | None,
        on_drawn: Drawn | None = None,
    ) -> Mapping[str, Any]:
        if cancel:
            cancel.check()
        child = self._child
        if child is None:
            raise TrainingFailed("the worker is not running: start a new one")
        if not child.send(json.dumps(protocol.request_to_json(request))):
            raise self._crashed(child)
        observer = guarded(observer)
        given_up: float | None = None
        while True:
            if cancel and cancel.cancelled:
                given_up = self._cancel(child, given_up)
            try:
                line = child.read_line(POLL_SECONDS)
            except TimeoutError:
                continue
            if line is None:
                raise Cancelled("stopped") if cancel and cancel.cancelled else self._crashed(child)
            message = _message(line)
            if message.get("type") == "done":
                result: Mapping[str, Any] = message["result"]
                return result
            if message.get("type") == "error":
                raise protocol.error_from_json(message)
            if message.get("type") == "progress":
                observer(protocol.event_from_json(message))
            if message.get("type") == "check":
                self._answer(child, message["step"], on_drawn)

    def _answer(self, child: Child, step: int, on_drawn: Drawn | None) -> None:
        """Tell the waiting child whether its training ends."""
        try:
            passed = on_drawn is not None and on_drawn(step)
        except BaseException:
            self.close(force=True)
            raise
        child.send(json.dumps(protocol.verdict_to_json(passed=passed)))

    def _cancel(self, child: Child, given_up: float | None) -> float:
        """Ask the child to stop, once; end it when it took too long. Returns when that will be."""
        if given_up is None:
            child.send(json.dumps({"op": "cancel"}))
            return time.monotonic() + CANCEL_SECONDS
        if time.monotonic() > given_up:
            log.warning("the worker did not stop within %g s and is ended", CANCEL_SECONDS)
            self.close(force=True)
            raise Cancelled("stopped")
        return given_up

    def _crashed(self, child: Child) -> TrainingFailed:
        """Why there will be no more answers, with the last that the child said."""
        if not child.wait(StopTimes().interrupt):
            child.stop()
        how, tail = describe_exit(child.exit_code), child.tail
        self.close(force=True)
        return TrainingFailed(f"the worker {how}: {_remedy(child.exit_code, tail)}{quoted(tail)}")


def child_environment(threads: int) -> dict[str, str]:
    """This process' environment with the child's number of threads."""
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        # A training step of a small network has thousands of short parallel regions: with threads
        # that sleep between them it took 0.60 s on two cores, with threads that spin 0.22 s.
        "OMP_WAIT_POLICY": "active",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def _message(line: str) -> Mapping[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if isinstance(message, dict):
        return message
    log.debug("not a message of the worker: %s", line[:200])
    return {}


def _remedy(exit_code: int | None, tail: Sequence[str]) -> str:
    text = "\n".join(tail)
    if "No module named" in text:
        return "its Python lacks a package: install the trainer's packages"
    if exit_code == -9 or "out of memory" in text.lower() or "MemoryError" in text:
        return (
            "probably the memory did not suffice: close other programs, use a smaller batch size "
            "or resolution, or turn on gradient checkpointing"
        )
    return "run it again; if it happens again, its log says more"
