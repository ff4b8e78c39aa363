"""Keys of every layout are taken apart, and modules get the names that hosts know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from copier.checkpoint.blocks import block_of, block_of_module
from copier.checkpoint.family import Family
from copier.checkpoint.header import Header, TensorInfo
from copier.checkpoint.lora_keys import layout_of, split_key
from copier.checkpoint.lora_names import canonical_name, lora_table
from copier.checkpoint.names import kohya_modules
from copier.checkpoint.native_names import native_unet_name
from copier.checkpoint.targets import module_targets

SD15 = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("key", "module", "part", "layout"),
    [
        ("lora_unet_x.lora_up.weight", "lora_unet_x", "up", "kohya"),
        ("lora_unet_x.lora_mid.weight", "lora_unet_x", "mid", "kohya"),
        ("unet.a.0.b.lora_A.weight", "unet.a.0.b", "down", "peft"),
        ("unet.a.0.b.lora_B.default.weight", "unet.a.0.b", "up", "peft"),
        ("transformer.a.lora_magnitude_vector.default.weight", "transformer.a", "dora_scale", "peft"),
        ("unet.a.processor.to_q_lora.up.weight", "unet.a.processor.to_q", "up", "diffusers"),
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q", "down", "diffusers"),
        ("text_encoder.a.q_proj.lora_linear_layer.up.weight", "text_encoder.a.q_proj", "up", "diffusers"),
        ("lora_unet_x.hada_w1_a", "lora_unet_x", "hada_w1_a", "loha"),
        ("lora_unet_x.lokr_w2_b", "lora_unet_x", "lokr_w2_b", "lokr"),
        ("lora_unet_x.lokr_w2", "lora_unet_x", "lokr_w2", "lokr"),
        ("lora_unet_x.diff", "lora_unet_x", "diff", "full"),
        ("lora_unet_x.w_norm", "lora_unet_x", "diff", "full"),
        ("lora_unet_x.diff_b", "lora_unet_x.bias", "diff", "full"),
        ("lora_unet_x.b_norm", "lora_unet_x.bias", "diff", "full"),
        ("lora_unet_x.alpha", "lora_unet_x", "alpha", ""),
        ("lora_unet_x.dora_scale", "lora_unet_x", "dora_scale", ""),
    ],
)
def test_a_key_is_taken_apart(key, module, part, layout):
    split = split_key(key)
    assert split is not None
    assert (split.module, split.part, split.layout) == (module, part, layout)


def test_no_key_of_a_checkpoint_is_one_of_a_lora():
    assert [key for key in SD15["checkpoint"] if split_key(key) is not None] == []
    assert layout_of(SD15["checkpoint"]) == ""


def dotted(module):
    """diffusers' name of one of SD 1.x's modules, as peft writes it."""
    part = "text_encoder" if module.kohya.startswith("lora_te_") else "unet"
    return f"{part}.{module.diffusers}"


@pytest.mark.parametrize("wrapper", ["", "base_model.model."])
def test_every_module_of_sd1_gets_kohyas_name_from_diffusers(wrapper):
    modules = kohya_modules().values()
    assert len(modules) == 350
    for module in modules:
        assert canonical_name(wrapper + dotted(module), Family.SD1) == module.kohya
        assert canonical_name(module.kohya, Family.SD1) == module.kohya


def test_diffusers_oldest_names_get_kohyas_too():
    cross = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.processor.to_"
    layer = "text_encoder.text_model.encoder.layers.3.self_attn."
    for old, name in (
        (f"unet.{cross}k", "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k"),
        (f"{cross}out", "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0"),
        (f"{layer}to_q", "lora_te_text_model_encoder_layers_3_self_attn_q_proj"),
        (f"{layer}to_out", "lora_te_text_model_encoder_layers_3_self_attn_out_proj"),
    ):
        assert canonical_name(old, Family.SD1) == name in kohya_modules()


@pytest.mark.parametrize(
    ("name", "family", "canonical"),
    [
        ("text_encoder.text_model.x", Family.SD2, "lora_te_text_model_x"),
        ("text_encoder.text_model.x", Family.SDXL, "lora_te1_text_model_x"),
        ("text_encoder_2.text_model.x", Family.SDXL, "lora_te2_text_model_x"),
        ("unet.mid_block.x", Family.SDXL, "lora_unet_mid_block_x"),
        ("diffusion_model.input_blocks.4.1.x", Family.SDXL, "lora_unet_input_blocks_4_1_x"),
        ("lycoris_mid_block_x", Family.SD1, "lora_unet_mid_block_x"),
        ("lycoris_transformer_blocks_0_x", Family.FLUX, "lycoris_transformer_blocks_0_x"),
        (
            "transformer.transformer_blocks.0.attn.to_q",
            Family.FLUX,
            "transformer.transformer_blocks.0.attn.to_q",
        ),
        ("single_transformer_blocks.0.x", Family.FLUX, "transformer.single_transformer_blocks.0.x"),
        ("base_model.model.transformer_blocks.0.x", Family.SD3, "transformer.transformer_blocks.0.x"),
        ("text_encoder.text_model.x", Family.FLUX, "text_encoder.text_model.x"),
        (
            "diffusion_model.double_blocks.0.img_attn.qkv",
            Family.FLUX,
            "lora_unet_double_blocks_0_img_attn_qkv",
        ),
        ("joint_blocks.3.x_block.attn.qkv", Family.SD3, "lora_unet_joint_blocks_3_x_block_attn_qkv"),
        ("unet.mid_block.x.bias", Family.SD1, "lora_unet_mid_block_x.bias"),
        ("somewhere.else", Family.SD1, "somewhere.else"),
    ],
)
def test_names_of_other_families_become_the_hosts_where_that_is_a_rename(name, family, canonical):
    assert canonical_name(name, family) == canonical
    assert canonical_name(canonical, family) == canonical


def test_what_belongs_to_no_module_is_kept_with_its_reason():
    table = lora_table(
        (
            *("lora_unet_x.lora_up.weight", "lora_unet_x.lora_down.weight"),
            *("lora_unet_x.oft_blocks", "bundle_emb.me.emb_params", "x.y.z"),
            *("unet.down_blocks.0.x.lora_A.weight", "lora_unet_down_blocks_0_x.lora_down.weight"),
        ),
        Family.SD1,
    )
    assert set(table.modules) == {"lora_unet_x", "lora_unet_down_blocks_0_x"}
    assert "OFT" in table.unknown["lora_unet_x.oft_blocks"]
    assert "embedding" in table.unknown["bundle_emb.me.emb_params"]
    assert "no LoRA" in table.unknown["x.y.z"]
    assert "names the same as 'unet." in table.unknown["lora_unet_down_blocks_0_x.lora_down.weight"]


def xl_unet():
    """Paths of SDXL's U-Net in LDM's layout, of each kind of module one or more in every block."""
    resnet = ("in_layers.2", "emb_layers.1", "out_layers.3")
    attention = ("proj_in", "transformer_blocks.1.attn2.to_k", "proj_out")
    ends = ("input_blocks.0.0", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "out.2")
    paths = [
        *ends,
        "input_blocks.3.0.op",
        "input_blocks.6.0.op",
        "output_blocks.2.2.conv",
        "output_blocks.5.2.conv",
    ]
    for way, numbers, deep in (("input", (1, 2, 4, 5, 7, 8), range(4, 9)), ("output", range(9), range(6))):
        for number in numbers:
            paths += [f"{way}_blocks.{number}.0.{part}" for part in (*resnet, "skip_connection")]
            paths += [f"{way}_blocks.{number}.1.{part}" for part in attention if number in deep]
    for number, parts in enumerate((resnet, attention, resnet)):
        paths += [f"middle_block.{number}.{part}" for part in parts]
    return paths


def test_both_names_of_every_module_of_sdxls_unet_stand_for_one_weight_in_one_block():
    infos = {f"model.diffusion_model.{path}.weight": TensorInfo("F16", (4, 4), 0, 0) for path in xl_unet()}
    targets = module_targets(Header(tensors=infos, metadata={}, data_start=0, file_size=0))
    names = {name: target for name, target in targets.items() if name.startswith("lora_unet_")}
    assert len(names) >= 2 * len(infos)
    for name, target in names.items():
        native = target.key.removeprefix("model.diffusion_model.").removesuffix(".weight")
        assert native_unet_name(name) == "lora_unet_" + native.replace(".", "_")
        assert block_of_module(name, Family.SDXL) == block_of(target.key)


def test_every_module_of_sd1_is_in_the_block_of_its_weight():
    blocks = {module.kohya: block_of(module.ldm) for module in kohya_modules().values()}
    assert {"BASE", "IN01", "IN11", "M00", "OUT00", "OUT11"} <= set(blocks.values())
    assert {name: block_of_module(name, Family.SD1) for name in blocks} == blocks


@pytest.mark.parametrize(
    ("name", "family", "block"),
    [
        ("lora_unet_double_blocks_7_img_attn_qkv", Family.FLUX, "DB07"),
        ("transformer.transformer_blocks.7.attn.to_q", Family.FLUX, "DB07"),
        ("transformer.transformer_blocks.7.attn.to_q", Family.SD3, "JB07"),
        ("lora_transformer_single_transformer_blocks_31_proj_out", Family.FLUX, "SB31"),
        ("text_encoder.text_model.x", Family.FLUX, "BASE"),
        ("transformer.x_embedder", Family.FLUX, "OTHER"),
    ],
)
def test_blocks_of_transformers_are_told_from_either_name(name, family, block):
    assert block_of_module(name, family) == block
