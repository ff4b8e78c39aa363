"""The real ``train_network.py`` on the pocket checkpoint, by way of a stand-in that narrows it.

It needs a checkout of sd-scripts and its packages (``copier trainer install``, into the data directory that
COPIER_TEST_DATA names).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.app.crew import Kit, find_kit
from copier.app.settings import Settings
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.targets import trained_names
from copier.errors import CopierError
from copier.images.effects import to_image
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.ops.merge import merge
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.scenes import random_scene, render
from copier.recipe import Optimiser, Schedule, TrainingSpec
from copier.request import ScriptOptions
from copier.training.command import build_command
from copier.training.preflight import copy_picture
from copier.training.protocol import TrainRequest, TrainResult
from copier.training.scripts_folder import ScriptsFolder
from copier.training.scripts_trainer import ScriptsTrainer, script_job

pytestmark = [pytest.mark.sd_scripts, pytest.mark.slow]

NARROW = Path(__file__).with_name("narrow")
RANK = 4
SPEC = TrainingSpec(
    steps=5,
    learning_rate=1e-3,
    rank=RANK,
    alpha=RANK,
    optimiser=Optimiser.ADAMW,
    schedule=Schedule.CONSTANT,
    resolution=0,
)


@pytest.fixture(scope="module")
def kit() -> Kit:
    data = os.environ.get("COPIER_TEST_DATA")
    if not data:
        pytest.skip("needs the packages of sd-scripts: name their data directory with COPIER_TEST_DATA")
    try:
        found = find_kit(Settings(Path(data)), device="cpu")
    except CopierError as error:
        pytest.skip(str(error))
    return replace(found, folder=ScriptsFolder(NARROW, own=True, commit=""))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "a.png"
    to_image(render(random_scene(np.random.default_rng(1)), 64)).save(path)
    return path


@pytest.fixture(scope="module")
def copier(kit: Kit, picture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that changes something, made by five large steps."""
    folder = tmp_path_factory.mktemp("copier")
    return run(kit, folder, picture, spec=replace(SPEC, learning_rate=0.02)).output


def run(
    kit: Kit,
    folder: Path,
    *pictures: Path,
    checkpoint: Path | None = None,
    base: tuple[tuple[Path, float], ...] = (),
    spec: TrainingSpec = SPEC,
    skip_init: bool = True,
    sample_every: int = 0,
    start: Path | None = None,
) -> TrainResult:
    scripts = replace(kit.scripts(Settings(folder), threads=1), skip_init=skip_init)
    trainer = ScriptsTrainer(
        scripts,
        kit.environment,
        device=kit.device,
        logs=folder,
        options=ScriptOptions(sample_every=sample_every),
        samples=(("a red star", 1), ("", 2)),
    )
    out, checkpoint = folder / "lora.safetensors", checkpoint or checkpoint_path()
    return trainer.train(TrainRequest(checkpoint, pictures, out, spec, base=base, start=start))


def zero_lora(path: Path) -> Path:
    """A LoRA of the same modules that changes nothing."""
    checkpoint = read_header(checkpoint_path())
    deltas = {}
    for name, target in trained_names(checkpoint, conv=False, text=False).items():
        out, *rest = checkpoint.tensors[target.key].shape
        down = torch.full((RANK, *rest), 0.01)
        deltas[name] = LowRankDelta(torch.zeros(out, RANK, *([1] * len(rest[1:]))), down, float(RANK))
    weights = LoraWeights(deltas)
    write_lora(path, weights, network_metadata(weights, name=path.stem, family=Family.SD1), dtype="fp32")
    return path


def test_the_second_training_starts_from_the_base_with_the_copier(
    kit: Kit, picture: Path, copier: Path, tmp_path: Path
) -> None:
    """Merged in memory by sd-scripts, or by us into a file: the same losses; without it others.

    All through ``--base_weights`` and with the initialisation, so that the random stream is the same.
    """
    zero, merged = zero_lora(tmp_path / "zero.safetensors"), tmp_path / "merged.safetensors"
    merge(checkpoint_path(), [(copier, 1.0)], merged, dtype="fp32")
    losses, loras = {}, {}
    for name, checkpoint, base in (
        ("in memory", checkpoint_path(), copier),
        ("as a file", merged, zero),
        ("without", checkpoint_path(), zero),
    ):
        folder = tmp_path / name
        folder.mkdir()
        done = run(kit, folder, picture, checkpoint=checkpoint, base=((base, 1.0),), skip_init=False)
        losses[name], loras[name] = done.losses, load_file(done.output)
    assert len(losses["in memory"]) == SPEC.steps
    assert losses["in memory"] == pytest.approx(losses["as a file"], abs=1e-4)
    assert losses["in memory"] != pytest.approx(losses["without"], abs=1e-3)
    # The bar shows three digits; what was learnt shows more.
    for key, tensor in loras["in memory"].items():
        assert torch.allclose(tensor, loras["as a file"][key], rtol=1e-4, atol=1e-5), key
    without = loras["without"]
    assert any(not torch.allclose(one, without[key], atol=1e-3) for key, one in loras["in memory"].items())


