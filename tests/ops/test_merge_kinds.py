"""Every kind of LoRA merged into a checkpoint, against its definition in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from copier.checkpoint.names import module_from_kohya
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.errors import BadCheckpoint, BadInput
from copier.ops.merge import merge

DATA = Path(__file__).parents[1] / "checkpoint" / "data" / "sd15.json"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
PROJECTION = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"
SIDE = 10
"""Every size of the checkpoint is cut to it."""


@pytest.fixture
def base(tmp_path):
    table = json.loads(DATA.read_text(encoding="utf-8"))["checkpoint"]
    tensors = {key: torch.randn([min(size, SIDE) for size in shape]) for key, (_, shape) in table.items()}
    write_tensors(tmp_path / "base.safetensors", tensors)
    return tmp_path / "base.safetensors"


def read(path):
    with TensorReader(path) as reader:
        return {key: reader.tensor(key) for key in reader.header.tensors}


def lora_and_changes():
    """A file with a module of every kind, and the change of each by its definition."""
    a, b, c, d = (
        torch.randn(SIDE, 3),
        torch.randn(3, 9 * SIDE),
        torch.randn(SIDE, 3),
        torch.randn(3, 9 * SIDE),
    )
    w1, w2a, w2b = torch.randn(2, 5), torch.randn(5, 2), torch.randn(2, 2)
    full, up, down = torch.randn(SIDE, SIDE, 1, 1), torch.randn(SIDE, 4), torch.randn(4, SIDE)
    t2, fa, fb = torch.randn(2, 2, 1, 1), torch.randn(2, SIDE), torch.randn(2, SIDE)
    tensors = {
        f"{CONV}.hada_w1_a": a,
        f"{CONV}.hada_w1_b": b,
        f"{CONV}.hada_w2_a": c,
        f"{CONV}.hada_w2_b": d,
        f"{CONV}.alpha": torch.tensor(1.5),
        f"{QUERY}.lokr_w1": w1,
        f"{QUERY}.lokr_w2_a": w2a,
        f"{QUERY}.lokr_w2_b": w2b,
        f"{QUERY}.alpha": torch.tensor(1.0),
        f"{PROJECTION}.diff": full,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": up,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": down,
        f"{KEY}.hada_t1": t2,
        f"{KEY}.hada_t2": t2,
        **{f"{KEY}.hada_w{i}_a": fa for i in (1, 2)},
        **{f"{KEY}.hada_w{i}_b": fb for i in (1, 2)},
    }
    double = torch.Tensor.double
    core = torch.einsum("mn,mo,ni->oi", double(t2)[:, :, 0, 0], double(fa), double(fb))
    changes = {
        CONV: (0.5 * (double(a) @ double(b)) * (double(c) @ double(d))).reshape(SIDE, SIDE, 3, 3),
        QUERY: 0.5 * torch.kron(double(w1), double(w2a) @ double(w2b)),
        PROJECTION: double(full),
        TEXT: double(up) @ double(down),
        KEY: core * core,
    }
    return tensors, changes


def test_every_kind_changes_its_weight_by_its_definition_and_nothing_else(base, tmp_path):
    tensors, changes = lora_and_changes()
    write_tensors(tmp_path / "lora.safetensors", tensors)
    report = merge(base, [(tmp_path / "lora.safetensors", -0.7)], tmp_path / "out.safetensors")
    before, after = read(base), read(tmp_path / "out.safetensors")
    keys = {module_from_kohya(name).ldm: change for name, change in changes.items()}
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(keys)
    for key, change in keys.items():
        right = before[key].double() - 0.7 * change.reshape(before[key].shape)
        assert float((after[key].double() - right).norm()) <= 1e-6 * float(right.norm())
    assert report.changed == 5
    assert report.ranks == {"text": (4, 4), "linear": (2, 3)}


@pytest.mark.parametrize(
    ("extra", "kind", "message"),
    [
        ({f"{QUERY}.lokr_w2_b": torch.full((2, 2), math.nan)}, BadCheckpoint, f"{QUERY}.*NaN"),
        ({f"{QUERY}.dora_scale": torch.ones(1, SIDE)}, BadCheckpoint, f"{QUERY}.*DoRA"),
        ({f"{QUERY}.lokr_w1": torch.randn(2, 4)}, BadInput, rf"{QUERY}.*\[10, 8\]"),
        (
            {f"{PROJECTION}.diff_b": torch.randn(SIDE)},
            BadInput,
            rf"{PROJECTION}.bias \[10\]: .*no such weight",
        ),
        ({f"{QUERY}.oft_blocks": torch.ones(1)}, BadCheckpoint, "OFT"),
    ],
)
def test_what_cannot_be_merged_is_named_and_nothing_is_left(base, tmp_path, extra, kind, message):
    write_tensors(tmp_path / "lora.safetensors", {**lora_and_changes()[0], **extra})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind, match=message):
        merge(base, [(tmp_path / "lora.safetensors", 1.0)], tmp_path / "out.safetensors")
    assert sorted(tmp_path.iterdir()) == before
