"""The shapes of SD 1.x: those of the real file, and what is found wrong in a header."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from copier.checkpoint import names
from copier.checkpoint.header import Header, TensorInfo
from copier.checkpoint.shapes import REAL, Widths, sd1_problem, sd1_shapes

CHECKPOINT = json.loads((Path(__file__).parent / "data" / "sd15.json").read_text(encoding="utf-8"))[
    "checkpoint"
]
SMALL = Widths(unet=(16, 8, 8, 24), autoencoder=(8, 8, 16, 8), text=12, feed_forward=20)
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
VAE_Q = "first_stage_model.encoder.mid.attn_1.q.weight"


def header(shapes: dict[str, tuple[int, ...]]) -> Header:
    return Header({key: TensorInfo("F16", shape, 0, 0) for key, shape in shapes.items()}, {}, 0, 0)


def test_they_are_exactly_those_of_the_real_checkpoint():
    parts = (names.UNET_PREFIX, names.VAE_PREFIX, names.TEXT_PREFIX)
    real = {key: tuple(shape) for key, (_, shape) in CHECKPOINT.items() if key.startswith(parts)}
    for buffer in names.sd1_buffers():
        del real[buffer]
    assert sd1_shapes(REAL) == real
    assert sd1_problem(header({key: tuple(shape) for key, (_, shape) in CHECKPOINT.items()})) == ""


def test_other_widths_are_read_from_the_header():
    shapes = sd1_shapes(SMALL)
    assert sd1_problem(header(shapes)) == ""
    assert sd1_problem(header({**shapes, VAE_Q: shapes[VAE_Q][:2], "model_ema.decay": ()})) == ""


def test_every_key_is_needed_and_none_may_have_another_shape():
    whole = sd1_shapes(SMALL)
    for key, shape in list(whole.items())[::5]:
        assert sd1_problem(header({k: v for k, v in whole.items() if k != key})) != "", key
        assert sd1_problem(header({**whole, key: (5, *shape[1:])})) != "", key


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
    assert words in sd1_problem(header({**sd1_shapes(SMALL), **changes}))
