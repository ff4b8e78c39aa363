from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from copier.training.process import KEPT_LINES, Child, StopTimes, describe_exit

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
