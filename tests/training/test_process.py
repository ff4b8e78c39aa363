from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from copier.training.process import KEPT_LINES, Child, StopTimes, available_cores, describe_exit

QUICK = StopTimes(interrupt=0.3, terminate=0.3, kill=5.0)
posix = pytest.mark.skipif(os.name == "nt", reason="process groups and signals")


def python(code: str, **options: object) -> Child:
    return Child([sys.executable, "-S", "-c", code], **options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether a process runs that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_lines_go_in_and_come_out_and_the_end_is_told() -> None:
    child = python("import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)")
    assert child.send("grün") and child.send("b")
    assert [child.read_line(10), child.read_line(10)] == ["GRÜN", "B"]
    with pytest.raises(TimeoutError):
        child.read_line(0.05)
    child.close_input()
    assert child.read_line(10) is None
    assert child.read_line(10) is None
    assert child.wait(10) and child.exit_code == 0
    assert not child.send("late")


def test_the_last_lines_of_errors_are_kept_and_all_go_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import sys\nfor i in range(300): print('line', i, file=sys.stderr)"
    child = python(code, log_path=log)
    assert child.wait(20)
    assert len(child.tail) == KEPT_LINES
    assert child.tail[-1] == "line 299"
    assert log.read_text().splitlines() == [f"line {i}" for i in range(300)]


def test_states_of_a_progress_bar_are_told_at_once_and_not_kept() -> None:
    seen: list[str] = []
    code = "import sys\nsys.stderr.write('start\\r\\n1%\\r2%\\r3%\\nlast')"
    child = python(code, on_error_line=seen.append)
    assert child.wait(20)
    assert seen == ["start", "1%", "2%", "3%", "last"]
    assert child.tail == ["start", "3%", "last"]


@posix
def test_a_child_that_ignores_signals_is_killed_with_all_that_it_started() -> None:
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(other.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    child = python(code)
    grandchild = int(child.read_line(20) or 0)
    assert alive(grandchild)
    child.stop(QUICK)
    assert child.exit_code == -signal.SIGKILL
    assert gone(grandchild)


@posix
def test_a_child_that_cleans_up_gets_the_time_for_it(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib\n"
        "def bye(*_):\n"
        f"    pathlib.Path({str(tmp_path / 'done')!r}).touch(); sys.exit(7)\n"
        "signal.signal(signal.SIGINT, bye)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = python(code)
    assert child.read_line(20) == "ready"
    child.stop(StopTimes(interrupt=20))
    assert child.exit_code == 7
    assert (tmp_path / "done").exists()
    child.stop(QUICK)


def test_a_program_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Child([str(tmp_path / "none")], log_path=tmp_path / "log")


def test_exits_are_described_by_code_or_signal() -> None:
    assert describe_exit(3) == "ended with exit code 3"
    assert describe_exit(-9) == "was ended by SIGKILL"
    assert describe_exit(None) == "stopped answering"


def test_both_streams_are_told_kept_and_logged_where_all_is_text_for_people(tmp_path: Path) -> None:
    seen: list[str] = []
    code = (
        "import sys, time\nprint('one', flush=True)\ntime.sleep(0.2)\n"
        "sys.stderr.write('50%\\r')\nsys.stderr.flush()\ntime.sleep(0.2)\n"
        "sys.stderr.write('two\\n')\nsys.stderr.flush()\ntime.sleep(0.2)\nprint('three')"
    )
    child = python(code, on_line=seen.append, log_path=tmp_path / "log")
    assert child.read_line(20) is None
    assert child.wait(20)
    assert seen == ["one", "50%", "two", "three"]
    assert child.tail == ["one", "two", "three"]
    assert (tmp_path / "log").read_text().splitlines() == ["one", "two", "three"]


def test_a_state_is_told_when_it_comes_and_not_when_the_next_one_ends_it() -> None:
    """As tqdm writes them: the return first. What is glued to a state is told with it."""
    seen: list[tuple[str, float]] = []
    code = (
        "import sys, time\n"
        "for text in ('\\r1%', '\\r2%', 'INFO x\\n', '\\r3%', '\\n'):\n"
        "    sys.stderr.write(text); sys.stderr.flush(); time.sleep(0.4)\n"
        "time.sleep(1)\n"
    )
    child = python(code, on_error_line=lambda text: seen.append((text, time.monotonic())))
    assert child.wait(20)
    ended = time.monotonic()
    assert [text for text, _ in seen] == ["1%", "2%", "2%INFO x", "3%"]
    assert child.tail == ["2%INFO x", "3%"]
    assert ended - seen[-1][1] > 1.2


def test_silence_is_counted_from_the_last_word() -> None:
    code = "import time\nfor _ in range(4):\n    print('x', flush=True)\n    time.sleep(0.25)\ntime.sleep(60)"
    child = python(code, on_line=lambda _: None)
    try:
        silences = []
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            silences.append(child.silent_seconds)
            time.sleep(0.02)
        assert silences[-1] > 1.0
        assert sum(after < before for before, after in itertools.pairwise(silences)) >= 3
    finally:
        child.stop(QUICK)


@posix
def test_a_signal_without_time_is_left_out() -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    child = python(code)
    assert child.read_line(20) == "ready"
    child.stop(StopTimes(interrupt=0, terminate=5))
    assert child.exit_code == -signal.SIGTERM
    assert child.read_line(5) is None


@posix
def test_what_a_child_left_behind_ends_when_it_is_stopped_although_it_ended_itself() -> None:
    code = (
        "import subprocess, sys\n"
        "other = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(other.pid, flush=True)"
    )
    child = python(code)
    other = int(child.read_line(20) or 0)
    assert child.wait(20) and child.exit_code == 0
    assert alive(other)
    child.stop(QUICK)
    assert gone(other)


def test_the_number_of_threads_that_the_environment_asks_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert available_cores() == 7
    for nothing in ("", "0", "all"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert 1 <= available_cores() <= (os.cpu_count() or 1)
