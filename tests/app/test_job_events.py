"""The recorder and the view: what is kept of many events, at which pace, and in how much room."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from copier.app.job_events import (
    MOST_LOSSES,
    MOST_MESSAGES,
    MOST_SAMPLES,
    PROGRESS_SECONDS,
    EventLog,
    Recorder,
    read_events,
)
from copier.app.job_files import EVENTS
from copier.app.job_values import Job, JobState
from copier.app.job_view import LATEST_LINES, MOST_POINTS, ViewBuilder
from copier.progress import Phase, ProgressEvent


class Clock:
    """A clock that someone else winds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(tmp_path: Path, clock: Clock) -> Recorder:
    return Recorder(tmp_path, EventLog(tmp_path), clock=clock)


def events(folder: Path) -> list[dict]:
    return list(read_events(folder, 0, 10**6).events)


def job(folder: Path, state: JobState = JobState.RUNNING) -> Job:
    return Job("0001-abcd", "toy", "toy", state, {}, folder, 0.0, started=0.0)


def view_of(folder: Path, state: JobState = JobState.RUNNING):
    builder = ViewBuilder()
    for event in events(folder):
        builder.feed(event)
    return builder.view(job(folder, state))


def train(recorder: Recorder, clock: Clock, steps: int, seconds: float) -> None:
    recorder(ProgressEvent("lora", phase=Phase.STARTED, message="runs: not made before"))
    for step in range(1, steps + 1):
        clock.now += seconds
        recorder(ProgressEvent("lora", step, steps, loss=1 / step, rate=seconds))
    recorder(ProgressEvent("lora", phase=Phase.DONE))


def test_every_loss_of_a_slow_training_is_kept_and_progress_comes_at_most_twice_a_second(
    tmp_path: Path, recorder: Recorder, clock: Clock
) -> None:
    train(recorder, clock, 100, 0.1)
    progress = [event for event in events(tmp_path) if event["type"] == "progress"]
    assert len(progress) == pytest.approx(100 * 0.1 / PROGRESS_SECONDS, abs=2)
    losses = [tuple(point) for event in progress for point in event["losses"]]
    assert losses == [(step, pytest.approx(1 / step, rel=1e-5)) for step in range(1, 101)]
    assert progress[-1]["step"] == 100
    assert progress[0]["left"] == pytest.approx(0.1 * (100 - progress[0]["step"]))


def test_the_file_and_the_memory_of_many_fast_steps_stay_small(
    tmp_path: Path, recorder: Recorder, clock: Clock
) -> None:
    train(recorder, clock, 500, 0.0005)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    train(recorder, clock, 20_000, 0.0005)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 100_000
    progress = [event for event in events(tmp_path) if event["type"] == "progress"]
    assert len(progress) <= 2 + 20_500 * 0.0005 / PROGRESS_SECONDS + 2
    assert max(len(event["losses"]) for event in progress) <= MOST_LOSSES
    assert (tmp_path / EVENTS).stat().st_size < 100_000


def test_the_view_of_a_long_training_is_a_curve_from_its_first_step_to_its_last(
    tmp_path: Path, recorder: Recorder, clock: Clock
) -> None:
    train(recorder, clock, 5_000, 0.1)
    view = view_of(tmp_path)
    (stage,) = view.stages
    assert (stage.state, stage.step, stage.steps) == ("done", 5_000, 5_000)
    assert MOST_POINTS / 2 <= len(stage.losses) <= MOST_POINTS
    assert stage.losses[0] == (1, 1.0)
    assert stage.losses[-1][0] > 4_900
    assert stage.loss == pytest.approx(1 / 5_000)
    assert list(stage.losses) == sorted(stage.losses)


def test_stages_are_planned_then_run_or_reused_with_their_reason_and_rounds_are_told_apart(
    tmp_path: Path, recorder: Recorder
) -> None:
    for _ in range(2):
        for name in ("a", "lora"):
            recorder(ProgressEvent(name, phase=Phase.PLANNED))
        recorder(ProgressEvent("a", phase=Phase.REUSED, message="reused: same files"))
        recorder(ProgressEvent("a", phase=Phase.DONE))
        recorder(ProgressEvent("lora", phase=Phase.STARTED, message="runs: changed: seed 1 -> 2"))
    view = view_of(tmp_path)
    assert [(one.name, one.round, one.state, one.reason) for one in view.stages] == [
        ("a", 1, "reused", "same files"),
        ("lora", 1, "running", "changed: seed 1 -> 2"),
        ("a", 2, "reused", "same files"),
        ("lora", 2, "running", "changed: seed 1 -> 2"),
    ]
    ended = view_of(tmp_path, JobState.FAILED)
    assert [one.state for one in ended.stages] == ["reused", "failed", "reused", "failed"]
    assert view_of(tmp_path, JobState.INTERRUPTED).stages[-1].state == "stopped"


