"""The tiny checkpoint, once for the folder."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from copier.checkpoint.family import Family
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def checkpoint(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tiny.write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> DiffusionModel:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def families() -> ModuleType:
    """SD 2.x and SDXL, narrow."""
    spec = importlib.util.spec_from_file_location("families", Path(__file__).with_name("families.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Narrow:
    """A narrow checkpoint: its file, the tensors in it, and the model that is loaded from it."""

    path: Path
    tensors: dict[str, torch.Tensor]
    model: DiffusionModel


@pytest.fixture(scope="session", params=[Family.SD2, Family.SDXL], ids=lambda family: family.value)
def narrow(
    request: pytest.FixtureRequest, families: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Narrow:
    """SD 2.x, and SDXL."""
    name = f"{request.param.value}.safetensors"
    path = families.write_family(tmp_path_factory.mktemp("narrow") / name, request.param)
    return Narrow(path, families.tensors(request.param), load_checkpoint(path))
