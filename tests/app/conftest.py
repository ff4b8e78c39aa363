"""A folder with a checkpoint, a pair and a recipe, and the fake worker in the place of the real one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def doubles() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doubles", Path(__file__).with_name("doubles.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(doubles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: base.safetensors, a.png, b.png, small.safetensors, short.json."""
    place = tmp_path / "work"
    place.mkdir()
    doubles.write_checkpoint(place / "base.safetensors")
    doubles.write_picture(place / "a.png", seed=1)
    doubles.write_picture(place / "b.png", seed=2)
    doubles.write_small_lora(place / "small.safetensors")
    doubles.write_recipe(place / "short.json")
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def worker(doubles: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that every service starts as its worker child."""
    fake = type("Worker", (doubles.FakeWorker,), {"calls": []})
    monkeypatch.setattr("copier.app.crew.BuiltinWorker", fake)
    return fake
