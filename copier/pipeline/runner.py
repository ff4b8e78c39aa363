"""Runs a plan: restores what the store has, makes the rest, stage by stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from copier.pipeline import reasons, stages
from copier.pipeline.context import Context, Train, Worker
from copier.pipeline.files import shown_pictures
from copier.pipeline.plan import Plan, PlannedStage
from copier.pipeline.store import Entry, StageStore
from copier.progress import CancelToken, Observer, Phase, ProgressEvent, guarded
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
    """What a run of ``plan`` would restore and what it would make: the answer of ``--dry-run``.

    Nothing is written.
    """
    earlier = store.entries()
    return tuple(_state(stage, plan, store, earlier) for stage in plan.stages)


def run(
    request: RunRequest,
    plan: Plan,
    store: StageStore,
    worker: Callable[[], Worker],
    trainer: Train,
    observer: Observer,
    cancel: CancelToken,
) -> FinishedRun:
    """Make or restore every stage of ``plan``.

    ``worker`` gives the child that draws; it is asked only where a stage needs it, and so is ``trainer``.
    Each stage is committed by itself: a crash loses at most the one that ran.

    Raises:
        CopierError: what a stage raised; earlier stages stay in the store.
        Cancelled: the token was set.
    """
    observer = guarded(observer)
    earlier = store.entries()
    done: dict[str, Entry] = {}
    finished = []
    for stage in plan.stages:
        observer(ProgressEvent(stage.name, phase=Phase.PLANNED))
    for stage in plan.stages:
        cancel.check()
        # Only now: a twin earlier in the plan, or another run, may just have made it.
        state = _state(stage, plan, store, earlier)
        reused = state.entry is not None
        observer(_begun(state))
        started = time.monotonic()
        entry = state.entry
        if entry is None:
            folder = store.begin(stage.key)
            context = Context(request, plan, stage, folder, done, worker, trainer, observer, cancel)
            entry = _make(context, store)
        seconds = 0.0 if reused else time.monotonic() - started
        shown = tuple(map(str, shown_pictures(entry)))
        observer(ProgressEvent(stage.name, phase=Phase.DONE, pictures=shown))
        finished.append(FinishedStage(stage, entry, reused, state.reason, seconds))
        done[stage.name] = entry
        if stage.name in plan.changed:
            stages.check_the_pairs(done, request.recipe, stage.name)
    return FinishedRun(request, plan, tuple(finished))


def _begun(state: StageState) -> ProgressEvent:
    if state.entry is not None:
        return ProgressEvent(state.stage.name, message=state.reason, phase=Phase.REUSED)
    return ProgressEvent(state.stage.name, message=f"runs: {state.reason}", phase=Phase.STARTED)


def _state(stage: PlannedStage, plan: Plan, store: StageStore, earlier: Sequence[Entry]) -> StageState:
    entry = store.find(stage.key)
    reason = reasons.reused(stage, plan) if entry else reasons.needed(stage, plan, earlier)
    return StageState(stage, entry, reason)


def _make(context: Context, store: StageStore) -> Entry:
    stage = context.stage
    try:
        started = time.monotonic()
        outcome = stages.KINDS[stage.kind](context)
        return store.commit(
            context.folder,
            key=stage.key,
            kind=stage.kind,
            name=stage.name,
            ingredients=stage.ingredients,
            outcome=outcome,
            seconds=time.monotonic() - started,
        )
    except BaseException:
        store.discard(context.folder)
        raise
