"""Names of LoRA modules against the tensors they change: by hand, and against diffusers' own conversions."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import narrow_models as models
import pytest
from narrow_models import UNET, header

from copier.checkpoint.blocks import block_of, block_of_module
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.names import kohya_modules
from copier.checkpoint.targets import Target, module_targets, written_names

SD15 = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))
TE, TE1, TE2 = "cond_stage_model.model.", "conditioner.embedders.0.", "conditioner.embedders.1."
T5 = "text_encoders.t5xxl.transformer."
FILES = {
    "sd1": models.sd1_file(),
    "sd2": models.sd2_file(),
    "sdxl": models.sdxl_file(),
    "sd3": models.sd3_file(),
    "flux": models.flux_file(),
    "sdxl refiner": models.unet((32, 64, 96, 96), (0, 4, 4, 0), linear=True, label=28)
    | models.open_clip(TE1 + "model."),
    "sd1 alone, without prefix": models.unet(prefix=""),
    "sd3 alone, without prefix": models.sd3(prefix=""),
    "flux alone, without prefix": models.flux(prefix="", guidance=False),
}


def test_of_sd15_we_write_exactly_the_350_names_that_hosts_know_each_for_its_weight():
    checkpoint = header({key: shape for key, (_, shape) in SD15["checkpoint"].items()})
    written = written_names(checkpoint)
    assert set(written) == {*SD15["linear"], *SD15["locon_extra"]}
    assert dict(written) == {name: Target(module.ldm) for name, module in kohya_modules().items()}


HALF = "transformer_blocks.0.attn"
# family, name in a LoRA file, key without UNET's prefix where it is the U-Net's, rows
NAMED = [
    # kohya, with diffusers' paths; LDM counts blocks through, diffusers by level
    ("sd1", "lora_unet_down_blocks_1_attentions_0_proj_in", "input_blocks.4.1.proj_in", None),
    ("sd1", "lora_unet_down_blocks_0_downsamplers_0_conv", "input_blocks.3.0.op", None),
    ("sd1", "lora_unet_down_blocks_3_resnets_1_time_emb_proj", "input_blocks.11.0.emb_layers.1", None),
    ("sd1", "lora_unet_mid_block_resnets_1_conv2", "middle_block.2.out_layers.3", None),
    ("sd1", "lora_unet_up_blocks_0_upsamplers_0_conv", "output_blocks.2.1.conv", None),
    ("sd1", "lora_unet_up_blocks_1_upsamplers_0_conv", "output_blocks.5.2.conv", None),
    ("sd1", "lora_unet_up_blocks_3_resnets_2_conv_shortcut", "output_blocks.11.0.skip_connection", None),
    ("sd1", "lora_unet_conv_in", "input_blocks.0.0", None),
    ("sd1", "lora_unet_time_embedding_linear_2", "time_embed.2", None),
    # with LDM's paths, peft's dots, LyCORIS' prefix, diffusers' first LoRAs
    ("sd1", "lora_unet_output_blocks_11_1_proj_out", "output_blocks.11.1.proj_out", None),
    ("sd1", "unet.up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out", None),
    ("sd1", "base_model.model.up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out", None),
    ("sd1", "lycoris_up_blocks_3_attentions_2_proj_out", "output_blocks.11.1.proj_out", None),
    ("sd1", "diffusion_model.output_blocks.11.1.proj_out", "output_blocks.11.1.proj_out", None),
    (
        "sd1",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out",
        "middle_block.1.transformer_blocks.0.attn2.to_out.0",
        None,
    ),
    (
        "sd1",
        "lora_te_text_model_encoder_layers_1_mlp_fc2",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2",
        None,
    ),
    (
        "sd1",
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj",
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.out_proj",
        None,
    ),
    (
        "sd1",
        "text_encoder.text_model.encoder.layers.1.self_attn.to_out",
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.out_proj",
        None,
    ),
    # OpenCLIP: width 24, q, k, v one below the other
    *(
        (
            "sd2",
            f"lora_te_text_model_encoder_layers_7_self_attn_{part}_proj",
            f"{TE}transformer.resblocks.7.attn.in_proj_weight",
            (24 * number, 24 * number + 24),
        )
        for number, part in enumerate("qkv")
    ),
    (
        "sd2",
        "lora_te_text_model_encoder_layers_7_self_attn_out_proj",
        f"{TE}transformer.resblocks.7.attn.out_proj",
        None,
    ),
    ("sd2", "lora_te_text_model_encoder_layers_7_mlp_fc1", f"{TE}transformer.resblocks.7.mlp.c_fc", None),
    ("sd2", "lora_unet_up_blocks_1_upsamplers_0_conv", "output_blocks.5.2.conv", None),
    # SDXL: three levels, the outermost without transformers
    (
        "sdxl",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q",
        "input_blocks.8.1.transformer_blocks.9.attn1.to_q",
        None,
    ),
    (
        "sdxl",
        "lora_unet_down_blocks_2_attentions_1_transformer_blocks_9_attn1_to_q",
        "input_blocks.8.1.transformer_blocks.9.attn1.to_q",
        None,
    ),
    ("sdxl", "unet.up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv", None),
    ("sdxl", "lora_unet_up_blocks_2_resnets_0_conv1", "output_blocks.6.0.in_layers.2", None),
    ("sdxl", "unet.add_embedding.linear_1", "label_emb.0.0", None),
    (
        "sdxl",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        f"{TE1}transformer.text_model.encoder.layers.0.mlp.fc1",
        None,
    ),
    (
        "sdxl",
        "lora_te2_text_model_encoder_layers_1_mlp_fc2",
        f"{TE2}model.transformer.resblocks.1.mlp.c_proj",
        None,
    ),
    (
        "sdxl",
        "text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj",
        f"{TE2}model.transformer.resblocks.1.attn.in_proj_weight",
        (48, 72),
    ),
    # FLUX: width 32, feed-forward 128
    ("flux", "lora_unet_double_blocks_1_img_attn_qkv", "double_blocks.1.img_attn.qkv", None),
    ("flux", f"transformer.{HALF}.to_q", "double_blocks.0.img_attn.qkv", (0, 32)),
    ("flux", f"transformer.{HALF}.to_v", "double_blocks.0.img_attn.qkv", (64, 96)),
    ("flux", f"transformer.{HALF}.add_k_proj", "double_blocks.0.txt_attn.qkv", (32, 64)),
    ("flux", f"base_model.model.{HALF}.to_out.0", "double_blocks.0.img_attn.proj", None),
    ("flux", "lora_transformer_transformer_blocks_0_attn_to_add_out", "double_blocks.0.txt_attn.proj", None),
    ("flux", "transformer.transformer_blocks.1.ff.net.0.proj", "double_blocks.1.img_mlp.0", None),
    ("flux", "transformer.transformer_blocks.1.ff_context.net.2", "double_blocks.1.txt_mlp.2", None),
    ("flux", "transformer.transformer_blocks.1.norm1.linear", "double_blocks.1.img_mod.lin", None),
    ("flux", "transformer.single_transformer_blocks.1.attn.to_k", "single_blocks.1.linear1", (32, 64)),
    ("flux", "transformer.single_transformer_blocks.1.proj_mlp", "single_blocks.1.linear1", (96, 224)),
    ("flux", "transformer.single_transformer_blocks.1.proj_out", "single_blocks.1.linear2", None),
    ("flux", "lycoris_single_transformer_blocks_1_norm_linear", "single_blocks.1.modulation.lin", None),
    ("flux", "diffusion_model.single_blocks.1.linear1", "single_blocks.1.linear1", None),
    ("flux", "transformer.x_embedder", "img_in", None),
    ("flux", "transformer.context_embedder", "txt_in", None),
    ("flux", "transformer.time_text_embed.text_embedder.linear_2", "vector_in.out_layer", None),
    (
        "flux",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
        None,
    ),
    (
        "flux",
        "lora_te3_encoder_block_1_layer_0_SelfAttention_q",
        f"{T5}encoder.block.1.layer.0.SelfAttention.q",
        None,
    ),
    (
        "flux",
        "text_encoder_2.encoder.block.1.layer.1.DenseReluDense.wo",
        f"{T5}encoder.block.1.layer.1.DenseReluDense.wo",
        None,
    ),
    # SD3.5 medium: width 32, a second attention in the first block
    ("sd3", "lora_unet_joint_blocks_0_x_block_attn_qkv", "joint_blocks.0.x_block.attn.qkv", None),
    ("sd3", f"transformer.{HALF}.to_k", "joint_blocks.0.x_block.attn.qkv", (32, 64)),
    ("sd3", f"transformer.{HALF}.add_v_proj", "joint_blocks.0.context_block.attn.qkv", (64, 96)),
    ("sd3", f"lora_transformer_{HALF.replace('.', '_')}2_to_q", "joint_blocks.0.x_block.attn2.qkv", (0, 32)),
    ("sd3", f"base_model.model.{HALF}2.to_out.0", "joint_blocks.0.x_block.attn2.proj", None),
    (
        "sd3",
        "transformer.transformer_blocks.1.ff_context.net.0.proj",
        "joint_blocks.1.context_block.mlp.fc1",
        None,
    ),
    (
        "sd3",
        "transformer.transformer_blocks.1.norm1.linear",
        "joint_blocks.1.x_block.adaLN_modulation.1",
        None,
    ),
    ("sd3", "transformer.pos_embed.proj", "x_embedder.proj", None),
    ("sd3", "transformer.proj_out", "final_layer.linear", None),
    (
        "sd3",
        "lora_te2_text_model_encoder_layers_0_self_attn_k_proj",
        "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.k_proj",
        None,
    ),
    (
        "sd3",
        "text_encoder_3.encoder.block.0.layer.0.SelfAttention.o",
        f"{T5}encoder.block.0.layer.0.SelfAttention.o",
        None,
    ),
]


@pytest.mark.parametrize(("family", "name", "key", "rows"), NAMED, ids=[f"{f} {n}" for f, n, *_ in NAMED])
def test_a_name_stands_for_its_weight(family, name, key, rows):
    shapes = FILES[family]
    full = key if key.endswith("_weight") else f"{key}.weight"
    full = full if full in shapes else UNET + full
    assert full in shapes
    assert module_targets(header(shapes))[name] == Target(full, rows)


def test_a_text_encoder_whose_keys_lack_a_level_has_the_same_names():
    prefix = "cond_stage_model.transformer."
    short = {key.replace("text_model.", ""): shape for key, shape in models.clip(prefix).items()}
    name = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    assert written_names(header(short))[name] == Target(f"{prefix}encoder.layers.1.mlp.fc1.weight")
    assert len(written_names(header(short))) == len(written_names(header(models.clip(prefix)))) == 12


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_without_the_prefix_the_same_names_stand_for_the_same_weights(family):
    def image_names(prefix):
        named = module_targets(header(getattr(models, family)(prefix=prefix))).items()
        return {name: (target.key.removeprefix(prefix), target.rows) for name, target in named}

    bare, prefixed = image_names(""), image_names(UNET)
    assert len(bare) > 150
    assert bare == prefixed


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("flux", "transformer.norm_out.linear"),
        ("sd3", "transformer.norm_out.linear"),
        ("sd3", "transformer.transformer_blocks.2.norm1_context.linear"),
        ("sdxl", "lora_te2_text_projection"),
    ],
)
def test_what_is_stored_in_another_order_has_no_name(family, module):
    assert module not in module_targets(header(FILES[family]))


def test_the_same_module_has_a_name_where_the_order_is_the_same():
    targets = module_targets(header(FILES["sd3"]))
    assert "transformer.transformer_blocks.1.norm1_context.linear" in targets
    assert "lora_unet_final_layer_adaLN_modulation_1" in targets


WRITTEN = {
    "sdxl refiner": [
        "lora_unet_input_blocks_11_0_in_layers_2",
        "lora_te_text_model_encoder_layers_1_self_attn_k_proj",
    ],
    "sd1": ["lora_unet_down_blocks_0_resnets_0_conv1", "lora_te_text_model_encoder_layers_0_mlp_fc1"],
    "sd2": [
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_te_text_model_encoder_layers_22_self_attn_q_proj",
    ],
    "sdxl": [
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_input_blocks_3_0_op",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te2_text_model_encoder_layers_1_self_attn_v_proj",
    ],
    "sd3": [
        "lora_unet_joint_blocks_0_x_block_attn2_qkv",
        "lora_unet_context_embedder",
        "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0",
    ],
    "flux": [
        "lora_unet_single_blocks_1_linear1",
        "lora_unet_guidance_in_in_layer",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ],
    "sd1 alone, without prefix": ["lora_unet_up_blocks_0_upsamplers_0_conv"],
    "sd3 alone, without prefix": ["lora_unet_final_layer_linear"],
    "flux alone, without prefix": ["lora_unet_double_blocks_0_txt_mod_lin"],
}
NEVER_WRITTEN = (
    *("lora_unet_conv_in", "lora_unet_time_embedding_linear_1", "lora_unet_label_emb_0_0"),
    *("lora_te_text_model_encoder_layers_23_mlp_fc1", "lora_te_text_model_embeddings_token_embedding"),
)


@pytest.mark.parametrize("family", FILES)
def test_the_written_names_are_kohyas_one_for_each_weight_and_known_to_the_reader(family):
    checkpoint = header(FILES[family])
    written, read = written_names(checkpoint), module_targets(checkpoint)
    assert {*WRITTEN[family]} <= set(written)
    assert not {*NEVER_WRITTEN} & set(written)
    assert len(set(written.values())) == len(written)
    assert {name: read[name] for name in written} == dict(written)
    order = list(checkpoint.tensors)
    places = [order.index(target.key) for target in written.values()]
    assert places == sorted(places)


@pytest.mark.parametrize("family", FILES)
def test_the_parts_of_a_fused_weight_lie_side_by_side_and_make_up_the_whole(family):
    parts: dict[str, set[tuple[int, int]]] = {}
    for target in module_targets(header(FILES[family])).values():
        if target.rows is not None:
            parts.setdefault(target.key, set()).add(target.rows)
    assert bool(parts) == (not family.startswith("sd1"))
    for key, rows in parts.items():
        ends = [0, *(end for _, end in sorted(rows))]
        assert sorted(rows) == list(itertools.pairwise(ends))
        assert ends[-1] == FILES[family][key][0]


@pytest.mark.parametrize("shape", [(), (7,), (0, 0), (7, 7), (2, 3, 0), (7, 1, 1, 1, 1)])
@pytest.mark.parametrize("family", FILES)
def test_weights_of_any_shape_are_taken_or_left_out_without_an_error(family, shape):
    checkpoint = header(dict.fromkeys(FILES[family], shape))
    targets = {**module_targets(checkpoint), **written_names(checkpoint)}
    assert all(target.rows is None or target.rows[1] <= shape[0] for target in targets.values())


def test_numbers_of_any_length_in_keys_do_no_harm():
    long = "9" * 5000  # int() refuses more than 4300 digits
    shapes = {
        key.replace(".1.", f".{long}."): shape
        for part in (models.open_clip(TE), models.sd3(), models.unet((8, 8), (0, 1), linear=True))
        for key, shape in part.items()
    }
    names = [*module_targets(header(shapes)), *shapes][::4]
    assert any(long in name for name in names)
    assert detect(header(models.lora(dict.fromkeys(names, (4, 4))))).kind is Kind.LORA
    assert {block_of(name) for name in names} | {block_of_module(name, Family.SD3) for name in names}


# The second route: diffusers' own conversions of single files, run on weights whose rows are numbered.


def numbered(shapes):
    torch = pytest.importorskip("torch")
    tensors = {}
    for number, (key, shape) in enumerate(shapes.items()):
        height = shape[0] if shape else 1
        rows = torch.arange(height, dtype=torch.float64) + number * 1_000_000
        tensors[key] = rows.reshape(height, *[1] * (len(shape) - 1)) if shape else rows[0]
    return tensors


def origin(tensor, shapes):
    """The target that the rows of a converted weight come from; None if they are not in order."""
    rows = tensor.flatten().tolist()
    number, start = divmod(int(rows[0]), 1_000_000)
    key = list(shapes)[number]
    if rows != [rows[0] + step for step in range(len(rows))]:
        return None
    return Target(key, None if len(rows) == shapes[key][0] else (start, start + len(rows)))


UNETS = {
    "sd1": (models.unet(), {}),
    "sd2": (models.unet(linear=True), {}),
    "sdxl": (
        models.unet((32, 64, 96), (0, 2, 10), linear=True, label=28),
        {"addition_embed_type": "text_time"},
    ),
}


NO_MODULE = re.compile(r"text_model\.embeddings\.|text_projection")
"""What OpenCLIP stores as parameters, not in layers."""


OLD_NAME = re.compile(r"processor|class_embedding|self_attn\.to_")
"""What diffusers called the same modules before."""


def conversions():
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    for shapes, config in UNETS.values():
        converted = single_file.convert_ldm_unet_checkpoint(
            numbered(shapes), {"layers_per_block": 2, **config}
        )
        yield "unet.", shapes, converted
    width = 3072  # a constant of diffusers' conversion
    shapes = models.flux(width=width)
    convert = single_file.convert_flux_transformer_checkpoint_to_diffusers
    yield "transformer.", shapes, convert(numbered(shapes))
    shapes = models.sd3(dual=2)
    convert = single_file.convert_sd3_transformer_checkpoint_to_diffusers
    yield "transformer.", shapes, convert(numbered(shapes))
    shapes = models.open_clip(TE2 + "model.")
    yield (
        "text_encoder_2.",
        shapes,
        single_file.convert_open_clip_checkpoint(None, numbered(shapes), TE2 + "model."),
    )


def test_diffusers_converts_each_weight_to_the_name_that_we_read_and_to_no_other():
    swapped = 0
    for prefix, shapes, converted in conversions():
        targets = module_targets(header(shapes))
        theirs = {
            f"{prefix}{key.removesuffix('.weight')}": origin(tensor, shapes)
            for key, tensor in converted.items()
            if key.endswith(".weight") and tensor.ndim >= 2 and not NO_MODULE.search(key)
        }
        ours = {name: target for name, target in targets.items() if name.startswith(prefix)}
        in_order = {name: target for name, target in theirs.items() if target is not None}
        swapped += len(theirs) - len(in_order)
        assert {name: ours.get(name) for name in in_order} == in_order
        assert all(OLD_NAME.search(name) for name in set(ours) - set(theirs))
        assert len(in_order) > 10
    assert swapped == 3  # norm_out of both, and SD3's last context block
