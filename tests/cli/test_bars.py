"""Progress on standard error: a bar in a terminal, few lines elsewhere."""

from __future__ import annotations

import io

from copier.cli.bars import PLAIN_SECONDS, Progress, duration
from copier.progress import ProgressEvent


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_terminal_shows_stage_bar_step_loss_and_time_left() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    progress(ProgressEvent("copier", 0, 300))
    clock.now += 30
    progress(ProgressEvent("copier", 150, 300, loss=0.03125, rate=0.5))
    shown = stream.getvalue().split("\r")[-1]
    assert shown.startswith("copier ")
    for word in ("████████████░░░░░░░░░░░░", "150/300", "loss 0.0312", "1:15 left"):
        assert word in shown
    assert "\n" not in shown


def test_time_left_is_estimated_where_the_stage_gives_no_rate() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    progress(ProgressEvent("draw", 0, 4))
    clock.now += 20
    progress(ProgressEvent("draw", 1, 4))
    assert "1:00 left" in stream.getvalue()


def test_the_next_stage_ends_the_bar_with_what_it_took() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    progress(ProgressEvent("copier", 1, 2, loss=0.5))
    clock.now += 65
    progress(ProgressEvent("copier", 2, 2, loss=0.25))
    progress(ProgressEvent("gate", message="runs: not made before"))
    lines = [line.split("\r")[-1] for line in stream.getvalue().rstrip("\n").split("\n")]
    assert [" ".join(line.split()) for line in lines] == [
        "copier done in 1:05, last loss 0.2500",
        "gate runs: not made before",
    ]


def test_a_message_stands_above_the_bar_and_leaves_nothing_of_it() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    progress(ProgressEvent("copier", 1, 2))
    clock.now += 1
    progress(ProgressEvent("copier", 1, 2))
    progress.line("note: something")
    *_, erased, line = stream.getvalue().split("\r")
    assert line == "note: something\n"
    assert erased.strip() == "" and len(erased) > 20


def test_without_a_terminal_lines_are_few_and_have_no_control_characters() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    for step in range(1, 1001):
        clock.now += 0.1
        progress(ProgressEvent("copier", step, 1000, loss=1 / step, rate=0.1))
    progress.finish()
    text = stream.getvalue()
    assert "\r" not in text
    assert 100 / PLAIN_SECONDS - 2 < len(text.splitlines()) <= 100 / PLAIN_SECONDS + 1
    assert "done in 1:40" in text.splitlines()[-1]


def test_a_stage_that_ended_early_says_so() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock=clock)
    progress(ProgressEvent("copier", 3, 10))
    progress.finish()
    progress.finish()
    assert stream.getvalue().count("\n") == 1
    assert "ended at step 3 of 10" in stream.getvalue()


def test_a_terminal_of_ascii_gets_ascii() -> None:
    class Ascii(Terminal):
        encoding = "ascii"  # type: ignore[assignment]

    stream, clock = Ascii(), Clock()
    progress = Progress(stream, clock=clock)
    clock.now += 1
    progress(ProgressEvent("copier", 0, 2))
    clock.now += 1
    progress(ProgressEvent("copier", 1, 2))
    assert "############............" in stream.getvalue()
    stream.getvalue().encode("ascii")


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.44, 42.4, 187, 3723)] == ["0.4 s", "42 s", "3:07", "1:02:03"]
