"""What a checkpoint's family and the options beside it mean for drawing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from copier.app.pictures import usual_precision, usual_side
from copier.app.service import check_checkpoint
from copier.checkpoint.family import Family
from copier.checkpoint.header import Header, TensorInfo
from copier.checkpoint.shapes import REAL, checkpoint_shapes
from copier.checkpoint.writer import write_tensors
from copier.errors import BadCheckpoint, BadInput
from copier.model_options import ModelOptions, Prediction
from copier.recipe import Precision, Trainer
from tests.diffusion import families

VELOCITY = ModelOptions(prediction=Prediction.VELOCITY)


def real(family: Family, **metadata: str) -> Header:
    shapes = checkpoint_shapes(REAL[family])
    return Header({key: TensorInfo("F16", shape, 0, 0) for key, shape in shapes.items()}, metadata, 0, 0)


def test_the_usual_side_is_what_the_family_was_trained_at() -> None:
    assert [usual_side(real(family)) for family in REAL] == [512, 512, 1024]
    assert [usual_side(real(family), VELOCITY) for family in REAL] == [512, 768, 1024]
    assert usual_side(real(Family.SD2, **{"modelspec.prediction_type": "v"})) == 768
    assert [usual_precision(real(family)) for family in REAL] == [Precision.FP32] * 2 + [Precision.FP16]


def test_options_that_do_not_go_with_the_checkpoint_are_refused_before_it_is_loaded(tmp_path: Path) -> None:
    second = families.write_family(tmp_path / "second.safetensors", Family.SD2)
    assert usual_side(check_checkpoint(second, Trainer.BUILTIN, options=VELOCITY)) < 512
    with pytest.raises(BadInput, match=r"clip skip is 2, but Stable Diffusion 2\.x has none"):
        check_checkpoint(second, options=ModelOptions(clip_skip=2))
    write_tensors(tmp_path / "vae.safetensors", {"weight": torch.ones(1)})
    with pytest.raises(BadCheckpoint, match=r"vae\.safetensors' has no autoencoder"):
        check_checkpoint(second, options=ModelOptions(vae=tmp_path / "vae.safetensors"))
    check_checkpoint(second, options=ModelOptions(vae=second))
    with pytest.raises(BadInput, match="no file"):
        check_checkpoint(second, options=ModelOptions(vae=tmp_path / "none.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}, "inpainting"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.ones(4, 4)}, "also has"),
        ({"model.diffusion_model.out.0.weight.quant_state.x": torch.ones(1)}, "quantised|bitsandbytes"),
    ],
)
def test_sd2_files_that_cannot_be_loaded_say_why(
    changes: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    write_tensors(path, {**families.tensors(Family.SD2), **changes})
    with pytest.raises(BadCheckpoint, match=message):
        check_checkpoint(path)
