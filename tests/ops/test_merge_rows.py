"""A LoRA whose modules are parts of one weight is merged into the rows that are theirs."""

from __future__ import annotations

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.ops.lora_file import write_lora
from copier.ops.merge import merge

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.model.transformer.resblocks.0.attn."
PROJ_IN = UNET + "input_blocks.1.1.proj_in.weight"
NAME = "lora_te_text_model_encoder_layers_0_self_attn_"
WIDTH = 6


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(5)
    shapes = {
        UNET + "input_blocks.1.0.in_layers.2.weight": (8, 8, 3, 3),
        PROJ_IN: (8, 8),
        TEXT + "in_proj_weight": (3 * WIDTH, WIDTH),
        TEXT + "out_proj.weight": (WIDTH, WIDTH),
    }
    path = tmp_path / "sd2.safetensors"
    write_tensors(path, {key: torch.randn(shape).half() for key, shape in shapes.items()})
    return path


def test_q_and_v_change_their_thirds_of_the_fused_weight_and_k_stays(base):
    parts = {
        NAME + part: LowRankDelta(torch.randn(WIDTH, 2), torch.randn(2, WIDTH), 1.0)
        for part in ("q_proj", "v_proj", "out_proj")
    }
    lora = base.with_name("lora.safetensors")
    write_lora(lora, LoraWeights(parts), {}, dtype="fp32")
    report = merge(base, [(lora, 0.5)], base.with_name("out.safetensors"))
    assert report.changed == 2
    with TensorReader(base) as before, TensorReader(base.with_name("out.safetensors")) as after:
        old, new = before.tensor(TEXT + "in_proj_weight"), after.tensor(TEXT + "in_proj_weight")
        for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = slice(number * WIDTH, (number + 1) * WIDTH)
            delta = parts.get(NAME + part)
            change = 0.5 * 0.5 * delta.up.double() @ delta.down.double() if delta else 0.0
            assert torch.allclose(new[rows].double(), old[rows].double() + change, rtol=2**-11, atol=1e-6)
        assert torch.equal(new[WIDTH : 2 * WIDTH], old[WIDTH : 2 * WIDTH])
        assert not torch.equal(new[:WIDTH], old[:WIDTH])
        assert torch.equal(before.tensor(PROJ_IN), after.tensor(PROJ_IN))
