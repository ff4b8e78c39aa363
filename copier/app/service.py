"""The program's services, for every front end: run, preview, generate, measure."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from copier.app.settings import Settings
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import read_header
from copier.digest import DigestMemory
from copier.errors import BadInput, BadPicture
from copier.evaluation.report import ReportFiles
from copier.images.effects import effect_parameters
from copier.images.pairs import check_pair, check_size, read_picture
from copier.pipeline import results
from copier.pipeline.plan import Plan, plan
from copier.pipeline.runner import FinishedRun, StageState, run, states
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ignore
from copier.recipe import Trainer, with_control
from copier.request import Edit, PictureFile, RunRequest
from copier.training.client import BuiltinWorker

log = logging.getLogger(__name__)

_ROOM = 256 * 1024 * 1024
"""Bytes that a run needs on the data directory's and the output folder's disks, besides the LoRAs."""


@dataclass(frozen=True)
class Outcome:
    """Finished runs, the files of each by stage name, and the report (None without evaluation)."""

    runs: tuple[FinishedRun, ...]
    files: tuple[dict[str, Path], ...]
    report: ReportFiles | None

    @property
    def result(self) -> Path:
        """The first run's LoRA."""
        return self.files[0][self.runs[0].request.recipe.result]


def check(request: RunRequest) -> None:
    """Refuse bad input before anything is written or trained.

    Raises:
        BadCheckpoint, BadPicture, BadInput: the checkpoint, the pictures or the recipe cannot be
            used; the message names the value, the limit and the remedy.
    """
    _check_checkpoint(request)
    if request.recipe.trainer is not Trainer.BUILTIN:
        raise BadInput(
            f"the recipe {request.recipe.name!r} trains with sd-scripts, which this version cannot "
            "run yet: use a *-pocket recipe, or add --set trainer=builtin"
        )
    pictures = {}
    for side, source in (("A", request.a), ("B", request.b)):
        if isinstance(source, PictureFile):
            pictures[side] = read_picture(source.path)
            check_size(pictures[side], source.path.name)
    if len(pictures) == 2:
        check_pair(pictures["A"], pictures["B"])
        if pictures["A"].tobytes() == pictures["B"].tobytes():
            raise BadPicture("A and B are identical: there is nothing to learn; edit B")
    if isinstance(request.b, Edit):
        effect_parameters(request.b.name, request.b.parameters)


def preview(request: RunRequest, settings: Settings) -> tuple[StageState, ...]:
    """The stages of ``request`` with keys and reasons; nothing is run or written.

    Raises:
        BadInput and its kin: as ``check``.
    """
    check(request)
    planned = _plan(request, settings)
    return states(planned, StageStore(settings.stages))


def execute(
    requests: Sequence[RunRequest],
    settings: Settings,
    *,
    control: bool = False,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> Outcome:
    """Run one or several requests that share the original; publish their files and one report.

    ``control`` adds the plain LoRA on B to every request, for comparison.

    Raises:
        BadInput and its kin: as ``check``, before anything is trained.
        TrainingFailed, Cancelled: finished stages stay in the store.
    """
    cancel = cancel or CancelToken()
    wanted = [
        replace(request, recipe=with_control(request.recipe)) if control else request
        for request in requests
    ]
    for request in wanted:
        check(request)
    for folder in {request.out for request in wanted}:
        results.check_folder(folder)
        check_room(folder)
    settings.data.mkdir(parents=True, exist_ok=True)
    check_room(settings.data)
    store = StageStore(settings.stages)
    store.remove_leftovers()
    finished, files = [], []
    with _worker(wanted[0], settings) as worker:
        for request in wanted:
            done = run(request, _plan(request, settings), store, worker, observer, cancel)
            finished.append(done)
            files.append(results.publish_run(done))
    written = None
    if all(any(stage.kind == "evaluate" for stage in one.plan.stages) for one in finished):
        written = results.report(finished, files)
    return Outcome(tuple(finished), tuple(files), written)


def check_room(folder: Path) -> None:
    """Raise ``BadInput`` where the folder's disk is nearly full."""
    free = shutil.disk_usage(folder).free
    if free < _ROOM:
        raise BadInput(
            f"the disk of {folder} has {free >> 20} MB free, a run needs {_ROOM >> 20} MB: free some "
            "room, or choose another folder"
        )


def _plan(request: RunRequest, settings: Settings) -> Plan:
    return plan(request, DigestMemory(settings.digests).digest)


def _check_checkpoint(request: RunRequest) -> None:
    path = request.checkpoint
    if not path.is_file():
        raise BadInput(f"there is no checkpoint {path}: give the path of a .safetensors file")
    identity = detect(read_header(path))
    if identity.kind is not Kind.CHECKPOINT:
        raise BadInput(f"{path.name} is not a checkpoint but {identity.kind.value}: give a checkpoint")
    if identity.family is not Family.SD1:
        raise BadInput(
            f"{path.name} is a checkpoint of the family {identity.family.value}: the builtin trainer "
            "knows SD 1.x; use an SD 1.x checkpoint"
        )


@contextlib.contextmanager
def _worker(request: RunRequest, settings: Settings) -> Iterator[object]:
    """Gives a function that starts the worker child at its first call; it is stopped at the end."""
    with contextlib.ExitStack() as stack:
        started: list[BuiltinWorker] = []

        def worker() -> BuiltinWorker:
            if not started:
                settings.logs.mkdir(parents=True, exist_ok=True)
                started.append(
                    stack.enter_context(
                        BuiltinWorker(
                            threads=request.threads,
                            device=request.device,
                            log_path=settings.logs / "worker.log",
                        )
                    )
                )
            return started[0]

        yield worker
