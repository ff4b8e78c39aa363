"""The store of finished stages, for the person who wants to see it or get room back."""

from __future__ import annotations

import time
from dataclasses import dataclass

from copier.app.settings import Settings
from copier.errors import BadInput
from copier.pipeline.store import Entry, StageStore

_DAY = 86_400.0


@dataclass(frozen=True)
class CachedStage:
    """A finished stage: its key, what it is, bytes on disk, when it was made (seconds since 1970)."""

    key: str
    kind: str
    name: str
    size: int
    created: float
    seconds: float


def cached_stages(settings: Settings) -> tuple[CachedStage, ...]:
    """All finished stages, the newest first."""
    return tuple(map(_described, StageStore(settings.stages).entries()))


def prune(settings: Settings, *, keep_days: float) -> tuple[CachedStage, ...]:
    """Delete the stages older than ``keep_days``, and leftovers of killed runs; what was deleted.

    Several may prune at once.

    Raises:
        BadInput: ``keep_days`` is negative, or a run is at work: it may need any stage, also an old one.
    """
    if not keep_days >= 0:
        raise BadInput(f"the number of days to keep is {keep_days:g}: it must be 0 or more")
    store = StageStore(settings.stages)
    if store.in_use():
        raise BadInput(
            f"a run is making a stage in {settings.stages} and may need those that are there: prune when "
            "it has ended"
        )
    limit = time.time() - keep_days * _DAY
    removed = []
    for entry in store.entries():
        stage = _described(entry)
        if stage.created <= limit and store.remove(entry):
            removed.append(stage)
    store.remove_leftovers()
    return tuple(removed)


def _described(entry: Entry) -> CachedStage:
    record = entry.record
    return CachedStage(
        key=record.key,
        kind=record.kind,
        name=record.name,
        size=entry.size,
        created=record.created,
        seconds=record.seconds,
    )
