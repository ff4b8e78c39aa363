"""Wheels of a few lines, a throw-away Python to install them beside, and pips that misbehave."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

from copier.training.interpreter import Interpreter, ask_interpreter
from copier.training.overlay import Contents, Pin
from copier.training.overlay_install import pip_program

CONTENTS = Contents((Pin("alpha", "1.0"), Pin("be-ta", "2.0")), ("alpha", "be_ta"), for_training=False)


def write_wheel(folder: Path, name: str, version: str, code: str = "") -> Path:
    """A wheel with one module."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    files = {
        f"{stem}.py": code or f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Requires-Dist: torch\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path


def write_wheels(folder: Path) -> Path:
    """Those of CONTENTS."""
    for pin in CONTENTS.pins:
        write_wheel(folder, pin.name, pin.version)
    return folder


def throw_away_python(folder: Path) -> Interpreter:
    """A venv with another alpha, without torch and without a pip of its own.

    It is said to have no wheel of pip either: pip from a wheel is compiled anew at every start.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    program = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    interpreter = ask_interpreter(folder / program)
    with zipfile.ZipFile(write_wheel(folder, "alpha", "0.1")) as wheel:
        wheel.extractall(site_packages(interpreter))
    return replace(interpreter, pip="")


def site_packages(interpreter: Interpreter) -> Path:
    """Where the venv's packages are."""
    (folder,) = Path(interpreter.path).parents[1].rglob("site-packages")
    return folder


def write_pip(folder: Path, code: str) -> str:
    """A program in place of pip's wheel; ``target`` is the folder that it is told to install into."""
    folder.mkdir(parents=True, exist_ok=True)
    start = (
        "import os, pathlib, signal, sys, time\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1])\n"
        "def package(name, version):\n"
        "    (target / f'{name}.py').write_text('')\n"
        "    info = target / f'{name}-{version}.dist-info'\n"
        "    info.mkdir()\n"
        "    (info / 'RECORD').write_text('')\n"
    )
    (folder / "pip").write_text(start + code, encoding="utf-8")
    return str(folder)


def freeze(interpreter: Interpreter) -> str:
    """``pip freeze --all`` of that Python's environment."""
    command = [*pip_program(interpreter), "freeze", "--all", "--path", str(site_packages(interpreter))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout
