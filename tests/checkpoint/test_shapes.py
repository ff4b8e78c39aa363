"""The shapes of SD 1.x: those of the real file, and what is found wrong in a header."""

from __future__ import annotations

import json
from pathlib import Path

import narrow_models as models
import pytest

from copier.checkpoint import names
from copier.checkpoint.family import Family
from copier.checkpoint.header import Header, TensorInfo
from copier.checkpoint.shapes import REAL, Sizes, TextSizes, checkpoint_problem, checkpoint_shapes

CHECKPOINT = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))[
    "checkpoint"
]
SMALL = Sizes(Family.SD1, (16, 8, 8, 24), (8, 8, 16, 8), (TextSizes(12, 20, 12),))
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
VAE_Q = "first_stage_model.encoder.mid.attn_1.q.weight"


def header(shapes: dict[str, tuple[int, ...]]) -> Header:
    return Header({key: TensorInfo("F16", shape, 0, 0) for key, shape in shapes.items()}, {}, 0, 0)


def problem(header: Header, family: Family = Family.SD1) -> str:
    return checkpoint_problem(header, family)


def test_they_are_exactly_those_of_the_real_checkpoint():
    parts = (names.UNET_PREFIX, names.VAE_PREFIX, names.TEXT_PREFIX)
    real = {key: tuple(shape) for key, (_, shape) in CHECKPOINT.items() if key.startswith(parts)}
    for buffer in names.sd1_buffers():
        del real[buffer]
    assert checkpoint_shapes(REAL[Family.SD1]) == real
    assert problem(header({key: tuple(shape) for key, (_, shape) in CHECKPOINT.items()})) == ""


def test_other_widths_are_read_from_the_header():
    shapes = checkpoint_shapes(SMALL)
    assert problem(header(shapes)) == ""
    assert problem(header({**shapes, VAE_Q: shapes[VAE_Q][:2], "model_ema.decay": ()})) == ""


def test_every_key_is_needed_and_none_may_have_another_shape():
    whole = checkpoint_shapes(SMALL)
    for key, shape in list(whole.items())[::5]:
        assert problem(header({k: v for k, v in whole.items() if k != key})) != "", key
        assert problem(header({**whole, key: (5, *shape[1:])})) != "", key


@pytest.mark.parametrize("family", [Family.SD2, Family.SDXL])
def test_of_sd2_and_sdxl_they_are_those_of_the_models_own_structure(family):
    """The second route: keys and shapes written from the forward pass."""
    sizes, tokens = REAL[family], 49408
    if family is Family.SD2:
        known = models.unet((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, linear=True)
        known |= models.open_clip("cond_stage_model.model.", 24, 1024, tokens=tokens)
    else:
        known = models.unet((320, 640, 1280), (0, 2, 10), 2048, linear=True, label=2816)
        known |= models.clip("conditioner.embedders.0.transformer.", 12, 768, tokens=tokens)
        known |= models.open_clip("conditioner.embedders.1.model.", 32, 1280, tokens=tokens)
    known |= models.vae((128, 256, 512, 512))
    mine = checkpoint_shapes(sizes)
    unread = {"cond_stage_model.model.text_projection"} | {key for key in known if "logit_scale" in key}
    assert {**mine, **{key: known[key] for key in unread & set(known)}} == known
    assert problem(header(known), family) == ""
    assert "lacks" in problem(header({key: known[key] for key in list(known)[1:]}), family)


def test_of_sd2_the_last_layer_of_text_may_be_missing():
    whole = models.sd2_file() | models.vae()
    whole["cond_stage_model.model.token_embedding.weight"] = (49408, 24)
    assert problem(header(whole), Family.SD2) == ""
    short = {key: shape for key, shape in whole.items() if ".resblocks.23." not in key}
    assert problem(header(short), Family.SD2) == ""
    short = {key: shape for key, shape in short.items() if ".resblocks.22.ln_1" not in key}
    assert "resblocks.22.ln_1" in problem(header(short), Family.SD2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({CONV_IN: (16, 9, 3, 3)}, "takes 9 latent channels"),
        ({TO_K: (16, 11)}, f"has {TO_K!r} in the shape [16, 11], not [16, 12]"),
        ({"model.diffusion_model.label_emb.0.0.weight": (4, 4)}, "also has"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.weight": ()}, "a number where"),
    ],
)
def test_what_is_wrong_is_named(changes, words):
    assert words in problem(header({**checkpoint_shapes(SMALL), **changes}))
