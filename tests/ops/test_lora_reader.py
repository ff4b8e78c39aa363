"""LoRA files of every kind and layout: lazy is whole, names are the hosts', damage is named."""

from __future__ import annotations

import json
import math

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.algebra.parts import delta_from_parts
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.names import kohya_modules
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.errors import BadCheckpoint, BadInput, UnknownName
from copier.ops.combine import combine
from copier.ops.inspect import inspect
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.ops.lora_reader import LoraReader

TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
OUT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
CONV = "lora_unet_up_blocks_0_resnets_0_conv1"
FACTORS = {TEXT: ((32, 3), (3, 12)), QUERY: ((24, 2), (2, 20)), OUT: ((24, 2), (2, 20))}
CONV_FACTORS = ((16, 4, 1, 1), (4, 10, 3, 3))

LAYOUTS = {
    "kohya": (".lora_up.weight", ".lora_down.weight", lambda module: module.kohya),
    "peft": (".lora_B.weight", ".lora_A.weight", lambda module: dotted(module)),
    "peft with an adapter": (
        ".lora_B.default.weight",
        ".lora_A.default.weight",
        lambda module: "base_model.model." + dotted(module),
    ),
    "diffusers": (".lora.up.weight", ".lora.down.weight", lambda module: dotted(module)),
    "diffusers' oldest": (
        "_lora.up.weight",
        "_lora.down.weight",
        lambda module: (
            dotted(module)
            .replace(".to_", ".processor.to_")
            .replace("to_out.0", "to_out")
            .replace("mlp.fc1", "mlp.fc1")
        ),
    ),
}


def dotted(module):
    return ("text_encoder." if module.kohya.startswith("lora_te_") else "unet.") + module.diffusers


def factors(shapes):
    return {name: (torch.randn(up), torch.randn(down)) for name, (up, down) in shapes.items()}


def written(path, layout, values, alphas=None):
    """A LoRA file in one of the layouts, and what it changes by the definition, in float64."""
    up_end, down_end, rename = LAYOUTS[layout]
    tensors, truth = {}, {}
    for name, (up, down) in values.items():
        theirs = rename(kohya_modules()[name])
        tensors[theirs + up_end], tensors[theirs + down_end] = up, down
        scale = 1.0
        if alphas is not None:
            tensors[theirs + ".alpha"] = torch.tensor(alphas)
            scale = alphas / down.shape[0]
        dense = scale * (up.double().flatten(1) @ down.double().flatten(1))
        truth[name] = dense.reshape(up.shape[0], *down.shape[1:])
    write_tensors(path, tensors)
    return truth


def close(left, right):
    return set(left) == set(right) and all(
        float((left[name].double() - right[name]).norm()) <= 1e-6 * float(right[name].norm())
        for name in right
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_modules_under_kohyas_names_and_comes_back_as_kohyas(tmp_path, layout):
    shapes = FACTORS if "oldest" in layout else {**FACTORS, CONV: CONV_FACTORS}
    alphas = None if layout.startswith(("peft w", "diffusers'")) else 1.5
    truth = written(tmp_path / "a.safetensors", layout, factors(shapes), alphas)
    with LoraReader(tmp_path / "a.safetensors") as reader:
        assert dict(reader.shapes) == {name: tuple(right.shape) for name, right in truth.items()}
        assert close({name: reader.delta(name).dense() for name in reader.modules}, truth)
    read = read_lora(tmp_path / "a.safetensors")
    assert close({name: delta.dense() for name, delta in read.weights.items()}, truth)
    write_lora(tmp_path / "b.safetensors", read.weights, {}, dtype="fp32")
    ends = (".lora_up.weight", ".lora_down.weight", ".alpha")
    assert set(read_header(tmp_path / "b.safetensors").tensors) == {n + end for n in shapes for end in ends}
    again = read_lora(tmp_path / "b.safetensors").weights
    assert close({name: delta.dense() for name, delta in again.items()}, truth)


def test_the_name_of_an_adapter_hides_no_family(tmp_path):
    """SDXL's first text encoder is lora_te1_, which only the width of its cross attention tells here."""
    cross, text = (
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "text_encoder.text_model.x",
    )
    tensors = {}
    for name, width in ((cross, 2048), (text, 8)):
        tensors[f"{name}.lora_A.mine.weight"] = torch.randn(2, width)
        tensors[f"{name}.lora_B.mine.weight"] = torch.randn(4, 2)
    write_tensors(tmp_path / "a.safetensors", tensors)
    read = read_lora(tmp_path / "a.safetensors")
    assert read.family is Family.SDXL
    assert {name[:9] for name in read.weights} == {"lora_unet", "lora_te1_"}


def kinds():
    """Module -> parts of one file that has every kind."""
    return {
        TEXT: {"hada_w1_a": (32, 3), "hada_w1_b": (3, 12), "hada_w2_a": (32, 3), "hada_w2_b": (3, 12)},
        QUERY: {"lokr_w1": (4, 5), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 4)},
        OUT: {"diff": (24, 20), "diff_b": (24,)},
        CONV: {
            "lora_up.weight": (16, 4, 1, 1),
            "lora_mid.weight": (4, 4, 3, 3),
            "lora_down.weight": (4, 10, 1, 1),
        },
        "lora_unet_down_blocks_0_resnets_0_norm1": {"w_norm": (10,), "b_norm": (10,)},
    }


