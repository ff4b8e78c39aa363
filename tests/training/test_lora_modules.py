from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.diffusion.model import DiffusionModel
from copier.errors import BadInput
from copier.ops.lora_file import read_lora, write_lora
from copier.ops.merge_modules import merge_into_modules
from copier.recipe import TrainingSpec
from copier.training.lora_modules import LoraModules, lora_metadata

NAMES = Path(__file__).parents[1] / "checkpoint" / "data" / "sd15.json"
EVERYTHING = TrainingSpec(rank=4, alpha=2.0, conv_rank=3, conv_alpha=6.0, text_encoder=True)
LATENTS = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def inject(model: DiffusionModel, spec: TrainingSpec, *, seed: int = 1) -> LoraModules:
    return LoraModules(model, spec, torch.Generator().manual_seed(seed))


def randomise(lora: LoraModules) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@torch.no_grad()
def output(model: DiffusionModel) -> torch.Tensor:
    """What text encoder and U-Net make of fixed input."""
    tokens = torch.tensor([[49406, 320, 2368] + [49407] * 74])
    context = model.text_encoder(tokens).last_hidden_state
    result: torch.Tensor = model.unet(LATENTS, torch.tensor([400]), context).sample
    return result


def test_names_are_kohyas_and_only_those(model: DiffusionModel) -> None:
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    linear = set(names["linear"])
    unet = {name for name in linear if name.startswith("lora_unet_")}
    assert (len(linear), len(unet), len(names["locon_extra"])) == (264, 192, 86)
    with inject(model, TrainingSpec(rank=4)) as lora:
        assert set(lora.weights()) == unet
        assert len(lora.parameters()) == 2 * 192
    with inject(model, TrainingSpec(rank=4, text_encoder=True)) as lora:
        assert set(lora.weights()) == linear
    with inject(model, EVERYTHING) as lora:
        weights = lora.weights()
    assert set(weights) == linear | set(names["locon_extra"])
    for name, delta in weights.items():
        assert (delta.rank, delta.alpha) == ((3, 6.0) if delta.is_conv else (4, 2.0)), name
    assert sum(delta.is_conv for delta in weights.values()) == 50


def test_the_start_changes_nothing_and_is_kohyas(model: DiffusionModel) -> None:
    base = output(model)
    with inject(model, EVERYTHING) as lora:
        assert torch.equal(output(model), base)
        weights = lora.weights()
    for name, delta in weights.items():
        assert not delta.up.any()
        bound = delta.down[0].numel() ** -0.5
        assert 0.8 * bound < delta.down.abs().max() <= bound, name


def test_the_start_depends_on_the_generator_alone(model: DiffusionModel) -> None:
    torch.manual_seed(1)
    with inject(model, TrainingSpec(rank=4)) as lora:
        one = lora.weights()
    before = torch.random.get_rng_state()
    with inject(model, TrainingSpec(rank=4)) as lora:
        again = lora.weights()
    assert torch.equal(torch.random.get_rng_state(), before)
    with inject(model, TrainingSpec(rank=4), seed=2) as lora:
        other = lora.weights()
    name = next(iter(one))
    assert torch.equal(one[name].down, again[name].down)
    assert not torch.equal(one[name].down, other[name].down)


def test_the_export_merged_by_algebra_computes_what_the_layers_compute(
    model: DiffusionModel, tmp_path: Path
) -> None:
    base = output(model)
    with inject(model, EVERYTHING) as lora:
        randomise(lora)
        adapted, weights = output(model), lora.weights()
    assert torch.equal(output(model), base)
    write_lora(tmp_path / "export.safetensors", weights, {}, dtype="fp32")
    reread = read_lora(tmp_path / "export.safetensors").weights
    with merge_into_modules(model.weight_of, reread):
        torch.testing.assert_close(output(model), adapted, atol=2e-4, rtol=2e-4)
    assert torch.equal(output(model), base)
    assert (adapted - base).abs().max() > 0.05


def test_removal_puts_the_very_modules_back(model: DiffusionModel) -> None:
    before = dict(model.unet.named_modules())
    with inject(model, EVERYTHING) as lora:
        assert all(p.requires_grad and p.dtype == torch.float32 for p in lora.parameters())
        assert sum(p.requires_grad for p in model.unet.parameters()) == 2 * (192 + 86)
    after = dict(model.unet.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items())
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_a_start_of_lower_rank_and_other_alpha_is_the_same_change(model: DiffusionModel) -> None:
    with inject(model, TrainingSpec(rank=2, alpha=5.0)) as lora:
        randomise(lora)
        first = lora.weights()
    with inject(model, TrainingSpec(rank=4, alpha=2.0)) as lora:
        lora.start_from(first)
        second = lora.weights()
    for name, delta in first.items():
        assert second[name].rank == 4
        torch.testing.assert_close(second[name].dense(), delta.dense(), atol=1e-5, rtol=1e-5)
        assert second[name].down[2:].any() and not second[name].up[:, 2:].any()


def test_a_start_that_does_not_fit_is_refused(model: DiffusionModel) -> None:
    with inject(model, EVERYTHING) as lora:
        weights = lora.weights()
    with inject(model, TrainingSpec(rank=4)) as lora, pytest.raises(BadInput, match="alone"):
        lora.start_from(weights)
    unet = LoraWeights({name: weights[name] for name in list(weights) if "attn1" in name})
    with inject(model, TrainingSpec(rank=2)) as lora, pytest.raises(BadInput, match="rank 4"):
        lora.start_from(unet)


def test_metadata_is_what_hosts_read_and_extra_keys_win() -> None:
    spec = TrainingSpec(steps=7, learning_rate=1e-3, seed=5)
    values = lora_metadata(
        spec,
        _one_module(),
        name="gray",
        checkpoint="base.safetensors",
        family=Family.SD1,
        velocity=False,
        side=(64, 128),
        extra={"ss_steps": "8", "copier_recipe": "{}"},
    )
    assert values["ss_network_module"] == "networks.lora"
    assert (values["ss_network_dim"], values["ss_network_alpha"]) == ("2", "2.0")
    assert values["ss_output_name"] == values["modelspec.title"] == "gray"
    assert values["ss_sd_model_name"] == "base.safetensors"
    assert values["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert values["modelspec.resolution"] == "64x128"
    assert (values["ss_steps"], values["copier_recipe"]) == ("8", "{}")
    assert (values["ss_learning_rate"], values["ss_seed"]) == ("0.001", "5")
    assert all(isinstance(value, str) for value in values.values())


def _one_module() -> LoraWeights:
    return LoraWeights({"lora_unet_x": LowRankDelta(torch.ones(3, 2), torch.ones(2, 3), alpha=2.0)})
