"""The tiny checkpoint, a picture, and one short training on it, once for the folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.recipe import CaptionPolicy, CaptionSpec, Optimiser, Schedule, TrainingSpec
from copier.training.builtin import TrainingJob, train
from copier.training.client import BuiltinWorker

SIDE = 64


def loaded(path: Path) -> ModuleType:
    """A helper module of another folder of tests."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    return loaded(Path(__file__).parents[1] / "diffusion" / "tiny.py")


@pytest.fixture(scope="session")
def families() -> ModuleType:
    """SD 2.x and SDXL, narrow."""
    return loaded(Path(__file__).parents[1] / "diffusion" / "families.py")


@pytest.fixture(scope="session")
def narrow() -> ModuleType:
    """Keys and shapes of every family."""
    return loaded(Path(__file__).parents[1] / "checkpoint" / "narrow_models.py")


@pytest.fixture(scope="session")
def checkpoint(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tiny.write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> DiffusionModel:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """A red square on blue, (1, 64, 64, 3)."""
    picture = np.zeros((1, SIDE, SIDE, 3), np.float32)
    picture[..., 2] = 0.8
    picture[:, 16:48, 16:48] = (0.9, 0.1, 0.1)
    return picture


@pytest.fixture(scope="session")
def picture_file(picture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray((picture[0] * 255 + 0.5).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def short() -> TrainingSpec:
    """Three steps, strong enough that the LoRA plainly changes the model."""
    return TrainingSpec(
        steps=3,
        batch_size=2,
        learning_rate=0.02,
        rank=4,
        alpha=8.0,
        optimiser=Optimiser.ADAMW,
        schedule=Schedule.CONSTANT,
        captions=CaptionSpec(policy=CaptionPolicy.VARIED, texts=("a red star", "a cat", "")),
    )


@pytest.fixture(scope="session")
def trained(
    model: DiffusionModel,
    short: TrainingSpec,
    picture: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A LoRA of three steps."""
    output = tmp_path_factory.mktemp("trained") / "lora.safetensors"
    train(model, short, picture, TrainingJob(output=output))
    return output


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltinWorker]:
    folder = tmp_path_factory.mktemp("worker")
    with BuiltinWorker(threads=1, device="cpu", log_path=folder / "worker.log") as one:
        yield one
