"""Families are told from names and structure, and from widths only where these leave it open."""

from __future__ import annotations

import json
from pathlib import Path

import narrow_models as models
import pytest
from narrow_models import UNET, header, lora

from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.targets import module_targets

SD15 = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))
FULL = {key: tuple(shape) for key, (_, shape) in SD15["checkpoint"].items()}
NARROW = {key: tuple(min(size, 64) for size in shape) for key, shape in FULL.items()}
LINEAR = {name: tuple(shape) for name, shape in SD15["linear"].items()}


def only(shapes, *starts):
    return {key: shape for key, shape in shapes.items() if key.startswith(starts)}


CHECKPOINTS = [
    (FULL, Family.SD1, "ldm"),
    (NARROW, Family.SD1, "ldm"),
    (only(FULL, UNET), Family.SD1, "ldm-unet"),
    ({**only(FULL, UNET), "cond_stage_model.model.ln_final.weight": (1024,)}, Family.SD2, "ldm"),
    ({**only(FULL, UNET), "conditioner.embedders.0.transformer.x": (1,)}, Family.SDXL, "ldm"),
    (
        {UNET + "input_blocks.0.0.weight": (4,), UNET + "label_emb.0.0.weight": (1,)},
        Family.SDXL,
        "ldm-unet",
    ),
    (
        {UNET + "input_blocks.1.1.proj_in.weight": (320, 320)},
        Family.SD2,
        "ldm-unet",
    ),
    ({UNET + "joint_blocks.0.context_block.attn.qkv.weight": (1, 1)}, Family.SD3, "ldm-unet"),
    ({"double_blocks.0.img_attn.qkv.weight": (1, 1)}, Family.FLUX, "ldm-unet"),
    (
        {UNET + "double_blocks.0.img_attn.qkv.weight": (1, 1), "text_encoders.t5.x": (1,)},
        Family.FLUX,
        "ldm",
    ),
    (
        {
            "conv_in.weight": (64, 4, 3, 3),
            "down_blocks.0.attentions.0.proj_in.weight": (64, 64, 1, 1),
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, 64),
        },
        Family.SD1,
        "diffusers",
    ),
]


CHECKPOINTS += [
    (models.sd1_file(), Family.SD1, "ldm"),
    (models.sd2_file(), Family.SD2, "ldm"),
    (models.sdxl_file(), Family.SDXL, "ldm"),
    (models.sd3_file(), Family.SD3, "ldm"),
    (models.flux_file(), Family.FLUX, "ldm"),
    (models.unet(prefix=""), Family.SD1, "ldm-unet"),
    (models.unet(prefix="", linear=True), Family.SD2, "ldm-unet"),
    (models.unet((32, 64, 96), (0, 2, 10), linear=True, label=28, prefix=""), Family.SDXL, "ldm-unet"),
    (models.sd3(prefix=""), Family.SD3, "ldm-unet"),
    (models.flux(prefix=""), Family.FLUX, "ldm-unet"),
    ({"transformer_blocks.0.attn.add_q_proj.weight": (8, 8)}, Family.SD3, "diffusers"),
    (
        {
            "transformer_blocks.0.attn.add_q_proj.weight": (8, 8),
            "single_transformer_blocks.0.attn.to_q.weight": (8, 8),
        },
        Family.FLUX,
        "diffusers",
    ),
]


@pytest.mark.parametrize(("shapes", "family", "layout"), CHECKPOINTS)
def test_checkpoints_are_told_by_their_keys(shapes, family, layout):
    found = detect(header(shapes))
    assert (found.family, found.kind, found.layout) == (family, Kind.CHECKPOINT, layout)


IN, DEEP = "lora_unet_down_blocks_1_attentions_0_", "_transformer_blocks_3_attn1_to_q"
TE = "text_model_encoder_layers_3_mlp_fc1"
BLOCK = "transformer.transformer_blocks."
CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2."


def peft(shapes):
    return lora(shapes, up="lora_B", down="lora_A", alpha=False)


