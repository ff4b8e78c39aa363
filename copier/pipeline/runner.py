"""Runs a plan: restores what the store has, makes the rest, stage by stage."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from copier.pipeline import reasons, stages
from copier.pipeline.plan import Plan, PlannedStage
from copier.pipeline.store import Entry, StageStore
from copier.progress import CancelToken, Observer, ProgressEvent, guarded
from copier.request import RunRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageState:
    """Whether a planned stage is in the store, and why it is or is not."""

    stage: PlannedStage
    entry: Entry | None
    reason: str


@dataclass(frozen=True)
class FinishedStage:
    """A stage of a finished run: ``seconds`` is what it took now, 0 where it was restored."""

    stage: PlannedStage
    entry: Entry
    reused: bool
    reason: str
    seconds: float


@dataclass(frozen=True)
class FinishedRun:
    """All stages of a run, in their order."""

    request: RunRequest
    plan: Plan
    stages: tuple[FinishedStage, ...]

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The finished stages by name."""
        return MappingProxyType({one.stage.name: one.entry for one in self.stages})

    @property
    def seconds(self) -> float:
        """What the run took, restored stages not counted."""
        return sum(one.seconds for one in self.stages)


def states(plan: Plan, store: StageStore) -> tuple[StageState, ...]:
    """What a run of ``plan`` would restore and what it would make: the answer of ``--dry-run``."""
    earlier = store.entries()
    found = []
    for stage in plan.stages:
        entry = store.find(stage.key)
        reason = reasons.reused(stage) if entry else reasons.needed(stage, plan, earlier)
        found.append(StageState(stage, entry, reason))
    return tuple(found)


def run(
    request: RunRequest,
    plan: Plan,
    store: StageStore,
    worker: Callable[[], stages.Worker],
    observer: Observer,
    cancel: CancelToken,
) -> FinishedRun:
    """Make or restore every stage of ``plan``.

    ``worker`` gives the child that trains and draws; it is asked only where a stage needs it. Each
    stage is committed by itself: a crash loses at most the one that ran.

    Raises:
        CopierError: what a stage raised; earlier stages stay in the store.
        Cancelled: the token was set.
    """
    observer = guarded(observer)
    done: dict[str, Entry] = {}
    finished = []
    for state in states(plan, store):
        cancel.check()
        stage = state.stage
        if state.entry is not None:
            observer(ProgressEvent(stage=stage.name, message=state.reason))
            one = FinishedStage(stage, state.entry, True, state.reason, 0.0)
        else:
            observer(ProgressEvent(stage=stage.name, message=f"runs: {state.reason}"))
            started = time.monotonic()
            entry = _make(request, plan, stage, store, done, worker, observer, cancel)
            one = FinishedStage(stage, entry, False, state.reason, time.monotonic() - started)
        done[stage.name] = one.entry
        finished.append(one)
        if stage.name == "b":
            stages.check_the_pair(done)
    return FinishedRun(request, plan, tuple(finished))


def _make(
    request: RunRequest,
    plan: Plan,
    stage: PlannedStage,
    store: StageStore,
    done: Mapping[str, Entry],
    worker: Callable[[], stages.Worker],
    observer: Observer,
    cancel: CancelToken,
) -> Entry:
    folder = store.begin(stage.key)
    try:
        started = time.monotonic()
        context = stages.Context(request, plan, stage, folder, done, worker, observer, cancel)
        outcome = stages.KINDS[stage.kind](context)
        return store.commit(
            folder,
            key=stage.key,
            kind=stage.kind,
            name=stage.name,
            ingredients=stage.ingredients,
            outcome=outcome,
            seconds=time.monotonic() - started,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
