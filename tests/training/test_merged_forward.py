"""Where a LoRA is merged into its weight at each step, it computes what peft's layer beside it computes."""

from __future__ import annotations

import pytest
import torch

from copier.diffusion.model import DiffusionModel
from copier.recipe import TrainingSpec
from copier.training import lora_modules
from copier.training.lora_modules import LoraModules

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
SPEC = TrainingSpec(rank=4, alpha=6.0, conv_rank=3, conv_alpha=1.5)


def outcome(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, factor: float
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Output, gradients of all factors, and how many layers are merged, with that ``MERGING_FACTOR``."""
    monkeypatch.setattr(lora_modules, "MERGING_FACTOR", factor)
    width = model.unet.config.cross_attention_dim
    context = torch.randn(2, 77, width, generator=torch.Generator().manual_seed(6))
    with LoraModules(model, SPEC, torch.Generator().manual_seed(1)) as lora:
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in lora.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        output = model.unet(LATENTS, torch.tensor([400, 20]), context).sample
        output.square().mean().backward()
        gradients = [parameter.grad.clone() for parameter in lora.parameters()]
        merged = sum("forward" in vars(layer) for layer in lora._layers.values())
    return output.detach(), gradients, merged


def test_merged_layers_give_the_same_output_and_gradients(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, beside_gradients, none = outcome(model, monkeypatch, 0.0)
    merged, merged_gradients, everything = outcome(model, monkeypatch, 1e9)
    assert (none, everything) == (0, 192 + 86)
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)
    one, other = (torch.cat([g.flatten() for g in all_]) for all_ in (merged_gradients, beside_gradients))
    # Rounding grows in so small a network: 0.1 to 1.6 % by the number of threads.
    assert float((one - other).norm()) <= 5e-2 * float(other.norm())
    assert float(other.abs().max()) > 1e-3


def test_large_weights_and_half_precision_are_not_merged() -> None:
    def layer(width: int, dtype: torch.dtype) -> torch.nn.Module:
        outer = torch.nn.Module()
        outer.base_layer = torch.nn.Linear(width, width).to(dtype)
        return outer

    assert lora_modules._merging_is_cheaper(layer(64, torch.float32), 16)
    assert not lora_modules._merging_is_cheaper(layer(1280, torch.float32), 16)
    assert not lora_modules._merging_is_cheaper(layer(64, torch.bfloat16), 16)
