"""Runs a command and prints what it took as JSON: `python -m benchmarks.launch COMMAND...`.

A process of its own, because a child's peak memory begins with that of the process that started it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time


def main(command: list[str]) -> dict[str, object]:
    """Seconds, peak memory in the system's unit, exit code, and the last line that the command wrote."""
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_as_installed())
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    return {
        "wall": wall,
        "cpu": used.ru_utime + used.ru_stime,
        "rss": used.ru_maxrss,
        "code": process.returncode,
        "last_line": lines[-1] if lines else "",
    }


def _as_installed() -> dict[str, str]:
    """The environment, in which Python keeps what it has compiled, as it does for everybody."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])))
