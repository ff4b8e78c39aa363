"""Pruning beside other processes: a second one that prunes, and a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from copier.app.cache import cached_stages, prune
from copier.app.settings import Settings
from copier.errors import BadInput
from copier.pipeline.store import Entry, StageStore


def put(store: StageStore, key: str) -> Entry:
    place = store.begin(key)
    (place / "file").write_bytes(bytes(10))
    return store.commit(place, key=key, kind="draw", name="x", ingredients={}, outcome={}, seconds=1.0)


def test_a_stage_that_another_process_deletes_meanwhile_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(tmp_path)
    store = StageStore(settings.stages)
    first, second = put(store, "a" * 64), put(store, "b" * 64)
    entries = store.entries()
    monkeypatch.setattr(StageStore, "entries", lambda self: entries)
    assert store.remove(first)
    assert first.size == 0 < second.size
    assert [one.key for one in prune(settings, keep_days=0)] == [second.record.key]
    assert not list(settings.stages.iterdir())
    assert prune(settings, keep_days=0) == ()


def test_while_a_run_makes_a_stage_nothing_is_deleted(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    store = StageStore(settings.stages)
    entry = put(store, "a" * 64)
    running = StageStore(settings.stages).begin("b" * 64)
    with pytest.raises(BadInput, match=r"a run is making a stage.*prune when it has ended"):
        prune(settings, keep_days=0)
    assert running.is_dir()
    assert [one.key for one in cached_stages(settings)] == [entry.record.key]


def test_the_leftover_of_a_killed_run_does_not_keep_anyone_from_pruning(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    put(StageStore(settings.stages), "a" * 64)
    leftover = settings.stages / f".tmp-{'b' * 64}-0123abcd"
    leftover.mkdir()
    assert len(prune(settings, keep_days=0)) == 1
    assert not leftover.exists()
