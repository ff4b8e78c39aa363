"""SD 2.x and SDXL in the worker: training, merging beneath the sampling, options of the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.targets import trained_names
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.errors import BadInput
from copier.model_options import ModelOptions, Prediction, Switch
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.ops.merge import merge
from copier.ops.merge_modules import merge_into_modules
from copier.progress import ProgressEvent
from copier.recipe import TrainingSpec
from copier.training.builtin import TrainingJob, train
from copier.training.client import BuiltinWorker
from copier.training.protocol import SampleRequest

FAMILIES = (Family.SD2, Family.SDXL)
SIZE = {"width": 64, "height": 64}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.value)
def file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, families: ModuleType
) -> Path:
    name = f"{request.param.value}.safetensors"
    path: Path = families.write_family(tmp_path_factory.mktemp("family") / name, request.param)
    return path


@pytest.fixture(scope="module")
def narrow_model(file: Path) -> DiffusionModel:
    return load_checkpoint(file)


def test_a_merge_in_memory_is_bit_for_bit_what_the_file_gets(
    file: Path, narrow_model: DiffusionModel, tmp_path: Path
) -> None:
    """Of every module that kohya's networks can have: text encoders with q, k and v in one weight too."""
    header = read_header(file)
    numbers = torch.Generator().manual_seed(2)
    deltas = {}
    for name, target in trained_names(header, conv=True, text=True).items():
        out, *rest = header.tensors[target.key].shape
        if target.rows is not None:
            out = target.rows[1] - target.rows[0]
        up = torch.randn(out, 2, *[1] * len(rest[1:]), generator=numbers)
        deltas[name] = LowRankDelta(up, torch.randn(2, *rest, generator=numbers), 1.0)
    lora = LoraWeights(deltas)
    family = narrow_model.family
    path = tmp_path / "l.safetensors"
    write_lora(path, lora, network_metadata(lora, name="l", family=family), dtype="fp32")
    merge(file, [(path, 0.7)], tmp_path / "m.safetensors")
    merged = load_checkpoint(tmp_path / "m.safetensors")
    before = states(narrow_model)
    with merge_into_modules(narrow_model.weight_of, lora, 0.7):
        mine, theirs = states(narrow_model), states(merged)
        different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
        changed = sum(not torch.equal(mine[key], before[key]) for key in mine)
    assert different == []
    assert changed == len(lora) > 200
    after = states(narrow_model)
    assert all(torch.equal(after[key], before[key]) for key in before)


def states(model: DiffusionModel) -> dict[str, torch.Tensor]:
    parts = {"unet": model.unet, "vae": model.vae, **{str(i): t for i, t in enumerate(model.text_encoders)}}
    return {
        f"{name}.{key}": tensor.clone()
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }


def test_a_training_lowers_the_loss_and_leaves_the_model_as_it_was(
    narrow_model: DiffusionModel, file: Path, short: TrainingSpec, picture: np.ndarray, tmp_path: Path
) -> None:
    before = states(narrow_model)
    spec = replace(short, steps=2, rank=2, conv_rank=2, conv_alpha=2.0, text_encoder=True)
    output = tmp_path / "lora.safetensors"
    done = train(narrow_model, spec, picture, TrainingJob(output))
    written = read_lora(output)
    assert written.family is narrow_model.family
    assert set(written.weights) == set(trained_names(read_header(file), conv=True, text=True))
    # SDXL's first text encoder is read before its last layer, which has no gradient then.
    still = [name for name, delta in written.weights.items() if not delta.up.any()]
    assert all(name.startswith("lora_te1_") and "_layers_11_" in name for name in still)
    assert len(done.losses) == 2
    after = states(narrow_model)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_worker_draws_with_options_and_loads_anew_only_where_they_differ(
    families: ModuleType, worker: BuiltinWorker, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    file = families.write_family(tmp_path / "model.safetensors", Family.SDXL)
    base = SampleRequest(file, ("a cat",), (1,), tmp_path / "0", steps=1, guidance=2.0, **SIZE)
    velocity = ModelOptions(prediction=Prediction.VELOCITY, zero_terminal_snr=Switch.ON)
    pictures = []
    for number, model in enumerate([ModelOptions(), ModelOptions(), velocity]):
        request = replace(base, out=tmp_path / str(number), model=model)
        pictures.append(np.asarray(Image.open(worker.sample(request, observer=events.append).pictures[0])))
    assert sum("loading" in event.message for event in events) == 2
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    with pytest.raises(BadInput, match="clip skip is 2"):
        worker.sample(replace(base, out=tmp_path / "x", model=ModelOptions(clip_skip=2)))
