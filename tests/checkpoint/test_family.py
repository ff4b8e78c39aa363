"""Families are told from names and structure; what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.fit import require_lora_fits, shape_problem
from copier.checkpoint.header import Header, TensorInfo
from copier.errors import BadCheckpoint, BadInput

SD15 = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))
FULL = {key: tuple(shape) for key, (_, shape) in SD15["checkpoint"].items()}
NARROW = {key: tuple(min(size, 64) for size in shape) for key, shape in FULL.items()}
LINEAR = {name: tuple(shape) for name, shape in SD15["linear"].items()}


def header(shapes, metadata=None):
    tensors = {key: TensorInfo("F16", tuple(shape), 0, 0) for key, shape in shapes.items()}
    return Header(tensors=tensors, metadata=metadata or {}, data_start=0, file_size=0)


def lora(shapes, rank=4):
    tensors = {}
    for name, (out, *rest) in shapes.items():
        tensors[f"{name}.lora_up.weight"] = (out, rank, *([1] * len(rest[1:])))
        tensors[f"{name}.lora_down.weight"] = (rank, *rest)
        tensors[f"{name}.alpha"] = ()
    return tensors


def only(shapes, *starts):
    return {key: shape for key, shape in shapes.items() if key.startswith(starts)}


UNET = "model.diffusion_model."
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


@pytest.mark.parametrize(("shapes", "family", "layout"), CHECKPOINTS)
def test_checkpoints_are_told_by_their_keys(shapes, family, layout):
    found = detect(header(shapes))
    assert (found.family, found.kind, found.layout) == (family, Kind.CHECKPOINT, layout)


TE, IN, DEEP = "lora_te", "lora_unet_down_blocks_1_attentions_0_", "_transformer_blocks_3_attn1_to_q"
LORAS = [
    (lora(LINEAR), Family.SD1),
    (lora({name: tuple(min(s, 64) for s in shape) for name, shape in LINEAR.items()}), Family.SD1),
    (lora({IN + "transformer_blocks_0_attn2_to_k": (640, 1024)}), Family.SD2),
    (lora({"lora_unet_down_blocks_0_attentions_0_proj_in": (320, 320)}), Family.SD2),
    (lora({"lora_te_text_model_encoder_layers_22_mlp_fc1": (4096, 1024)}), Family.SD2),
    (lora({"lora_te_text_model_encoder_layers_3_self_attn_q_proj": (768, 768)}), Family.SD1),
    (lora({IN + "proj_in": (64, 64), TE + "2_text_model_encoder_layers_3_mlp_fc1": (64, 64)}), Family.SDXL),
    (lora({"lora_unet_input_blocks_4_1_proj_in": (640, 640)}), Family.SDXL),
    (lora({"lora_unet_down_blocks_2_attentions_0" + DEEP: (1280, 1280)}), Family.SDXL),
    (lora({"lora_unet_joint_blocks_0_x_block_attn_qkv": (1, 1)}), Family.SD3),
    (lora({"lora_unet_double_blocks_0_img_attn_qkv": (1, 1)}), Family.FLUX),
    (lora({"lora_unet_mid_block_resnets_0_conv1": (64, 64, 3, 3)}), Family.UNKNOWN),
    ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, Family.FLUX),
]


@pytest.mark.parametrize(("shapes", "family"), LORAS)
def test_loras_are_told_by_their_names_and_shapes(shapes, family):
    found = detect(header(shapes))
    assert (found.family, found.kind) == (family, Kind.LORA)


def test_where_shapes_say_nothing_the_metadata_decides():
    shapes = lora({"lora_unet_mid_block_resnets_0_conv1": (64, 64, 3, 3)})
    stated = {"modelspec.architecture": "stable-diffusion-v1/lora"}
    assert detect(header(shapes, stated)).family is Family.SD1
    assert detect(header(shapes, {"ss_base_model_version": "sd_v2"})).family is Family.SD2


def test_peculiarities_are_noted():
    conv = {"lora_unet_mid_block_resnets_0_conv1": (64, 64, 3, 3)}
    assert set(detect(header(lora(conv))).details) == {"conv", "parts"}
    assert detect(header({"a.hada_w1_a": (1, 1)})).layout == "loha"
    assert detect(header({"a.lokr_w1": (1, 1)})).layout == "lokr"
    assert "vae" in detect(header(only(FULL, UNET))).details
    assert "vae" not in detect(header(FULL)).details


@pytest.mark.parametrize("shapes", [{}, {"emb_params": (4, 768)}, only(FULL, "first_stage_model.")])
def test_other_files_are_other(shapes):
    assert detect(header(shapes)).kind is Kind.OTHER


def test_a_lora_that_fits_gives_the_key_of_every_module():
    targets = require_lora_fits(header(lora(LINEAR)), header(FULL))
    assert set(targets) == set(LINEAR)
    assert {target.key for target in targets.values()} <= set(FULL)


def test_a_lora_of_another_width_is_refused_with_names_and_shapes_of_all_modules():
    with pytest.raises(BadInput, match=r"264 modules of the LoRA do not fit") as refused:
        require_lora_fits(header(lora(LINEAR)), header(NARROW))
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == list(LINEAR)
    assert all("[64, 64" in line for line in lines)


def test_a_lora_of_another_family_is_refused():
    xl = header(lora({"lora_unet_input_blocks_4_1_proj_in": (640, 640)}))
    with pytest.raises(BadInput, match="LoRA is for SDXL, the checkpoint is SD1"):
        require_lora_fits(xl, header(FULL))


def test_a_module_that_matches_nothing_is_named():
    shapes = lora({**LINEAR, "lora_unet_nowhere": (64, 64)})
    with pytest.raises(BadInput, match=r"(?s)1 module of the LoRA does not fit.*lora_unet_nowhere"):
        require_lora_fits(header(shapes), header(FULL))


def test_a_module_without_one_factor_is_refused():
    shapes = lora(LINEAR)
    name = next(iter(LINEAR))
    del shapes[f"{name}.lora_up.weight"]
    with pytest.raises(BadCheckpoint, match=name):
        require_lora_fits(header(shapes), header(FULL))


def test_a_checkpoint_and_a_lora_cannot_change_places():
    with pytest.raises(BadInput, match="given as LoRA is none"):
        require_lora_fits(header(FULL), header(FULL))
    with pytest.raises(BadInput, match="given as checkpoint is none"):
        require_lora_fits(header(lora(LINEAR)), header(lora(LINEAR)))


@pytest.mark.parametrize(
    ("up", "down", "weight", "fits"),
    [
        ((8, 2), (2, 6), (8, 6), True),
        ((8, 2), (2, 6), (8, 6, 1, 1), True),
        ((8, 2, 1, 1), (2, 6, 1, 1), (8, 6), True),
        ((8, 2, 1, 1), (2, 6, 3, 3), (8, 6, 3, 3), True),
        ((8, 2, 1, 1), (2, 6, 3, 3), (8, 6), False),
        ((8, 2), (3, 6), (8, 6), False),
        ((6, 2), (2, 8), (8, 6), False),
        ((8,), (2, 6), (8, 6), False),
    ],
)
def test_shapes_fit_up_to_axes_of_size_one(up, down, weight, fits):
    assert (shape_problem(up, down, weight) == "") is fits
