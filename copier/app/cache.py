"""The store of finished stages, for the person who wants to see it or get room back."""

from __future__ import annotations

import time
from dataclasses import dataclass

from copier.app.settings import Settings
from copier.errors import BadInput
from copier.pipeline.store import StageStore

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
    return tuple(
        CachedStage(
            key=entry.record.key,
            kind=entry.record.kind,
            name=entry.record.name,
            size=entry.size,
            created=entry.record.created,
            seconds=entry.record.seconds,
        )
        for entry in StageStore(settings.stages).entries()
    )


def prune(settings: Settings, *, keep_days: float) -> tuple[CachedStage, ...]:
    """Delete the stages older than ``keep_days``, and leftovers of killed runs; what was deleted.

    Raises:
        BadInput: ``keep_days`` is negative.
    """
    if not keep_days >= 0:
        raise BadInput(f"the number of days to keep is {keep_days:g}: it must be 0 or more")
    store = StageStore(settings.stages)
    limit = time.time() - keep_days * _DAY
    old = [one for one in cached_stages(settings) if one.created <= limit]
    keys = {one.key for one in old}
    for entry in store.entries():
        if entry.record.key in keys:
            store.remove(entry)
    store.remove_leftovers()
    return tuple(old)
