"""Run as a script by the Python that will train: says what that Python is, as one JSON object on one line.

The standard library only, and quick: versions are read from the packages' files, nothing is imported.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import Any

_VERSION = re.compile(r"^__version__(?:\s*:[^=]+)?\s*=\s*['\"]([^'\"]+)", re.MULTILINE)
_CUDA = re.compile(r"^cuda(?:\s*:[^=]+)?\s*=\s*['\"]([^'\"]+)", re.MULTILINE)


def described() -> dict[str, Any]:
    """What ``copier.training.interpreter.Interpreter`` holds, without the path."""
    torch = version_file("torch")
    cuda = found(_CUDA, torch)
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "implementation": sys.implementation.name,
        "platform": sysconfig.get_platform(),
        "torch": found(_VERSION, torch),
        "torchvision": found(_VERSION, version_file("torchvision")),
        "cuda": cuda if cuda and has_device() else "",
        "pip": bundled_pip() if importlib.util.find_spec("pip") is None else "pip",
    }


def version_file(package: str) -> str:
    """The text of the package's ``version.py``, which names its build too; "" where there is none."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "version.py"
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return ""


def found(pattern: re.Pattern[str], text: str) -> str:
    """What the pattern's group matches; "" where it does not."""
    match = pattern.search(text)
    return match[1] if match else ""


def has_device() -> bool:
    """Whether NVIDIA's driver finds a device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        return bool(driver.cuInit(0) == 0)
    except (OSError, AttributeError):
        return False


def bundled_pip() -> str:
    """The wheel of pip that comes with this Python, which runs without being installed; "" without one."""
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    spec = importlib.util.find_spec("ensurepip")
    if spec and spec.origin:
        folders.append(str(Path(spec.origin).parent / "_bundled"))
    wheels = [wheel for folder in folders if folder for wheel in sorted(Path(folder).glob("pip-*.whl"))]
    return str(wheels[-1]) if wheels else ""


if __name__ == "__main__":
    # The script's own folder is on the path, and its modules are not what find_spec should find.
    own = Path(__file__).resolve().parent
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != own]
    sys.stdout.write(json.dumps(described()) + "\n")
