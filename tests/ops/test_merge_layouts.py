"""Merging LoRAs of every family, naming and kind, against dense sums written out here."""

from __future__ import annotations

import json

import pytest
import torch

from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.errors import BadInput
from copier.ops.merge import merge
from tests.checkpoint import narrow_models as narrow

W = 0.75
"""Weight of the LoRA in every merge here."""


def checkpoint_at(path, shapes, dtype=torch.float16):
    tensors = {key: torch.randn(shape).to(dtype) for key, shape in shapes.items()}
    write_tensors(path, tensors)
    return {key: tensor.float().double() for key, tensor in tensors.items()}


def read(path):
    with TensorReader(path) as reader:
        return {key: reader.tensor(key).float().double() for key in reader.header.tensors}


def plain(name, out, across, rank=3, alpha=1.5):
    """A module with two factors in kohya's layout, and its change."""
    up, down = torch.randn(out, rank), torch.randn(rank, across)
    tensors = {
        f"{name}.lora_up.weight": up,
        f"{name}.lora_down.weight": down,
        f"{name}.alpha": torch.tensor(alpha),
    }
    return tensors, alpha / rank * up.double() @ down.double()


def peft(name, out, across, rank=3):
    up, down = torch.randn(out, rank), torch.randn(rank, across)
    return {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}, up.double() @ down.double()


def check(tmp_path, shapes, modules, dtype=torch.float16, tolerance=2e-3):
    """Merge ``modules`` [(tensors, change, key, rows)]; each must change its rows, and nothing else."""
    base = checkpoint_at(tmp_path / "base.safetensors", shapes, dtype)
    lora = {key: tensor for tensors, *_ in modules for key, tensor in tensors.items()}
    write_tensors(tmp_path / "lora.safetensors", lora)
    out = tmp_path / "out.safetensors"
    report = merge(tmp_path / "base.safetensors", [(tmp_path / "lora.safetensors", W)], out)
    expected = {key: tensor.clone() for key, tensor in base.items()}
    for _, change, key, rows in modules:
        expected[key][rows] += W * change.reshape(expected[key][rows].shape)
    merged = read(out)
    assert list(merged) == list(base)
    for key in base:
        assert torch.allclose(merged[key], expected[key], rtol=tolerance, atol=tolerance), key
    assert report.changed == len({key for _, _, key, _ in modules})
    return report


ALL = slice(None)


def test_sd2_the_text_encoders_fused_projection_is_changed_by_slices(tmp_path):
    layer = "cond_stage_model.model.transformer.resblocks.3"
    name = "lora_te_text_model_encoder_layers_3"
    check(tmp_path, narrow.sd2_file(), [
        (*plain(f"{name}_self_attn_k_proj", 24, 24), f"{layer}.attn.in_proj_weight", slice(24, 48)),
        (*plain(f"{name}_self_attn_v_proj", 24, 24, rank=2), f"{layer}.attn.in_proj_weight", slice(48, 72)),
        (*plain(f"{name}_mlp_fc1", 96, 24), f"{layer}.mlp.c_fc.weight", ALL),
    ])  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q",
    ],
)
def test_sdxl_both_namings_of_the_unet_and_both_text_encoders(tmp_path, name):
    check(tmp_path, narrow.sdxl_file(), [
        (*plain(name, 64, 64),
         "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn1.to_q.weight", ALL),
        (*plain("lora_te1_text_model_encoder_layers_0_mlp_fc2", 24, 96),
         "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc2.weight", ALL),
        (*plain("lora_te2_text_model_encoder_layers_1_self_attn_q_proj", 24, 24),
         "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight", slice(0, 24)),
    ])  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_flux_kohyas_fused_and_pefts_separate_projections(tmp_path, prefix, dtype):
    tolerance = 0.02 if dtype is torch.bfloat16 else 0.2
    shapes = narrow.flux(prefix)
    check(
        tmp_path, shapes,
        [(*plain("lora_unet_double_blocks_0_img_attn_qkv", 96, 32),
          f"{prefix}double_blocks.0.img_attn.qkv.weight", ALL)],
        dtype, tolerance,
    )  # fmt: skip
    (tmp_path / "peft").mkdir()
    check(
        tmp_path / "peft", shapes,
        [
            (*peft("transformer.transformer_blocks.1.attn.to_k", 32, 32),
             f"{prefix}double_blocks.1.img_attn.qkv.weight", slice(32, 64)),
            (*peft("transformer.transformer_blocks.1.attn.add_v_proj", 32, 32),
             f"{prefix}double_blocks.1.txt_attn.qkv.weight", slice(64, 96)),
            (*peft("transformer.single_transformer_blocks.0.proj_mlp", 128, 32),
             f"{prefix}single_blocks.0.linear1.weight", slice(96, 224)),
        ],
        dtype, tolerance,
    )  # fmt: skip


def test_sd3_pefts_projections_are_rows_of_the_joint_blocks(tmp_path):
    block = "model.diffusion_model.joint_blocks.0"
    check(tmp_path, narrow.sd3_file(), [
        (*peft("transformer.transformer_blocks.0.attn.to_q", 32, 32),
         f"{block}.x_block.attn.qkv.weight", slice(0, 32)),
        (*peft("transformer.transformer_blocks.0.attn.add_k_proj", 32, 32),
         f"{block}.context_block.attn.qkv.weight", slice(32, 64)),
    ])  # fmt: skip


