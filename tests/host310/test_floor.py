"""The code that runs in a host, against the oldest Python and packages that hosts have."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "copier").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "install.py"])

IN_A_HOST = (
    *("errors", "recipe", "fields", "codec", "presets", "request", "progress", "digest", "writepoints"),
    *("temporary", "version", "checkpoint", "algebra", "images", "ops", "evaluation", "pipeline", "app"),
)
"""Modules and packages of copier/ that a host's process imports (docs/architecture.md, L0 to L4)."""


def modules_in_a_host() -> list[str]:
    files = [path.relative_to(ROOT).with_suffix("").parts for path in SOURCES]
    inside = [parts for parts in files if parts[0] == "copier" and parts[1] in IN_A_HOST]
    return [".".join(parts).removesuffix(".__init__") for parts in inside]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_source_is_syntax_of_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


@pytest.mark.parametrize("name", modules_in_a_host())
def test_a_module_that_runs_in_a_host_imports(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torch" or importlib.util.find_spec("torch") is not None:
            raise
        pytest.skip("torch is not installed in this environment")


@pytest.mark.skipif("COPIER_HOST_FLOOR" not in os.environ, reason="`make test-host` has these packages")
def test_this_run_really_has_the_oldest_packages() -> None:
    pins = dict(
        line.split(" ;")[0].strip().split("==")
        for line in (ROOT / "requirements/host.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith(("numpy", "pillow"))
    )
    assert len(pins) == 2
    assert {name: version(name) for name in pins} == pins
    for name, module in (("numpy", "numpy"), ("pillow", "PIL")):
        imported = importlib.import_module(module)
        assert imported.__version__ == pins[name], f"{imported.__file__} is another {name}"
        assert Path(sys.prefix) in Path(imported.__file__ or "").parents