LORAS = [
    (lora(LINEAR), Family.SD1),
    (lora({name: tuple(min(s, 64) for s in shape) for name, shape in LINEAR.items()}), Family.SD1),
    (lora({IN + "transformer_blocks_0_attn2_to_k": (640, 1024)}), Family.SD2),
    (lora({"lora_unet_down_blocks_0_attentions_0_proj_in": (320, 320)}), Family.SD2),
    (lora({"lora_te_text_model_encoder_layers_22_mlp_fc1": (4096, 1024)}), Family.SD2),
    (lora({"lora_te_text_model_encoder_layers_3_self_attn_q_proj": (768, 768)}), Family.SD1),
    (lora({IN + "proj_in": (64, 64), f"lora_te2_{TE}": (64, 64)}), Family.SDXL),
    (lora({"lora_unet_input_blocks_4_1_proj_in": (640, 640)}), Family.SDXL),
    (lora({"lora_unet_down_blocks_2_attentions_0" + DEEP: (1280, 1280)}), Family.SDXL),
    (lora({"lora_unet_joint_blocks_0_x_block_attn_qkv": (1, 1)}), Family.SD3),
    (lora({"lora_unet_double_blocks_0_img_attn_qkv": (1, 1)}), Family.FLUX),
    (lora({"lora_unet_mid_block_resnets_0_conv1": (64, 64, 3, 3)}), Family.UNKNOWN),
    (peft({"transformer.single_transformer_blocks.0.attn.to_q": (8, 8)}), Family.FLUX),
    # Both FLUX and SD3 have blocks of these names: the width tells, or the second attention.
    (peft({BLOCK + "0.attn.to_q": (3072, 3072)}), Family.FLUX),
    (peft({BLOCK + "0.attn.to_q": (1536, 1536)}), Family.SD3),
    (lora({"lora_transformer_transformer_blocks_37_ff_net_0_proj": (9728, 2432)}), Family.SD3),
    (peft({"base_model.model.transformer_blocks.0.attn2.to_q": (32, 32)}), Family.SD3),
    (peft({BLOCK + "0.attn.to_q": (32, 32)}), Family.UNKNOWN),
    # Qwen-Image has FLUX's names and width, but 60 blocks.
    (peft({BLOCK + "59.attn.to_q": (3072, 3072)}), Family.UNKNOWN),
    (lora({"lora_unet_transformer_blocks_10_attn_to_q": (3072, 3072)}), Family.UNKNOWN),
    # The width of the text is that of the cross attention's input, in whatever way it is factored.
    (peft({CROSS + "to_k": (1280, 768)}), Family.SD1),
    (peft({CROSS + "to_v": (1280, 2048)}), Family.SDXL),
    ({CROSS + "to_k.hada_w1_b": (4, 1024), CROSS + "to_k.hada_w1_a": (1280, 4)}, Family.SD2),
    ({CROSS + "to_k.lokr_w1": (4, 8), CROSS + "to_k.lokr_w2_b": (4, 256)}, Family.SDXL),
    ({CROSS + "processor.to_k_lora.down.weight": (4, 768)}, Family.SD1),
    # SD1 with SDXL's name for its text encoder, which hosts take
    (lora({IN + "transformer_blocks_0_attn2_to_k": (640, 768), f"lora_te1_{TE}": (3072, 768)}), Family.SD1),
    # Text encoders that several families have
    (lora({f"lora_te1_{TE}": (3072, 768)}), Family.UNKNOWN),
    (lora({f"lora_te2_{TE}": (5120, 1280)}), Family.UNKNOWN),
    (
        lora({f"lora_te2_{TE}": (64, 64), "lora_te3_encoder_block_0_layer_0_SelfAttention_q": (8, 8)}),
        Family.SD3,
    ),
    (peft({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (8, 8)}), Family.FLUX),
    (peft({"text_encoder_3.encoder.block.0.layer.0.SelfAttention.q": (8, 8)}), Family.SD3),
]


@pytest.mark.parametrize(("shapes", "family"), LORAS)
def test_loras_are_told_by_their_names_and_shapes(shapes, family):
    found = detect(header(shapes))
    assert (found.family, found.kind) == (family, Kind.LORA)


STYLES = (
    *("lora_unet_", "unet.", "lycoris_", "lora_transformer_", "transformer.", "diffusion_model."),
    *("base_model.model.", "lora_te", "text_encoder"),
)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("file", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_a_narrow_lora_in_any_style_of_names_is_never_taken_for_another_family(file, style):
    shapes = getattr(models, f"{file}_file")()
    targets = module_targets(header(shapes))
    sizes = {name: shapes[target.key] for name, target in targets.items() if name.startswith(style)}
    if sizes:
        found = detect(header(lora(sizes))).family
        left_open = {Family.UNKNOWN} if style.endswith(("te", "encoder")) else set()
        assert found in {Family(file)} | left_open


def test_where_shapes_say_nothing_the_metadata_decides():
    shapes = lora({"lora_unet_mid_block_resnets_0_conv1": (64, 64, 3, 3)})
    stated = {"modelspec.architecture": "stable-diffusion-v1/lora"}
    assert detect(header(shapes, stated)).family is Family.SD1
    assert detect(header(shapes, {"ss_base_model_version": "sd_v2"})).family is Family.SD2


@pytest.mark.parametrize(
    ("stated", "family"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, Family.SDXL),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, Family.SD3),
        ({"modelspec.architecture": "flux-1-dev/lora"}, Family.FLUX),
        ({"ss_base_model_version": "flux1"}, Family.FLUX),
        ({}, Family.UNKNOWN),
    ],
)
def test_a_first_text_encoder_alone_is_of_the_family_that_is_stated(stated, family):
    assert detect(header(lora({f"lora_te1_{TE}": (3072, 768)}), stated)).family is family


def test_peculiarities_are_noted():
    conv = {"lora_unet_mid_block_resnets_0_conv1": (64, 64, 3, 3)}
    assert set(detect(header(lora(conv))).details) == {"conv", "parts"}
    assert detect(header({"a.hada_w1_a": (1, 1)})).layout == "loha"
    assert detect(header({"a.lokr_w1": (1, 1)})).layout == "lokr"
    assert detect(header({"unet.a.processor.to_q_lora.up.weight": (1, 1)})).layout == "diffusers"
    assert detect(header({"lora_unet_a.diff": (1, 1)})).layout == "full"
    assert detect(header({"oft_unet_a.oft_blocks": (1, 1, 1)})).layout == "oft"
    assert set(detect(header(peft({"text_encoder.a": (1, 1), "unet.b": (1, 1, 3, 3)}))).details) == {"conv"}
    assert detect(header(peft({"diffusion_model.a": (1, 1)}))).details["parts"].startswith("U-Net")
    assert detect(header(peft({"text_encoder.a": (1, 1)}))).details["parts"].startswith("text")
    assert "vae" in detect(header(only(FULL, UNET))).details
    assert "vae" not in detect(header(FULL)).details


@pytest.mark.parametrize("shapes", [{}, {"emb_params": (4, 768)}, only(FULL, "first_stage_model.")])
def test_other_files_are_other(shapes):
    assert detect(header(shapes)).kind is Kind.OTHER
