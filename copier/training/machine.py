"""What the machine has: memory, and the device that a Python's torch would train on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput
from copier.training.interpreter import Interpreter
from copier.training.process import quoted

PROBE_SECONDS = 180.0
"""torch alone takes 2 to 30 s to import, from a cold disk."""
_PROBE = """
import json, torch
kind, name, memory = "cpu", "", 0
if torch.cuda.is_available():
    kind, name = "cuda", torch.cuda.get_device_name(0)
    memory = torch.cuda.get_device_properties(0).total_memory
elif getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    kind = "mps"
elif hasattr(torch, "xpu") and torch.xpu.is_available():
    kind = "xpu"
print(json.dumps([kind, name, memory]))
"""


@dataclass(frozen=True)
class Device:
    """``kind`` is cuda (ROCm too), mps, xpu or cpu; ``memory`` in bytes, 0 where it is not known.

    ``chosen``: the user wants it so, whatever else there is.
    """

    kind: str
    name: str = ""
    memory: int = 0
    chosen: bool = False


def device_of(interpreter: Interpreter) -> Device:
    """The device that its torch trains on; asks torch itself only where its version does not tell.

    Raises:
        BadInput: as ``find_device``.
    """
    if interpreter.cuda:
        return Device("cuda")
    if interpreter.torch.endswith("+cpu"):
        return Device("cpu")
    return find_device(interpreter.path)


def find_device(python: str) -> Device:
    """The device that the torch of that Python trains on; takes seconds.

    Raises:
        BadInput: it cannot be started, or has no torch that can be imported.
    """
    try:
        done = subprocess.run(
            [python, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(
            f"{python!r} cannot be run ({error}): check the path of the Python interpreter"
        ) from error
    with contextlib.suppress(ValueError, IndexError):
        kind, name, memory = json.loads(done.stdout.splitlines()[-1])
        return Device(kind, name, memory)
    raise BadInput(
        f"{python!r} has no torch that works: install it there{quoted(done.stderr.splitlines()[-3:])}"
    )


def free_memory() -> int | None:
    """Bytes that a new process can take, with the swap, within a container's limit; None: it is not known."""
    if sys.platform == "win32":
        return _windows_memory()
    with contextlib.suppress(OSError, ValueError):
        table = _table(Path("/proc/meminfo"))
        free = 1024 * (table["MemAvailable:"] + table.get("SwapFree:", 0))
        return min(free, _left_in_container(free))
    return None


def _left_in_container(otherwise: int) -> int:
    """What the limit of a version 2 control group leaves; its cache of files counts as free."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no such group, or the limit is "max"
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return limit - used + _table(group / "memory.stat").get("inactive_file", 0)
    return otherwise


def _table(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def _windows_memory() -> int | None:
    if sys.platform != "win32":
        return None
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("free", ctypes.c_uint64),
            ("total_commit", ctypes.c_uint64),
            ("free_commit", ctypes.c_uint64),
            ("total_virtual", ctypes.c_uint64),
            ("free_virtual", ctypes.c_uint64),
            ("free_extended", ctypes.c_uint64),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.free_commit)