def mixed(path, dtype=torch.float16):
    tensors = {
        f"{name}.{part}": torch.randn(shape).to(dtype)
        for name, parts in kinds().items()
        for part, shape in parts.items()
    }
    tensors |= {f"{name}.alpha": torch.tensor(1.0, dtype=dtype) for name in (TEXT, QUERY, CONV)}
    write_tensors(path, tensors)
    return tensors


def test_lazy_is_whole_bit_for_bit_for_every_kind(tmp_path):
    tensors = mixed(tmp_path / "a.safetensors")
    with LoraReader(tmp_path / "a.safetensors") as reader:
        shapes, deltas = dict(reader.shapes), {name: reader.delta(name) for name in reader.modules}
    for name, parts in kinds().items():
        short = {
            part.removeprefix("lora_").removesuffix(".weight").replace("w_norm", "diff"): tensors[
                f"{name}.{part}"
            ]
            for part in parts
            if part not in ("diff_b", "b_norm")
        }
        if f"{name}.alpha" in tensors:
            short["alpha"] = tensors[f"{name}.alpha"]
        whole = delta_from_parts(short)
        assert torch.equal(deltas[name].dense(0.7), whole.dense(0.7))
        assert shapes[name] == deltas[name].shape == tuple(whole.dense().shape)
    assert torch.equal(deltas[OUT + ".bias"].dense(), tensors[OUT + ".diff_b"].float())
    assert set(deltas) == {*kinds(), OUT + ".bias", "lora_unet_down_blocks_0_resnets_0_norm1.bias"}


def test_a_delta_reads_only_its_own_modules_tensors(tmp_path, monkeypatch):
    mixed(tmp_path / "a.safetensors")
    asked = []
    original = TensorReader.tensor
    monkeypatch.setattr(TensorReader, "tensor", lambda self, key: asked.append(key) or original(self, key))
    with LoraReader(tmp_path / "a.safetensors") as reader:
        assert len(reader.shapes) == 7
        assert asked == []
        reader.delta(QUERY)
        assert sorted(asked) == sorted(reader.modules[QUERY].values())
        with pytest.raises(UnknownName, match="lora_unet_nowhere"):
            reader.delta("lora_unet_nowhere")