def test_the_launcher_changes_no_bit_of_what_plain_python_trains(
    kit: Kit, picture: Path, tmp_path: Path
) -> None:
    """Without base weights, and with the initialisation, whose random numbers come before the training's."""
    ours = run(kit, tmp_path, picture, skip_init=False).output
    request = TrainRequest(checkpoint_path(), (picture,), tmp_path / "plain.safetensors", SPEC)
    job, copies = script_job(request, SPEC, tmp_path / "plain", kit.environment.tokenizers)
    command = build_command(job)
    for copy in copies:
        copy.place.parent.mkdir(parents=True)
        copy_picture(copy)
    for path, text in command.files().items():
        path.write_text(text, encoding="utf-8")
    job.output_folder.mkdir()
    path = os.pathsep.join(map(str, kit.environment.search_path))
    environment = {**kit.scripts(Settings(tmp_path), threads=1).environment(), "PYTHONPATH": path}
    python = kit.environment.interpreter.path
    subprocess.run([python, str(NARROW / "train_network.py"), *command.argv], env=environment, check=True)
    theirs, mine = load_file(job.output), load_file(ours)
    assert set(theirs) == set(mine)
    assert all(torch.equal(theirs[key], mine[key]) for key in mine)


def test_it_goes_on_from_a_lora_of_another_rank_and_alpha_with_the_same_deltas(
    kit: Kit, picture: Path, copier: Path, tmp_path: Path
) -> None:
    """A step so small that it changes nothing: what is saved is what it started from."""
    spec = replace(SPEC, steps=1, learning_rate=1e-8, rank=8, alpha=2.0)
    done = run(kit, tmp_path, picture, spec=spec, start=copier)
    before, after = read_lora(copier).weights, read_lora(done.output).weights
    assert set(before) == set(after)
    for name, delta in before.items():
        found = after[name]
        assert found.rank == 8 and found.scale == 0.25
        assert (found.dense() - delta.dense()).norm() <= 1e-3 * delta.dense().norm() + 1e-6


def test_what_it_trains_is_read_with_its_rank_and_says_where_it_comes_from(copier: Path) -> None:
    lora = read_lora(copier)
    expected = trained_names(read_header(checkpoint_path()), conv=False, text=False)
    assert set(lora.weights) == set(expected)
    assert {delta.rank for _, delta in lora.weights.items()} == {RANK}
    log = copier.with_name("train.log").read_text(encoding="utf-8")
    assert "avr_loss" in log


def test_base_loras_leave_the_modules_that_are_trained_as_they_are(
    kit: Kit, picture: Path, copier: Path, tmp_path: Path
) -> None:
    done = run(kit, tmp_path, picture, base=((copier, 1.0),))
    assert set(read_lora(done.output).weights) == set(read_lora(copier).weights)


def test_samples_are_drawn_by_it_on_the_way(kit: Kit, picture: Path, tmp_path: Path) -> None:
    done = run(kit, tmp_path, picture, sample_every=5)
    samples = sorted((done.output.parent / "samples").iterdir())
    assert len(samples) == 2
    for path in samples:
        with Image.open(path) as sample:
            assert sample.size == (64, 64)


SIZES = """
import argparse, json, sys
from library import config_util
arguments = argparse.Namespace()
config = json.load(open(sys.argv[1]))
sanitizer = config_util.ConfigSanitizer(True, True, False, True)
blueprint = config_util.BlueprintGenerator(sanitizer).generate(config, arguments)
group, _ = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
found = [(one.image_size, one.resized_size, one.bucket_reso) for one in group.image_data.values()]
print(json.dumps({"sizes": found, "batches": len(group)}))
"""
"""What sd-scripts makes of pictures: their sizes in the file, once scaled, and as they are trained on."""


def test_a_set_of_several_sizes_is_trained_on_without_scaling_a_picture(kit: Kit, tmp_path: Path) -> None:
    sides = ((64, 64), (128, 64), (64, 64), (64, 192), (64, 64))
    pictures = []
    for number, (width, height) in enumerate(sides):
        pictures.append(tmp_path / f"{number}.png")
        scene = render(random_scene(np.random.default_rng(number)), max(width, height))
        to_image(scene[:height, :width]).save(pictures[-1])
    spec = replace(SPEC, batch_size=2)
    done = run(kit, tmp_path, *pictures, spec=spec)
    assert len(done.losses) == SPEC.steps
    datasets = json.loads(read_header(done.output).metadata["ss_datasets"])
    told = {tuple(one["resolution"]): one["num_train_images"] for one in datasets}
    assert told == {(64, 64): 6, (128, 64): 2, (64, 192): 2}, "each picture twice: whole batches of each size"
    request = TrainRequest(checkpoint_path(), tuple(pictures), tmp_path / "x.safetensors", spec)
    job, copies = script_job(request, spec, tmp_path / "again", kit.environment.tokenizers)
    for copy in copies:
        copy.place.parent.mkdir(parents=True, exist_ok=True)
        copy_picture(copy)
    for path, text in build_command(job).files().items():
        path.write_text(text, encoding="utf-8")
    path = (*map(str, kit.environment.search_path), os.environ["COPIER_SD_SCRIPTS_DIR"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [kit.environment.interpreter.path, "-c", SIZES, str(job.dataset_file)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["batches"] == 5
    assert sorted(map(tuple, (size for size, _, _ in found["sizes"]))) == sorted(sides)
    assert all(size == scaled == trained for size, scaled, trained in found["sizes"])
