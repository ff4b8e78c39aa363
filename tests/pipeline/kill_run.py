"""Runs a small recipe again and again in children that may be killed; for ``test_kill.py``.

Every line of standard input is a JSON object; the answer is one on standard output. The torch import
is paid once: each run is a fork. The keys of a question:

    folder      where checkpoint, data, output and the worker's log are
    kill_at     a write point, as in COPIER_KILL_AT
    kill_in     [kind, n]: end it at the n-th file operation inside the last stage of that kind
    report      whether the report is written as well

The answer: ``status`` (0, 1, or minus the signal) and, of a run that ended by itself, ``made`` (stages
that were not reused), ``files`` (operations inside the last stage of each kind) and ``points`` (how
often each write point was passed).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline_fake import FakeWorker, every_kind_there_is, execute, make_plan, make_request

from copier import writepoints
from copier.pipeline import results, stages

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
"""Audit events that count as file operations: before each of them the process may be killed."""


class Operations:
    """Counts the file operations of stages in the store, and kills the process at one of them.

    The end of a stage's function, when all its files are written, counts as one more.
    """

    def __init__(self, store: Path, stage: str, number: int) -> None:
        self.store, self.stage, self.number = str(store), stage, number
        self.current: tuple[str, str] | None = None
        self.counts: Counter[str] = Counter()

    def watch(self) -> None:
        """Put it around every kind's function. Audit hooks stay, but the process is a fork."""
        stages.KINDS = {kind: self._around(kind, function) for kind, function in stages.KINDS.items()}
        sys.addaudithook(self._audit)

    def _around(self, kind: str, function: Any) -> Any:
        def stage(context: stages.Context) -> Any:
            self.current = (kind, context.stage.name)
            self.counts[kind] = 0
            try:
                outcome = function(context)
                self._count()
                return outcome
            finally:
                self.current = None

        return stage

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.current is not None and event in WATCHED and self.store in str(arguments[0]):
            self._count()

    def _count(self) -> None:
        assert self.current is not None
        kind, name = self.current
        self.counts[kind] += 1
        if name == self.stage and self.counts[kind] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def run(question: dict[str, Any]) -> dict[str, Any]:
    """One run, in this process."""
    folder = Path(question["folder"])
    request = make_request(folder, recipe=every_kind_there_is())
    os.environ["COPIER_KILL_AT"] = question.get("kill_at", "")
    kind, number = question.get("kill_in", ("", 0))
    of_kind = [stage.name for stage in make_plan(request).stages if stage.kind == kind]
    operations = Operations(folder / "data" / "stages", of_kind[-1] if of_kind else "", number)
    operations.watch()
    points: Counter[str] = Counter()
    if not question.get("kill_at"):
        _count_points(points)
    results.check_folder(request.out)
    results.prepare_folder(request.out)
    done = execute(request, folder / "data", FakeWorker(log=folder / "calls.log"))
    published = results.publish_run(done)
    if question.get("report"):
        results.report([done], [published])
    made = [one.stage.name for one in done.stages if not one.reused]
    return {"status": 0, "made": made, "files": operations.counts, "points": points}


def _count_points(points: Counter[str]) -> None:
    """Let every module that has write points count them instead."""
    original = writepoints.write_point
    for module in list(sys.modules.values()):
        if getattr(module, "write_point", None) is original:
            module.write_point = lambda name: points.update([name])  # type: ignore[attr-defined]


def in_a_fork(question: dict[str, Any]) -> dict[str, Any]:
    """``run`` in a child process; its answer, or how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = json.dumps(run(question)).encode()
            with open(writer, "wb") as pipe:
                pipe.write(answer)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(said) if said else {"status": status}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(in_a_fork(json.loads(line))), flush=True)