def test_what_has_no_factors_is_refused_for_sums_with_the_way_out(tmp_path):
    mixed(tmp_path / "a.safetensors")
    with pytest.raises(BadCheckpoint, match=r"is a LoHa.*merge it into a checkpoint, and extract"):
        read_lora(tmp_path / "a.safetensors")
    with pytest.raises(BadCheckpoint, match="LoHa"):
        combine([(tmp_path / "a.safetensors", 1.0)], tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_transformers_lora_in_pefts_layout_is_written_back_in_it_without_alpha(tmp_path):
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    up, down = torch.randn(8, 2), torch.randn(2, 6)
    tensors = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down, f"{name}.alpha": torch.tensor(1.0)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    combine([(tmp_path / "a.safetensors", -3.0)], tmp_path / "b.safetensors", exact=True, dtype="fp32")
    header = read_header(tmp_path / "b.safetensors")
    assert set(header.tensors) == {f"{name}.lora_B.weight", f"{name}.lora_A.weight"}
    assert header.metadata["ss_network_alpha"] == "2.0"
    assert header.metadata["modelspec.implementation"] == "https://github.com/black-forest-labs/flux"
    with TensorReader(tmp_path / "b.safetensors") as reader:
        product = reader.tensor(f"{name}.lora_B.weight") @ reader.tensor(f"{name}.lora_A.weight")
    torch.testing.assert_close(product, -1.5 * (up @ down))
    scaled = LoraWeights({name: LowRankDelta(up, down, alpha=5.0)})
    write_lora(tmp_path / "c.safetensors", scaled, {}, dtype="fp32")
    torch.testing.assert_close(
        read_lora(tmp_path / "c.safetensors").weights[name].dense(), scaled[name].dense()
    )


def plain(path, names, rank=2):
    values = {name: LowRankDelta(torch.randn(6, rank), torch.randn(rank, 4), float(rank)) for name in names}
    write_lora(path, LoraWeights(values), {}, dtype="fp32")
    return values


XL_NAMES = [
    (
        "down_blocks_1_attentions_0_transformer_blocks_3_attn1_to_q",
        "input_blocks_4_1_transformer_blocks_3_attn1_to_q",
    ),
    ("down_blocks_2_attentions_1_proj_in", "input_blocks_8_1_proj_in"),
    ("down_blocks_0_resnets_1_conv1", "input_blocks_2_0_in_layers_2"),
    ("down_blocks_2_resnets_0_conv_shortcut", "input_blocks_7_0_skip_connection"),
    ("down_blocks_1_downsamplers_0_conv", "input_blocks_6_0_op"),
    ("mid_block_attentions_0_proj_out", "middle_block_1_proj_out"),
    ("mid_block_resnets_1_time_emb_proj", "middle_block_2_emb_layers_1"),
    ("up_blocks_0_attentions_2_proj_in", "output_blocks_2_1_proj_in"),
    ("up_blocks_1_upsamplers_0_conv", "output_blocks_5_2_conv"),
    ("up_blocks_2_resnets_2_conv2", "output_blocks_8_0_out_layers_3"),
    ("conv_in", "input_blocks_0_0"),
    ("time_embedding_linear_2", "time_embed_2"),
    ("add_embedding_linear_1", "label_emb_0_0"),
]


def test_two_namings_of_sdxl_are_summed_as_the_same_modules(tmp_path):
    left = plain(tmp_path / "a.safetensors", [f"lora_unet_{ours}" for ours, _ in XL_NAMES])
    right = plain(tmp_path / "b.safetensors", [f"lora_unet_{theirs}" for _, theirs in XL_NAMES])
    terms = [(tmp_path / "a.safetensors", 1.0), (tmp_path / "b.safetensors", -2.0)]
    combine(terms, tmp_path / "c.safetensors", exact=True, dtype="fp32")
    total = read_lora(tmp_path / "c.safetensors").weights
    assert set(total) == set(right)
    for ours, theirs in XL_NAMES:
        expected = left[f"lora_unet_{ours}"].dense() - 2 * right[f"lora_unet_{theirs}"].dense()
        torch.testing.assert_close(total[f"lora_unet_{theirs}"].dense(), expected)
    combine([terms[0]], tmp_path / "d.safetensors", exact=True)
    assert set(read_lora(tmp_path / "d.safetensors").weights) == set(left)


def test_the_text_encoder_of_sd1_may_be_called_the_first(tmp_path):
    other = TEXT.replace("lora_te_", "lora_te1_")
    down = "lora_unet_down_blocks_0_attentions_0_proj_in"
    left = plain(tmp_path / "a.safetensors", [TEXT, down])
    right = plain(tmp_path / "b.safetensors", [other, down])
    terms = [(tmp_path / "a.safetensors", 1.0), (tmp_path / "b.safetensors", 1.0)]
    combine(terms, tmp_path / "c.safetensors", exact=True, dtype="fp32")
    total = read_lora(tmp_path / "c.safetensors").weights
    assert set(total) == {TEXT, down}
    torch.testing.assert_close(total[TEXT].dense(), left[TEXT].dense() + right[other].dense())


def test_a_transformer_with_q_k_and_v_apart_and_one_with_them_fused_are_not_summed(tmp_path):
    plain(
        tmp_path / "a.safetensors",
        ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"],
    )
    plain(tmp_path / "b.safetensors", ["transformer.single_transformer_blocks.0.attn.to_q"])
    plain(tmp_path / "c.safetensors", ["lora_transformer_single_transformer_blocks_0_attn_to_q"])
    with pytest.raises(BadInput, match=r"q, k and v as one module.*convert one of them"):
        combine([(tmp_path / f"{name}.safetensors", 1.0) for name in "ab"], tmp_path / "d.safetensors")
    combine(
        [(tmp_path / f"{name}.safetensors", 1.0) for name in "bc"], tmp_path / "d.safetensors", exact=True
    )
    (name,) = read_lora(tmp_path / "d.safetensors").weights
    assert name == "lora_transformer_single_transformer_blocks_0_attn_to_q"


ONE = torch.ones(2, 2)
GOOD = {f"{QUERY}.lora_up.weight": ONE, f"{QUERY}.lora_down.weight": ONE}
BROKEN = {
    "one factor": ({f"{TEXT}.lora_up.weight": ONE}, f"{TEXT}.*no down"),
    "unknown key": ({"x.weight": ONE}, "x.weight.*no LoRA that is known"),
    "glora": ({f"{TEXT}.a1.weight": ONE}, "GLoRA"),
    "dora": ({f"{QUERY}.dora_scale": ONE}, f"{QUERY}.*DoRA"),
    "peft dora": ({"unet.a.lora_magnitude_vector": ONE}, "DoRA"),
    "integers": ({f"{QUERY}.lora_up.weight": ONE.int()}, "int32: weights must be floating"),
    "no size": ({f"{QUERY}.lora_up.weight": torch.ones(2, 0)}, r"shape \[2, 0\]"),
    "shapes": ({f"{QUERY}.lora_up.weight": torch.ones(2, 3)}, "do not multiply"),
    "alpha": ({f"{QUERY}.alpha": torch.ones(3)}, "one number"),
    "axes": ({f"{QUERY}.lora_up.weight": torch.ones(1, 2, 1, 1, 1)}, "1 to 4 axes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_that_the_header_shows_is_named_before_a_tensor_is_read(tmp_path, case):
    extra, message = BROKEN[case]
    write_tensors(tmp_path / "a.safetensors", {**GOOD, **extra})
    with LoraReader(tmp_path / "a.safetensors") as reader:
        with pytest.raises(BadCheckpoint, match=message):
            _ = reader.shapes
        for name in set(reader.problems) & set(reader.modules):
            with pytest.raises(BadCheckpoint, match=name):
                reader.delta(name)
    with pytest.raises(BadCheckpoint, match=message):
        read_lora(tmp_path / "a.safetensors")
    found = inspect(tmp_path / "a.safetensors")
    assert len(found["problems"]) == 1
    assert found["tensors"] == len({**GOOD, **extra})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_named_when_their_module_is_read(tmp_path, value):
    tensors = {**GOOD, f"{TEXT}.lora_up.weight": ONE, f"{TEXT}.lora_down.weight": torch.full((2, 2), value)}
    write_tensors(tmp_path / "a.safetensors", tensors)
    with LoraReader(tmp_path / "a.safetensors") as reader:
        assert set(reader.shapes) == {QUERY, TEXT}
        reader.delta(QUERY)
        with pytest.raises(BadCheckpoint, match=f"{TEXT}.*NaN or infinite"):
            reader.delta(TEXT)
    assert set(inspect(tmp_path / "a.safetensors")["problems"]) == {TEXT}


def test_a_file_without_modules_is_no_lora(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": ONE})
    with pytest.raises(BadInput, match="is no LoRA"):
        LoraReader(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_every_floating_dtype_is_read(tmp_path, dtype):
    up, down = torch.randn(4, 2).to(dtype), torch.randn(2, 3).to(dtype)
    write_tensors(
        tmp_path / "a.safetensors", {f"{QUERY}.lora_up.weight": up, f"{QUERY}.lora_down.weight": down}
    )
    delta = read_lora(tmp_path / "a.safetensors").weights[QUERY]
    assert torch.equal(delta.up, up.float())
    assert delta.scale == 1.0


def test_inspect_counts_modules_by_kind_and_place_with_norms_by_block(tmp_path):
    mixed(tmp_path / "a.safetensors", torch.float32)
    found = inspect(tmp_path / "a.safetensors")
    assert json.loads(json.dumps(found)) == found
    assert found["kinds"] == {"loha": 1, "lokr": 1, "lora": 1, "full": 4}
    assert found["modules"]["text"] == 1
    assert found["ranks"] == {"text": {"3": 1}, "linear": {"2": 1}, "conv": {"4": 1}}
    assert found["scales"] == {"0.25": 1, "0.333333": 1, "0.5": 1}
    assert found["problems"] == {}
    with LoraReader(tmp_path / "a.safetensors") as reader:
        norms = {name: float(reader.delta(name).dense().norm()) for name in reader.modules}
    assert math.isclose(found["norm"], math.hypot(*norms.values()), rel_tol=1e-5)
    first = math.hypot(*(norm for name, norm in norms.items() if "down_blocks_0" in name))
    assert math.isclose(found["norms"]["IN01"], first, rel_tol=1e-5)


def test_inspect_describes_the_parts_of_a_checkpoint(tmp_path):
    half = torch.zeros(2, 3, dtype=torch.float16)
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": half,
        "model.diffusion_model.out.2.bias": torch.zeros(5),
        "first_stage_model.decoder.conv_in.weight": torch.zeros(4),
        "conditioner.embedders.0.transformer.x": half,
        "conditioner.embedders.1.model.y": half,
        "alphas_cumprod": torch.zeros(7),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    parts = inspect(tmp_path / "a.safetensors")["parts"]
    assert parts["unet"] == {"tensors": 2, "parameters": 11, "dtypes": {"F16": 6, "F32": 5}}
    assert {part: entry["parameters"] for part, entry in parts.items()} == {
        "unet": 11,
        "vae": 4,
        "text_encoder_1": 6,
        "text_encoder_2": 6,
        "other": 7,
    }


STATED = [
    (Family.SD1, False, "sd_v1", "False", "stable-diffusion-v1/lora", "networks.lora"),
    (Family.SD2, False, "sd_v2", "True", "stable-diffusion-v2-512/lora", "networks.lora"),
    (Family.SD2, True, "sd_v2_v", "True", "stable-diffusion-v2-768-v/lora", "networks.lora"),
    (Family.SDXL, True, "sdxl_base_v1-0", "False", "stable-diffusion-xl-v1-base/lora", "networks.lora"),
    (Family.SD3, False, "sd3", "False", "stable-diffusion-3/lora", "networks.lora_sd3"),
    (Family.FLUX, False, "flux1", "False", "flux-1/lora", "networks.lora_flux"),
]


@pytest.mark.parametrize(("family", "velocity", "version", "v2", "architecture", "module"), STATED)
def test_metadata_states_the_family_as_the_trainer_and_the_hosts_do(
    family, velocity, version, v2, architecture, module
):
    weights = LoraWeights({"lora_unet_x": LowRankDelta(ONE, ONE, 2.0)})
    found = network_metadata(weights, name="n", family=family, velocity=velocity)
    assert (found["ss_base_model_version"], found["ss_v2"]) == (version, v2)
    assert (found["modelspec.architecture"], found["ss_network_module"]) == (architecture, module)


def test_a_base_that_predicts_v_is_passed_on(tmp_path):
    weights = {"lora_te_text_model_encoder_layers_22_mlp_fc1": LowRankDelta(ONE, ONE, 2.0)}
    write_lora(tmp_path / "a.safetensors", LoraWeights(weights), {"modelspec.prediction_type": "v"})
    combine([(tmp_path / "a.safetensors", 1.0)], tmp_path / "b.safetensors", exact=True)
    metadata = read_header(tmp_path / "b.safetensors").metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert metadata["modelspec.prediction_type"] == "v"
