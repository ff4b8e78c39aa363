"""SIGKILL at every write point and three times inside each kind of stage, then the same run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeline_fake import digests, every_kind_there_is, make_plan, make_request

from copier.pipeline.plan import VERSIONS
from copier.pipeline.store import StageStore
from copier.writepoints import WRITE_POINTS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")

HERE = Path(__file__).parent
KILLED = -9
Ask = Callable[..., dict[str, Any]]

# Written anew by every run, with the time in it.
CHANGING = ("report.json", "report.html")


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Asks ``kill_run.py``, one process that forks a child for every run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    environment.pop("COPIER_KILL_AT", None)
    with subprocess.Popen(
        [sys.executable, str(HERE / "kill_run.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:

        def asked(folder: Path, **question: Any) -> dict[str, Any]:
            server.stdin.write(json.dumps({"folder": str(folder), **question}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield asked
        server.stdin.close()


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed: its answer, what it published, and the keys it stored."""

    answer: dict[str, Any]
    published: dict[str, str]
    keys: frozenset[str]


@pytest.fixture(scope="module")
def undisturbed(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    answer = ask(folder, report=True)
    assert answer["status"] == 0
    assert set(answer["points"]) == set(WRITE_POINTS), "every write point is passed"
    assert set(answer["files"]) == set(VERSIONS), "every kind of stage occurs"
    keys = {path.name for path in (folder / "data" / "stages").iterdir()}
    return Undisturbed(answer, published(folder), frozenset(keys))


def published(folder: Path) -> dict[str, str]:
    """The digests of what was published, but for what bears the time."""
    return {name: digest for name, digest in digests(folder / "out").items() if name not in CHANGING}


def strays(folder: Path) -> list[str]:
    """Temporary files and folders anywhere."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


def completed(folder: Path) -> set[str]:
    """Names of the stages that are whole in the store."""
    store = StageStore(folder / "data" / "stages")
    return {entry.record.name for entry in store.entries() if store.find(entry.record.key)}


def resumes(ask: Ask, folder: Path, undisturbed: Undisturbed, *, report: bool) -> None:
    """The same run again finishes, makes what was missing and nothing else, and cleans up."""
    whole = completed(folder)
    log = folder / "calls.log"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    answer = ask(folder, report=report)
    assert answer["status"] == 0
    planned = make_plan(make_request(folder, recipe=every_kind_there_is())).stages
    everything = [stage.name for stage in planned]
    assert answer["made"] == [name for name in everything if name not in whole]
    called = log.read_text().splitlines()[before:]
    assert not {call.split()[1] for call in called} & whole
    expected = dict(undisturbed.published)
    if not report:
        del expected["sheet.png"]
    assert published(folder) == expected
    assert {path.name for path in (folder / "data" / "stages").iterdir()} == undisturbed.keys
    assert strays(folder) == []


def occurrences(count: int) -> list[int]:
    """The first, the middle and the last of so many."""
    return sorted({1, (count + 1) // 2, count})


@pytest.mark.parametrize("name", WRITE_POINTS)
def test_a_run_killed_at_a_write_point_resumes(name, ask, undisturbed, tmp_path):
    for number in occurrences(undisturbed.answer["points"][name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        report = name.startswith("report")
        assert ask(folder, kill_at=f"{name}:{number}", report=report)["status"] == KILLED
        resumes(ask, folder, undisturbed, report=report)
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", sorted(VERSIONS))
def test_a_run_killed_inside_a_stage_loses_that_stage_alone(kind, ask, undisturbed, tmp_path):
    count = undisturbed.answer["files"][kind]
    numbers = occurrences(count)
    assert len(numbers) == min(3, count) and count > 1
    planned = make_plan(make_request(tmp_path, recipe=every_kind_there_is())).stages
    last = [stage.name for stage in planned if stage.kind == kind][-1]
    everything = [stage.name for stage in planned]
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        assert ask(folder, kill_in=[kind, number])["status"] == KILLED
        assert completed(folder) == set(everything[: everything.index(last)])
        assert strays(folder) != []
        resumes(ask, folder, undisturbed, report=False)
        shutil.rmtree(folder)


def test_a_run_killed_again_and_again_still_ends_with_the_same_outcome(ask, undisturbed, tmp_path):
    kills = ("store-begin:2", "lora-write", "store-record:2", "store-rename:3", "store-done", "out-rename:2")
    for kill in kills:
        assert ask(tmp_path, kill_at=kill)["status"] == KILLED
    resumes(ask, tmp_path, undisturbed, report=False)
    assert ask(tmp_path, report=True)["made"] == []
