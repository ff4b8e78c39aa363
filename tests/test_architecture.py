"""The order of the layers, as docs/architecture.md draws it: each imports only the ones above it.

The table is here; the test reads every import in copier/ (also those inside functions, under
TYPE_CHECKING and by ``import_module("...")``) and fails on one against the order. A new package needs a
line in the table first.
"""

from __future__ import annotations

import ast
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS: dict[str, tuple[str, ...]] = {
    "L0": (
        *("errors", "recipe", "fields", "codec", "presets", "model_options", "markup"),
        *("request", "expansion", "captioning", "progress", "digest", "disk", "lock"),
        *("temporary", "writepoints", "version"),
    ),
    "L1": ("checkpoint", "algebra", "images", "diffusion"),
    "L2": ("ops", "training"),
    "L3": ("pipeline", "evaluation"),
    "L4": ("app",),
    "L5": ("cli", "api", "ui"),
    "L6": ("host", "pocket"),
    "root": ("__main__",),
}
"""Modules and packages directly in copier/, by layer; L0 is above all others, the root below."""

SEES: dict[str, tuple[str, ...]] = {
    "L0": ("L0",),
    "L1": ("L0",),
    "L2": ("L0", "L1"),
    "L3": ("L0", "L1", "L2"),
    "L4": ("L0", "L1", "L2", "L3"),
    "L5": ("L0", "L4"),
    "L6": ("L0", "L1", "L2", "L3", "L4", "L5"),
    "root": ("L0", "L1", "L2", "L3", "L4", "L5", "L6"),
}
"""Which layers a layer may import. A package may always import itself; its neighbours only in L0."""

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("pipeline", "evaluation"): "its stages measure, and a finished run becomes a report",
    ("diffusion", "checkpoint"): "it loads a model from a single file, by the key names known there",
    ("training", "ops"): "LoRA files and merging in memory: checkpoint and algebra meet in ops alone",
}
"""(importer, imported): imports that the order forbids, each with the reason why it is right here."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "gradio": ("copier/ui/", "scripts/"),
    "fastapi": ("copier/api/",),
    "starlette": ("copier/api/",),
    "modules": ("copier/host/webui/", "scripts/"),
    "modules_forge": ("copier/host/webui/",),
    "backend": ("copier/host/webui/",),
    # A1111 lacks diffusers and peft, Forge has old ones: only for the worker child and the pocket model.
    **dict.fromkeys(
        ("diffusers", "transformers", "peft", "accelerate"),
        ("copier/diffusion/", "copier/training/", "copier/pocket/"),
    ),
}
"""Other people's packages, and the only files that may import them."""

