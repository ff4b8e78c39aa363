"""What fits is mapped to its tensors; what does not is refused, and all of it is named with the reason."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import narrow_models as models
import pytest
from narrow_models import UNET, header, lora

from copier.checkpoint.family import Family, detect
from copier.checkpoint.fit import require_modules_fit, shape_problem
from copier.checkpoint.targets import Target, module_targets, written_names
from copier.errors import BadInput

SD15 = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))
FULL = {key: tuple(shape) for key, (_, shape) in SD15["checkpoint"].items()}
NARROW = {key: tuple(min(size, 64) for size in shape) for key, shape in FULL.items()}
LINEAR = {name: tuple(shape) for name, shape in SD15["linear"].items()}
FILES = {
    Family.SD1: models.sd1_file(),
    Family.SD2: models.sd2_file(),
    Family.SDXL: models.sdxl_file(),
    Family.SD3: models.sd3_file(),
    Family.FLUX: models.flux_file(),
}


def changed(names, shapes):
    """{name: shape of the change} of the modules ``names`` that are targets in a checkpoint."""
    return {
        name: shapes[key] if rows is None else (rows[1] - rows[0], *shapes[key][1:])
        for name, (key, rows) in ((name, (target.key, target.rows)) for name, target in names.items())
    }


def fitted(shapes, checkpoint):
    """The targets of a LoRA of such modules, whose family is told from it."""
    return dict(require_modules_fit(shapes, detect(header(lora(shapes))).family, checkpoint))


@pytest.mark.parametrize("family", FILES)
def test_a_lora_of_all_that_we_write_fits_the_checkpoint_that_it_was_made_from(family):
    checkpoint = header(FILES[family])
    written = written_names(checkpoint)
    assert fitted(changed(written, FILES[family]), checkpoint) == dict(written)


@pytest.mark.parametrize("family", FILES)
def test_a_peft_lora_fits_by_its_dotted_names(family):
    checkpoint = header(FILES[family])
    start = (
        ("transformer.", "text_encoder") if family in (Family.SD3, Family.FLUX) else ("unet.", "text_encoder")
    )
    named = {name: target for name, target in module_targets(checkpoint).items() if name.startswith(start)}
    assert len(named) > 60
    assert fitted(changed(named, FILES[family]), checkpoint) == named


def test_the_names_of_diffusers_first_loras_are_known():
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out"
    width = FILES[Family.SD1][UNET + "middle_block.1.proj_in.weight"][0]
    key = UNET + "middle_block.1.transformer_blocks.0.attn1.to_out.0.weight"
    assert fitted({name: (width, width)}, header(FILES[Family.SD1])) == {name: Target(key)}


@pytest.mark.parametrize(("theirs", "ours"), list(itertools.permutations(FILES, 2)))
def test_a_lora_of_another_family_is_refused_with_both_named(theirs, ours):
    with pytest.raises(BadInput, match=f"LoRA is for {theirs.name}, the checkpoint is {ours.name}"):
        require_modules_fit({}, theirs, header(FILES[ours]))


def test_a_lora_whose_family_cannot_be_told_is_taken_if_every_module_fits():
    checkpoint = header(FILES[Family.SD3])
    name, width = "lora_te2_text_model_encoder_layers_0_mlp_fc1", 24
    shapes = {name: (4 * width, width)}
    assert set(fitted(shapes, checkpoint)) == {name}
    with pytest.raises(BadInput, match=r"(?s)1 module.*nowhere \[4, 4\]: the checkpoint has no such weight"):
        fitted({**shapes, "nowhere": (4, 4)}, checkpoint)


def test_a_lora_of_another_width_is_refused_with_names_and_shapes_of_all_modules():
    with pytest.raises(BadInput, match=r"264 modules of the LoRA do not fit") as refused:
        fitted(LINEAR, header(NARROW))
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == list(LINEAR)
    assert all("[64, 64" in line for line in lines)


def test_a_part_of_a_fused_weight_is_held_against_its_rows():
    checkpoint = header(models.flux())
    name = "transformer.single_transformer_blocks.0.proj_mlp"
    assert require_modules_fit({name: (128, 32)}, Family.FLUX, checkpoint)[name].rows == (96, 224)
    whole = (
        r"shape \[224, 32\], the checkpoint's is \[128, 32\] \(rows 96 to 223 of .*single_blocks\.0\.linear1"
    )
    with pytest.raises(BadInput, match=whole):
        require_modules_fit({name: (224, 32)}, Family.FLUX, checkpoint)


def test_modules_whose_halves_are_stored_the_other_way_round_are_refused_by_name():
    with pytest.raises(BadInput, match=r"norm_out\.linear"):
        require_modules_fit({"transformer.norm_out.linear": (64, 32)}, Family.FLUX, header(models.flux()))


def test_a_kernel_may_come_as_a_matrix_and_a_1x1_kernel_as_a_linear_layer():
    checkpoint = header(FILES[Family.SD1])
    conv, projection = "lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_mid_block_attentions_0_proj_in"
    for shapes in (
        {conv: (32, 32, 3, 3), projection: (96, 96, 1, 1)},
        {conv: (32, 288), projection: (96, 96)},
    ):
        assert set(require_modules_fit(shapes, Family.SD1, checkpoint)) == {conv, projection}
    with pytest.raises(BadInput, match=r"\[32, 32\], the checkpoint's is \[32, 32, 3, 3\]"):
        require_modules_fit({conv: (32, 32)}, Family.SD1, checkpoint)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("double_blocks.0.img_attn.qkv.scale_weight", "factors beside its fp8"),
        ("double_blocks.0.img_attn.qkv.qweight", "packed integers"),
    ],
)
def test_quantised_checkpoints_are_refused_with_the_reason(key, reason):
    checkpoint = header({**models.flux(), UNET + key: (8,)}, dtype="F8_E4M3")
    with pytest.raises(BadInput, match=f"quantised with {reason}.*use the fp16 or bf16 file"):
        require_modules_fit({}, Family.FLUX, checkpoint)


def test_plain_fp8_is_no_obstacle():
    name = "lora_unet_img_in"
    checkpoint = header(models.flux(), dtype="F8_E4M3")
    assert set(require_modules_fit({name: (32, 64)}, Family.FLUX, checkpoint)) == {name}


def test_a_model_in_diffusers_folders_is_refused_with_what_to_use():
    checkpoint = header({"transformer_blocks.0.attn.add_q_proj.weight": (8, 8)})
    with pytest.raises(BadInput, match=r"diffusers' layout.*single \.safetensors"):
        require_modules_fit({}, Family.SD3, checkpoint)


def test_a_lora_is_no_checkpoint():
    with pytest.raises(BadInput, match="given as checkpoint is none"):
        fitted(LINEAR, header(lora(LINEAR)))


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