def test_work_without_a_plan_has_a_stage_too(tmp_path: Path, recorder: Recorder) -> None:
    recorder(ProgressEvent("merge", 3, 10))
    recorder(ProgressEvent("check", message="importing"))
    recorder.close()
    view = view_of(tmp_path)
    assert [(one.name, one.state, one.step) for one in view.stages] == [
        ("merge", "running", 3), ("check", "running", 0)]  # fmt: skip
    assert view.log == ("check: importing",)
    assert view.current == view.stages[0]


def test_samples_of_a_training_are_copied_and_those_of_a_finished_stage_are_not(
    tmp_path: Path, recorder: Recorder
) -> None:
    for place in ("work", "store/+0.500", "store/+0.000"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.png").write_bytes(b"picture")
    recorder(ProgressEvent("lora", pictures=(str(tmp_path / "work" / "x.png"),)))
    stored = tuple(str(tmp_path / "store" / weight / "x.png") for weight in ("+0.500", "+0.000"))
    recorder(ProgressEvent("strip", phase=Phase.DONE, pictures=stored))
    (tmp_path / "work" / "x.png").unlink()
    recorder(ProgressEvent("lora", pictures=(str(tmp_path / "work" / "x.png"),)))
    (first, *others) = view_of(tmp_path).samples
    assert first[0] == "lora 1"
    assert first[1].read_bytes() == b"picture"
    assert first[1].is_relative_to(tmp_path / "samples")
    assert [label for label, _ in others] == ["strip +0.5", "strip", "lora 4"]
    assert [str(path) for _, path in others][:2] == list(stored)
    for _ in range(MOST_SAMPLES + 5):
        recorder(ProgressEvent("strip", phase=Phase.DONE, pictures=stored[:1]))
    assert sum(event["type"] == "sample" for event in events(tmp_path)) == MOST_SAMPLES


def test_a_child_that_says_too_much_is_not_listened_to_for_ever(tmp_path: Path, recorder: Recorder) -> None:
    for number in range(MOST_MESSAGES + 50):
        recorder(ProgressEvent("lora", message=str(number)))
    said = [event["message"] for event in events(tmp_path) if event["type"] == "log"]
    assert len(said) == MOST_MESSAGES + 1
    assert "the rest is left out" in said[-1]
    assert len(view_of(tmp_path).log) == LATEST_LINES


def test_events_are_read_on_from_a_cursor_and_half_a_line_waits(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(5):
        log.append("log", stage="x", message=str(number))
    first = read_events(tmp_path, 0, 2)
    assert [event["message"] for event in first.events] == ["0", "1"]
    rest = read_events(tmp_path, first.cursor, 100)
    assert [event["message"] for event in rest.events] == ["2", "3", "4"]
    assert read_events(tmp_path, rest.cursor, 100) == type(rest)((), rest.cursor)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"type": "log", "sta')  # as a process leaves it that is killed
    assert read_events(tmp_path, rest.cursor, 100).cursor == rest.cursor
    EventLog(tmp_path).append("log", stage="x", message="after")
    after = read_events(tmp_path, rest.cursor, 100)
    assert [event["message"] for event in after.events] == ["after"]
    assert after.cursor == (tmp_path / EVENTS).stat().st_size
    assert read_events(tmp_path / "nowhere", 7, 5).cursor == 7


def test_numbers_that_json_lacks_are_left_out(tmp_path: Path, recorder: Recorder) -> None:
    recorder(ProgressEvent("lora", 1, 2, loss=float("nan")))
    recorder(ProgressEvent("lora", 2, 2, loss=float("inf")))
    assert [event["losses"] for event in events(tmp_path)] == [[[1, None]], [[2, None]]]
    json.dumps(events(tmp_path), allow_nan=False)
    assert view_of(tmp_path).stages[0].losses == ()


def test_a_disk_that_takes_no_event_costs_the_event_alone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    Recorder(gone, EventLog(gone))(ProgressEvent("lora", message="into nothing"))
    assert not gone.exists()
