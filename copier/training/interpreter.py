"""A Python interpreter that trains, and what has to be known of it before it does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput

_PROBE = Path(__file__).with_name("interpreter_probe.py")
_SECONDS = 60.0
"""A tenth of a second is usual; the first start from a slow disk, with a virus scanner, takes long."""


@dataclass(frozen=True)
class Interpreter:
    """A Python, and of its own environment what matters to the trainer.

    Attributes:
        path: the program.
        version: as in ``3.10.13``.
        platform: ``sysconfig.get_platform()``, as in ``linux-x86_64``.
        torch: version and build, as in ``2.1.2+cu121``; "" where it has none.
        torchvision: likewise, whether or not it can be imported.
        cuda: the CUDA version of torch, where there is a device too; else "".
        pip: ``pip`` where it is installed, else the path of a wheel of it; "" without either.
    """

    path: str
    version: str
    platform: str
    torch: str
    torchvision: str
    cuda: str
    pip: str

    @property
    def minor(self) -> str:
        """As in ``3.10``: what compiled packages depend on."""
        return ".".join(self.version.split(".")[:2])

    @property
    def tag(self) -> str:
        """What compiled packages are made for, as in ``cp310-linux-x86_64``."""
        return f"cp{self.minor.replace('.', '')}-{self.platform}"


def ask_interpreter(python: str | os.PathLike[str] = sys.executable) -> Interpreter:
    """What that Python is; it is started for it.

    Raises:
        BadInput: it cannot be started, or is no CPython.
    """
    remedy = "name the program of another Python (--python, or the environment variable COPIER_PYTHON)"
    # Absolute, because it is started in other folders too; its links stay: a venv's Python is one.
    path = os.path.abspath(shutil.which(python) or python)
    try:
        done = subprocess.run(
            [path, str(_PROBE)], capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL, check=True
        )
        said = json.loads(done.stdout.decode("utf-8", "replace").splitlines()[-1])
    except OSError as error:
        raise BadInput(f"the Python {path} cannot be started ({error.strerror}): {remedy}") from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"the Python {path} did not answer within {_SECONDS:g} s: {remedy}") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"]
        raise BadInput(f"the Python {path} does not work ({lines[-1]}): {remedy}") from error
    except (ValueError, IndexError) as error:
        raise BadInput(f"{path} is no Python: {remedy}") from error
    if said.pop("implementation") != "cpython":
        raise BadInput(f"the Python {path} is no CPython, and torch needs one: {remedy}")
    return Interpreter(path=path, **said)