HEAVY = ("torch", "numpy", "PIL", "gradio", "fastapi", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Import:
    """One imported name: ``file`` imports the dotted ``module`` in ``line``."""

    file: str
    line: int
    module: str


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every module that the file imports, absolute; ``from a import b`` counts as ``a.b``."""
    file = path.relative_to(root).as_posix()
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(file, node.lineno, node.args[0].value)


def violations(root: Path) -> list[str]:
    """What in ``root``/copier and its hooks is against the order, one sentence each."""
    layer_of = {unit: layer for layer, units in LAYERS.items() for unit in units}
    found = []
    files = sorted([*(root / "copier").rglob("*.py"), *root.glob("*.py"), *(root / "scripts").glob("*.py")])
    for path in files:
        parts = path.relative_to(root).parts
        importer = Path(parts[1]).stem if parts[0] == "copier" else ""
        if importer and importer != "__init__" and importer not in layer_of:
            found.append(f"{'/'.join(parts)}: {importer!r} has no layer: give it a line in LAYERS")
            continue
        for one in imports_of(path, root):
            problem = _against_the_order(importer, one, layer_of)
            problem = problem or _in_the_wrong_place(importer, one, layer_of)
            if problem:
                found.append(f"{one.file}:{one.line}: {problem}")
    return found


def _against_the_order(importer: str, one: Import, layer_of: dict[str, str]) -> str:
    top, _, rest = one.module.partition(".")
    imported = rest.partition(".")[0]
    if top != "copier" or imported not in layer_of:
        return ""
    if importer in ("", "__main__"):  # scripts/copier_webui.py and copier/__main__.py put the parts together
        return ""
    if importer == "__init__":
        return f"copier/__init__.py imports {imported}: everything imports it first, so it imports nothing"
    if imported == importer or (importer, imported) in EXCEPTIONS:
        return ""
    above, below = layer_of[imported], layer_of[importer]
    if above in SEES[below]:
        return ""
    return f"{importer} ({below}) imports {imported} ({above}); {below} may import {', '.join(SEES[below])}"


def _in_the_wrong_place(importer: str, one: Import, layer_of: dict[str, str]) -> str:
    top = one.module.partition(".")[0]
    places = ONLY_IN.get(top)
    if places is not None and not one.file.startswith(places):
        return f"imports {top}, which belongs only in {', '.join(places)}"
    if layer_of.get(importer) == "L0" and top != "copier" and top not in sys.stdlib_module_names:
        return f"imports {top}: L0 is the standard library only, so that --help starts at once"
    if one.file == "install.py" and top not in {*sys.stdlib_module_names, "launch"}:
        return f"imports {top}: the install hook is the standard library and `launch` only"
    return ""


def test_imports_follow_the_order_of_the_layers() -> None:
    assert violations(ROOT) == []


def test_every_unit_has_exactly_one_layer_and_every_package_a_line_in_the_table() -> None:
    units = [unit for layer in LAYERS.values() for unit in layer]
    assert len(units) == len(set(units))
    assert list(SEES) == list(LAYERS)
    code = (ROOT / "copier").glob("*/**/*.py")
    folders = {path.relative_to(ROOT / "copier").parts[0] for path in code}
    assert folders <= set(units)


def test_scripts_holds_one_file() -> None:
    """The host executes each file of scripts/ by itself: a second one would be a second extension."""
    assert [path.name for path in (ROOT / "scripts").glob("*.py")] == ["copier_webui.py"]


PLANTED = {
    "a lower layer": ("copier/algebra/deltas.py", "from copier.ops import merge"),
    "a neighbour": ("copier/images/pairs.py", "from copier.checkpoint import reader"),
    "from copier import": ("copier/checkpoint/reader.py", "from copier import pipeline"),
    "a relative import": ("copier/ops/merge.py", "from ..app.jobs import JobService"),
    "inside a function": ("copier/recipe.py", "def f():\n    import copier.training.command"),
    "by name": ("copier/training/worker.py", "import importlib as i\ni.import_module('copier.app')"),
    "a front end that skips app": ("copier/cli/run.py", "from copier.pipeline import runner"),
    "a front end of another": ("copier/cli/run.py", "from copier.ui import tab"),
    "the root": ("copier/app/jobs.py", "from copier.__main__ import main"),
    "the package's own __init__": ("copier/__init__.py", "from copier.app import jobs"),
    "torch in L0": ("copier/recipe.py", "import torch"),
    "numpy in L0's package": ("copier/presets/__init__.py", "import numpy as np"),
    "gradio outside ui": ("copier/app/jobs.py", "import gradio as gr"),
    "fastapi outside api": ("copier/cli/serve.py", "from fastapi import FastAPI"),
    "the host's modules": ("copier/host/standalone.py", "from modules import shared"),
    "diffusers in a host": ("copier/ops/extract.py", "import diffusers"),
    "an install hook with torch": ("install.py", "import torch"),
    "a package without a layer": ("copier/helpers/__init__.py", ""),
    "a module without a layer": ("copier/utils.py", ""),
}


@pytest.mark.parametrize(("path", "source"), PLANTED.values(), ids=PLANTED.keys())
def test_the_check_finds_a_planted(path: str, source: str, tmp_path: Path) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(source, encoding="utf-8")
    assert len(violations(tmp_path)) == 1
    assert violations(tmp_path)[0].startswith(path)


ALLOWED = {
    "L0 within itself": ("copier/codec.py", "from copier.recipe import Recipe\nfrom . import errors"),
    "upwards": ("copier/pipeline/plan.py", "import torch\nfrom copier import digest\nfrom copier import ops"),
    "its own package": ("copier/ops/resize.py", "from .merge import merge\nfrom copier.ops import inspect"),
    "a front end": ("copier/cli/run.py", "from copier.app.jobs import JobService\nfrom copier import recipe"),
    "the root": ("copier/__main__.py", "from copier.host import standalone\nfrom copier.cli import main"),
    "the tab's hook": ("scripts/copier_webui.py", "import copier\nfrom copier.host import webui"),
    "names that only begin alike": ("copier/images/effects.py", "import copierx.app\nfrom modulesx import a"),
}


@pytest.mark.parametrize(("path", "source"), ALLOWED.values(), ids=ALLOWED.keys())
def test_the_check_allows(path: str, source: str, tmp_path: Path) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []


@pytest.mark.skipif(not (ROOT / "copier/__main__.py").exists(), reason="there is no copier/__main__.py yet")
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    probe = f"""
import json, runpy, sys
sys.argv = ["copier", *{arguments!r}]
try:
    runpy.run_module("copier", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
print(json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""
    run = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(run.stderr.splitlines()[-1]) == [0, []]
    assert "usage" in run.stdout.lower()


def _processor_seconds(*arguments: str) -> float:
    """User and system time of a Python process, which a busy machine does not change much."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, timeout=60, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.skipif(os.name == "nt", reason="Windows does not count the time of child processes")
def test_help_costs_hardly_more_than_starting_python() -> None:
    runs = [(_processor_seconds("-c", ""), _processor_seconds("-m", "copier", "--help")) for _ in range(5)]
    bare, ours = (statistics.median(times) for times in zip(*runs, strict=True))
    assert bare > 0
    assert ours - bare <= 0.15
