"""Whole entries or none: damage, leftovers, races, pruning."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_fake import digests

from copier.pipeline import store as store_module
from copier.pipeline.store import RECORD, Entry, StageStore

KEY = "ab" * 32


def commit(store: StageStore, key: str = KEY, text: str = "content", name: str = "stage") -> Entry:
    """An entry with two files, one of them in a folder."""
    folder = store.begin(key)
    (folder / "file.txt").write_text(text)
    (folder / "inner").mkdir()
    (folder / "inner" / "deep.txt").write_text("deep")
    return store.commit(
        folder, key=key, kind="train", name=name, ingredients={"n": 1}, outcome={"x": 2.5}, seconds=1.0
    )


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def test_what_was_committed_is_found_again_whole(store):
    made = commit(store)
    found = StageStore(store.root).find(KEY)
    assert found == made
    assert found.record.outcome == {"x": 2.5}
    assert set(found.record.files) == {"file.txt", "inner/deep.txt"}
    assert found.path("file.txt").read_text() == "content"
    assert found.size == sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
    assert [path.name for path in store.root.iterdir()] == [KEY]
    assert store.find("cd" * 32) is None


DAMAGE = {
    "a changed file": lambda folder: (folder / "file.txt").write_text("Content"),
    "a truncated file": lambda folder: (folder / "file.txt").write_text("con"),
    "a missing file": lambda folder: (folder / "inner" / "deep.txt").unlink(),
    "an added file": lambda folder: (folder / "inner" / "more.txt").write_text("more"),
    "no record": lambda folder: (folder / RECORD).unlink(),
    "an empty record": lambda folder: (folder / RECORD).write_bytes(b""),
    "a truncated record": lambda folder: os.truncate(folder / RECORD, 60),
    "a record that is no text": lambda folder: (folder / RECORD).write_bytes(b"\xff\xfe\x00"),
    "a record of another shape": lambda folder: (folder / RECORD).write_text("[1, 2]"),
    "a record with wrong types": lambda folder: _rewrite(folder, files=["file.txt"]),
    "a record of another key": lambda folder: _rewrite(folder, key="cd" * 32),
    "a record with an unknown field": lambda folder: _rewrite(folder, more=1),
}


def _rewrite(folder: Path, **changes: object) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_a_miss_and_is_replaced_when_made_anew(store, damage):
    entry = commit(store)
    damage(entry.folder)
    before = digests(store.root)
    assert store.find(KEY) is None
    assert digests(store.root) == before
    assert commit(store, text="again").path("file.txt").read_text() == "again"
    assert store.find(KEY) is not None
    assert [path.name for path in store.root.iterdir()] == [KEY]


def test_the_first_of_two_runs_that_make_one_key_wins_and_both_get_it(store):
    other = StageStore(store.root)
    slow = store.begin(KEY)
    (slow / "file.txt").write_text("slow")
    fast = commit(other, text="fast")
    got = store.commit(slow, key=KEY, kind="train", name="stage", ingredients={}, outcome={}, seconds=1.0)
    assert got.folder == fast.folder
    assert got.path("file.txt").read_text() == "fast"
    assert [path.name for path in store.root.iterdir()] == [KEY]


def _race(root: str, gate: object, number: int) -> None:
    store = StageStore(Path(root))
    for round_ in range(20):
        gate.wait()  # type: ignore[attr-defined]
        entry = commit(store, key=f"{round_:064x}", text=f"{number}")
        assert store.find(entry.record.key) is not None


def test_processes_that_race_for_the_same_keys_leave_whole_entries_and_nothing_else(store):
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    racers = [context.Process(target=_race, args=(str(store.root), gate, n)) for n in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert sorted(path.name for path in store.root.iterdir()) == [f"{n:064x}" for n in range(20)]
    assert all(store.find(f"{n:064x}") for n in range(20))


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_are_not(store):
    code = (
        "import sys, time; from pathlib import Path; from copier.pipeline.store import StageStore\n"
        "folder = StageStore(Path(sys.argv[1])).begin(sys.argv[2]); (folder / 'half').write_text('x')\n"
        "print(folder.name, flush=True); time.sleep(600)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), KEY],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as child:
        name = child.stdout.readline().strip()
        own = store.begin(KEY)
        assert StageStore(store.root).remove_leftovers() == 0
        assert store.remove_leftovers() == 0
        assert (store.root / name / "half").exists()
        assert own.is_dir()
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert store.remove_leftovers() == 1
    assert [path.name for path in store.root.iterdir()] == [own.name]
    store.discard(own)
    store.discard(own)
    assert list(store.root.iterdir()) == []


def test_beginning_a_stage_sweeps_what_a_killed_run_of_it_left(store):
    dead = store.root / f".tmp-{KEY}-0123abcd"
    other = store.root / ".tmp-other-0123abcd"
    for folder in (dead, other):
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    begun = store.begin(KEY)
    assert sorted(store.root.iterdir()) == sorted([begun, other])


def test_where_folders_cannot_be_locked_only_old_leftovers_are_swept(store, monkeypatch):
    def no_locks(folder: Path) -> int:
        raise OSError("no locks here")

    monkeypatch.setattr(store_module, "_lock", no_locks)
    young, old = store.begin("young"), store.begin("old")
    os.utime(old, (1e9, 1e9))
    assert store.remove_leftovers() == 1
    assert list(store.root.iterdir()) == [young]
    assert commit(store).record.key == KEY


def test_entries_are_listed_newest_first_without_the_damaged_and_the_running(store, monkeypatch):
    assert store.entries() == []
    for time, key in ((10.0, "one"), (30.0, "three"), (20.0, "two"), (40.0, "broken")):
        monkeypatch.setattr(store_module.time, "time", lambda time=time: time)
        commit(store, key=key)
    (store.root / "broken" / RECORD).write_text("{")
    running = store.begin("running")
    (running / RECORD).write_text((store.root / "one" / RECORD).read_text())
    (store.root / "stray").write_text("a file")
    assert [entry.record.key for entry in store.entries()] == ["three", "two", "one"]


def test_a_removed_entry_is_gone_in_one_step(store, monkeypatch):
    keep, gone = commit(store, key="keep"), commit(store, key="gone")
    monkeypatch.setattr(store_module.shutil, "rmtree", lambda *args, **kwargs: None)
    store.remove(gone)
    # As if killed before the files were deleted: no half entry, and the rest is swept later.
    assert [entry.record.key for entry in store.entries()] == ["keep"]
    assert not gone.folder.exists()
    monkeypatch.undo()
    assert store.remove_leftovers() == 1
    assert list(store.root.iterdir()) == [keep.folder]


def test_a_folder_that_cannot_be_renamed_is_an_error_and_no_entry(store, monkeypatch):
    def refuse(*args: object) -> None:
        raise PermissionError("not allowed")

    folder = store.begin(KEY)
    monkeypatch.setattr(store_module.os, "rename", refuse)
    with pytest.raises(PermissionError):
        store.commit(folder, key=KEY, kind="k", name="n", ingredients={}, outcome={}, seconds=0.0)
    assert store.find(KEY) is None