def test_kinds_that_are_no_plain_product_are_merged_too(tmp_path):
    q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    k = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_k.weight"
    shapes = narrow.sd1_file()
    width = shapes[q][0]
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1"
    loha = {
        f"{name}_to_q.hada_w{i}_{side}": torch.randn(shape)
        for i in (1, 2)
        for side, shape in (("a", (width, 2)), ("b", (2, width)))
    }
    w1, w2 = (
        loha[f"{name}_to_q.hada_w{i}_a"].double() @ loha[f"{name}_to_q.hada_w{i}_b"].double() for i in (1, 2)
    )
    lokr = {
        f"{name}_to_k.lokr_w1": torch.randn(4, 4),
        f"{name}_to_k.lokr_w2": torch.randn(width // 4, width // 4),
    }
    kron = torch.kron(lokr[f"{name}_to_k.lokr_w1"].double(), lokr[f"{name}_to_k.lokr_w2"].double())
    check(tmp_path, shapes, [(loha, w1 * w2, q, ALL), (lokr, kron, k, ALL)])


def test_modules_that_match_nothing_are_all_named_and_nothing_is_written(tmp_path):
    checkpoint_at(tmp_path / "base.safetensors", narrow.sdxl_file())
    good = plain("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", 64, 64)[0]
    for number in range(20):
        good |= plain(f"lora_unet_input_blocks_4_1_transformer_blocks_{30 + number}_attn1_to_q", 64, 64)[0]
    write_tensors(tmp_path / "lora.safetensors", good)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput) as caught:
        merge(
            tmp_path / "base.safetensors",
            [(tmp_path / "lora.safetensors", 1.0)],
            tmp_path / "out.safetensors",
        )
    for number in range(20):
        assert f"transformer_blocks_{30 + number}_attn1_to_q [64, 64]" in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_block_weights_scale_each_module_by_its_block(tmp_path):
    shapes = narrow.sdxl_file()
    keys = {
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q": 0.5,
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": 0.0,
        "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q": -2.0,
        "lora_te1_text_model_encoder_layers_0_mlp_fc2": 1.0,
    }
    base = checkpoint_at(tmp_path / "base.safetensors", shapes)
    targets = {name: name.removeprefix("lora_unet_") for name in keys}
    dotted = {key.removesuffix(".weight").replace(".", "_"): key for key in shapes}
    found = {name: dotted.get(f"model_diffusion_model_{path}") for name, path in targets.items()}
    found["lora_te1_text_model_encoder_layers_0_mlp_fc2"] = (
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc2.weight"
    )
    lora, changes = {}, {}
    for name, key in found.items():
        tensors, changes[key] = plain(name, *shapes[key])
        lora |= tensors
    write_tensors(tmp_path / "lora.safetensors", lora)
    out = tmp_path / "out.safetensors"
    vector = "1,0.5,1,1,1,0,-2,1,1,1,1,1"
    merge(tmp_path / "base.safetensors", [(tmp_path / "lora.safetensors", W)], out, blocks=[vector])
    merged = read(out)
    for name, weight in keys.items():
        key = found[name]
        assert torch.allclose(merged[key], base[key] + W * weight * changes[key], rtol=2e-3, atol=2e-3), name


def test_the_digests_in_the_metadata_are_those_of_the_inputs(tmp_path):
    report = check(tmp_path, narrow.sd1_file(), [
        (*plain("lora_te_text_model_encoder_layers_0_mlp_fc1", 96, 24),
         "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight", ALL),
    ])  # fmt: skip
    with TensorReader(tmp_path / "out.safetensors") as reader:
        told = json.loads(reader.metadata["copier_operation"])["inputs"]
    assert [one["sha256"] for one in told] == [one.sha256 for one in report.inputs]
    assert all(len(set(one.sha256)) > 8 for one in report.inputs)


def test_modules_for_a_text_encoder_that_the_file_lacks_are_left_out_and_listed(tmp_path):
    shapes = narrow.flux()
    base = checkpoint_at(tmp_path / "base.safetensors", shapes)
    tensors, change = plain("lora_unet_double_blocks_0_img_attn_qkv", 96, 32)
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    write_tensors(tmp_path / "lora.safetensors", {**tensors, **plain(name, 96, 24)[0]})
    out = tmp_path / "out.safetensors"
    report = merge(tmp_path / "base.safetensors", [(tmp_path / "lora.safetensors", W)], out)
    assert report.left_out == ((name, (96, 24)),)
    key = "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"
    assert torch.allclose(read(out)[key], base[key] + W * change, rtol=2e-3, atol=2e-3)
    write_tensors(tmp_path / "text.safetensors", plain(name, 96, 24)[0])
    with pytest.raises(BadInput, match="changes text encoders only"):
        merge(tmp_path / "base.safetensors", [(tmp_path / "text.safetensors", W)], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_float64_checkpoint_keeps_its_digits(tmp_path):
    base = {key: torch.randn(shape, dtype=torch.float64) for key, shape in narrow.sd1_file().items()}
    write_tensors(tmp_path / "base.safetensors", base)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    width = base[key].shape[0]
    tensors, change = plain("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", width, width)
    small = {name: 1e-12 * one if "up" in name else one for name, one in tensors.items()}
    write_tensors(tmp_path / "lora.safetensors", small)
    lora = tmp_path / "lora.safetensors"
    merge(tmp_path / "base.safetensors", [(lora, 1.0)], tmp_path / "out.safetensors")
    with TensorReader(tmp_path / "out.safetensors") as reader:
        assert torch.allclose(reader.tensor(key) - base[key], 1e-12 * change, rtol=1e-2, atol=1e-15)
