"""Files that are rewritten for sd-scripts hold what the user's held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from copier.checkpoint.header import read_header
from copier.checkpoint.names import VAE_PREFIX
from copier.checkpoint.targets import trained_names
from copier.diffusion.model import DiffusionModel
from copier.errors import BadInput
from copier.ops.lora_file import read_lora, write_lora
from copier.recipe import ConceptAction, ConceptSpec, Target, TrainingSpec
from copier.training.machine import Device
from copier.training.protocol import TrainRequest
from copier.training.scripts_inputs import is_in_ldm_names, write_autoencoder, write_start
from copier.training.scripts_trainer import ScriptsTrainer

SPEC = TrainingSpec(rank=6, alpha=3.0, conv_rank=5, conv_alpha=2.0)


def test_a_start_has_the_trainings_rank_and_alpha_and_the_same_deltas(
    trained: Path, checkpoint: Path, tmp_path: Path
) -> None:
    header, target = read_header(checkpoint), tmp_path / "start.safetensors"
    write_start(trained, target, SPEC, header)
    before, after = read_lora(trained).weights, read_lora(target).weights
    assert set(after) == set(trained_names(header, conv=True, text=False)) > set(before)
    for name, delta in after.items():
        spatial = delta.down.ndim == 4 and delta.down.shape[-1] > 1
        assert (delta.rank, delta.alpha) == ((5, 2.0) if spatial else (6, 3.0))
        assert delta.down.any(), "rows of zeros over columns of zeros would learn nothing"
        expected = before[name].dense() if name in before else torch.zeros(delta.shape)
        assert torch.allclose(delta.dense(), expected.reshape(delta.shape), rtol=1e-5, atol=1e-7)
    write_start(trained, tmp_path / "again.safetensors", SPEC, header)
    assert load_file(target).keys() == load_file(tmp_path / "again.safetensors").keys()


def test_a_start_with_more_than_is_trained_is_refused_by_name(
    trained: Path, checkpoint: Path, tmp_path: Path
) -> None:
    header, target = read_header(checkpoint), tmp_path / "start.safetensors"
    with pytest.raises(BadInput, match=r"has rank \d+, the training 1"):
        write_start(trained, target, replace(SPEC, rank=1), header)
    lora = read_lora(trained)
    text = next(iter(trained_names(header, conv=False, text=True, unet=False)))
    one = next(iter(lora.weights.values()))
    write_lora(tmp_path / "text.safetensors", type(lora.weights)({text: one}), lora.metadata, dtype="fp32")
    with pytest.raises(BadInput, match="which the training leaves alone"):
        write_start(tmp_path / "text.safetensors", target, SPEC, header)
    assert not target.exists()


def test_an_autoencoder_in_diffusers_names_is_written_in_ldms(
    model: DiffusionModel, checkpoint: Path, tmp_path: Path
) -> None:
    theirs, ours = tmp_path / "vae ä.safetensors", tmp_path / "ldm.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model.vae.state_dict().items()}, theirs)
    assert not is_in_ldm_names(theirs)
    write_autoencoder(theirs, ours)
    assert is_in_ldm_names(ours) and is_in_ldm_names(checkpoint)
    whole = load_file(checkpoint)
    written = load_file(ours)
    assert set(written) == {key for key in whole if key.startswith(VAE_PREFIX)}
    for key, tensor in written.items():
        assert torch.equal(tensor.reshape(whole[key].shape).float(), whole[key].float()), key


@pytest.mark.parametrize(
    ("change", "concept", "name"),
    [({"target": Target.PAIR}, None, "target"), ({}, ConceptSpec(ConceptAction.ERASE, "a star"), "concept")],
    ids=["target", "concept"],
)
def test_a_loss_that_sd_scripts_does_not_have_is_refused_instead_of_trained_with_another(
    change: dict[str, Target], concept: ConceptSpec | None, name: str, tmp_path: Path
) -> None:
    nowhere: Any = None  # neither sd-scripts nor its packages are asked for
    trainer = ScriptsTrainer(nowhere, nowhere, device=Device("cpu"), logs=tmp_path)
    request = TrainRequest(
        tmp_path / "c", (tmp_path / "a.png",), tmp_path / "o", TrainingSpec(**change), concept=concept
    )
    with pytest.raises(BadInput, match=f"sd-scripts does not have {name}"):
        trainer.train(request)
