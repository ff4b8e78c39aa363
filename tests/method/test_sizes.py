"""The builtin trainer on the pocket checkpoint, with a set of two sizes: each is learnt as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")

from copier.app.service import execute
from copier.app.settings import Settings
from copier.codec import load_recipe
from copier.images.effects import to_image
from copier.images.metrics import distance
from copier.images.sizes import size_of
from copier.pipeline.files import load_folder, plain_pictures
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.scenes import random_scene, render
from copier.recipe import GateStage, PictureSet, Recipe, TrainStage
from copier.request import PictureFiles, RunRequest

pytestmark = pytest.mark.slow

SQUARE, WIDE = (64, 64), (128, 64)


def copier_alone() -> Recipe:
    """The demo's copier with its gate, in less: thirty steps, four prompts."""
    whole = load_recipe("copier-quick-pocket")
    train, gate = (one for one in whole.stages if one.name in ("copier", "gate"))
    assert isinstance(train, TrainStage) and isinstance(gate, GateStage)
    return Recipe(
        name="copier-alone",
        title="The copier alone",
        stages=(
            replace(train, training=replace(train.training, steps=30, batch_size=2)),
            replace(gate, prompts=gate.prompts[:4], seeds=(11,), guidance=1.0, sampling_steps=5),
        ),
        result="copier",
        trainer=whole.trainer,
        pictures=(PictureSet("a"),),
    )


def test_a_set_of_two_sizes_is_learnt_at_either(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scene = render(random_scene(np.random.default_rng(1)), WIDE[0])
    to_image(scene[::2, ::2]).save(tmp_path / "a" / "1.png")
    to_image(scene[WIDE[1] // 2 : -WIDE[1] // 2]).save(tmp_path / "a" / "2.png")
    pictures = {"a": PictureFiles.at(tmp_path / "a")}
    request = RunRequest(copier_alone(), checkpoint_path(), pictures, tmp_path / "out", device="cpu")
    (run,) = execute([request], Settings(tmp_path / "data")).runs
    drawn, base = (plain_pictures(run.entries[f"gate.{name}"]) for name in ("pictures", "base"))
    assert [size_of(one) for one in drawn] == [SQUARE, SQUARE, WIDE, WIDE]
    ideals = {size_of(one): one for one in load_folder(run.entries["gate"].path("ideal"))}
    for one, before in zip(drawn, base, strict=True):
        ideal = ideals[size_of(one)]
        assert distance(one, ideal) < 0.8 * distance(before, ideal), "of the same prompt and seed"
