"""An autoencoder of the user's own, in every layout that such files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from copier.checkpoint.names import (
    VAE_PREFIX,
    diffusers_vae_from_ldm,
    ldm_from_diffusers_vae,
    squeezed_in_diffusers,
)
from copier.checkpoint.writer import write_tensors
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import reconstruct
from copier.errors import BadCheckpoint
from copier.model_options import ModelOptions

Tensors = dict[str, torch.Tensor]
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def of_ldm(tensors: Tensors) -> Tensors:
    return {**tensors, "model_ema.decay": torch.ones(1)}


def bare(tensors: Tensors) -> Tensors:
    return {key.removeprefix(VAE_PREFIX): value for key, value in tensors.items()} | {"loss.x": torch.ones(1)}


def of_diffusers(tensors: Tensors) -> Tensors:
    return {
        diffusers_vae_from_ldm(key): value.flatten(1) if squeezed_in_diffusers(key) else value
        for key, value in tensors.items()
    }


def of_old_diffusers(tensors: Tensors) -> Tensors:
    renamed = {}
    for key, value in of_diffusers(tensors).items():
        for new, old in OLD.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def own(families: ModuleType) -> Tensors:
    """Another autoencoder than the tiny checkpoint's, of other widths."""
    return families.autoencoder_tensors(seed=5)


@pytest.mark.parametrize("layout", [of_ldm, bare, of_diffusers, of_old_diffusers])
def test_it_takes_the_place_of_the_checkpoints_in_every_layout(
    layout: Callable[[Tensors], Tensors], own: Tensors, checkpoint: Path, model: DiffusionModel,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "vae.safetensors"
    write_tensors(path, layout(own))
    changed = load_checkpoint(checkpoint, ModelOptions(vae=path))
    for key, tensor in changed.vae.state_dict().items():
        file = own[ldm_from_diffusers_vae(key)]
        assert torch.equal(tensor, file.reshape(tensor.shape)), key
    picture = np.random.default_rng(0).random((1, 16, 16, 3), dtype=np.float32)
    assert np.abs(reconstruct(changed, picture) - reconstruct(model, picture)).max() > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), "has no autoencoder"),
        (lambda t: t.pop("decoder.conv_out.bias"), "lacks 'first_stage_model.decoder.conv_out.bias'"),
        (lambda t: t.update({"decoder.conv_in.weight": torch.ones(64, 16, 3, 3)}), "16 latent channels"),
        (lambda t: t.update({"decoder.up.4.x.weight": torch.ones(1)}), "also has"),
        (lambda t: t.update({"encoder.down.0.block.0.conv2.weight": torch.tensor(1.0)}), "a number"),
    ],
)
def test_what_is_no_such_autoencoder_is_refused(
    change: Callable[[Tensors], object], message: str, own: Tensors, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = bare(own)
    change(tensors)
    path = tmp_path / "vae.safetensors"
    write_tensors(path, {**tensors, "other": torch.ones(1)})
    with pytest.raises(BadCheckpoint, match=r"vae\.safetensors") as caught:
        load_checkpoint(checkpoint, ModelOptions(vae=path))
    assert message in str(caught.value)
