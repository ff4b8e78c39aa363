"""A checkout of sd-scripts: our arguments in its own parsers, for every built-in recipe and family, and its
wordings, by which its log is read."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sd_scripts
from copier.checkpoint.family import Family
from copier.codec import builtin_recipes
from copier.recipe import (
    CaptionPolicy,
    CaptionSpec,
    EvaluateStage,
    LossWeighting,
    Optimiser,
    Precision,
    Schedule,
    TrainingSpec,
    with_control,
)
from copier.training.command import (
    MANAGED,
    SCRIPTS,
    Command,
    Pictures,
    SamplePrompt,
    ScriptJob,
    build_command,
)
from copier.training.kohya_log import failure_in, phase_of
from copier.training.memory import PRESETS, with_preset

pytestmark = pytest.mark.sd_scripts

HERE = Path(__file__).parent
ROOT = Path(Path(sys.executable).anchor) / "w"

EVERYTHING = TrainingSpec(
    steps=70,
    batch_size=6,
    learning_rate=1e-8,
    rank=4,
    alpha=0.001,
    conv_rank=32,
    conv_alpha=1.5,
    text_encoder=True,
    optimiser=Optimiser.ADAMW,
    optimiser_arguments=("betas=(0.9, 0.99)", "eps=1e-08"),
    weight_decay=0.0,
    schedule=Schedule.CONSTANT,
    warmup_steps=7,
    captions=CaptionSpec(CaptionPolicy.VARIED, ("a, b", "c"), shuffle=True, keep_tokens=1, dropout=0.2),
    loss_weighting=LossWeighting.MIN_SNR,
    min_snr_gamma=1e-1,
    noise_offset=0.3,
    min_timestep=1,
    max_timestep=999,
    resolution=0,
    precision=Precision.BF16,
    fp8_base=True,
    gradient_checkpointing=True,
    masked_loss=True,
    seed=2**32 - 1,
)


def job(family: Family, training: TrainingSpec, **changes: Any) -> ScriptJob:
    values: dict[str, Any] = {
        "checkpoint": ROOT / "models" / "a model.safetensors",
        "family": family,
        "training": training,
        "pictures": (Pictures(ROOT / "512", ("0.png",), 512, 512, captions=("x",)),),
        "work": ROOT,
        "output_folder": ROOT / "out",
        "output_name": "lora",
        "tokenizers": ROOT / "tokenizers",
    }
    return ScriptJob(**{**values, **changes})


def commands() -> list[Command]:
    found = []
    for recipe in builtin_recipes().values():
        measured = any(isinstance(stage, EvaluateStage) for stage in recipe.stages)
        for stage in (with_control(recipe) if measured else recipe).trainings():
            if stage.concept.by_text or stage.training.of_builtin_only:
                continue
            base = tuple((ROOT / f"{one.lora}.safetensors", one.multiplier) for one in stage.base)
            start = ROOT / "start.safetensors" if stage.start else None
            for family in SCRIPTS:
                found.append(build_command(job(family, stage.training, base=base, start=start)))
    for preset in PRESETS:
        for stage in with_preset(builtin_recipes()["copier-thorough"], preset).trainings():
            found.append(build_command(job(preset.family, stage.training)))
    for family in SCRIPTS:
        changes: dict[str, Any] = {
            "pictures": (
                Pictures(ROOT / "wide", ("0.png", "1.jpg", "2.webp"), 640, 512),
                Pictures(ROOT / "tall ü", ("3.PNG", "4.png"), 512, 768),
            ),
            "base": ((ROOT / "a.safetensors", -1e-5), (ROOT / "b.safetensors", 1.0)),
            "start": ROOT / "start.safetensors",
            "vae": ROOT / "vae.pt",
            "clip_skip": 2 if family is Family.SD1 else 1,
            "velocity": True,
            "zero_terminal_snr": True,
            "save_precision": Precision.FP16,
            "save_every": 100,
            "samples": (SamplePrompt("", 1, 64, 64),),
            "sample_every": 50,
        }
        found.append(build_command(job(family, EVERYTHING, **changes)))
    return found


@pytest.fixture(scope="module")
def cases() -> list[Command]:
    return commands()


@pytest.fixture(scope="module")
def checkout() -> Path:
    folder, reason = sd_scripts.checkout()
    assert folder is not None, reason  # else tests/conftest.py leaves these tests out
    return folder


@pytest.fixture(scope="module")
def real(cases: list[Command], checkout: Path) -> Any:
    asked = [{"script": one.script, "argv": one.argv, "dataset": one.dataset} for one in cases]
    run = subprocess.run(
        [sys.executable, str(HERE / "real_parsers.py")],
        input=json.dumps(asked), capture_output=True, text=True, timeout=300,
        env={**os.environ, "SD_SCRIPTS": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def expected(command: Command) -> dict[str, Any]:
    """What the script should be told, from the training alone."""
    one, spec = command.job, command.job.training
    snr = spec.loss_weighting is LossWeighting.MIN_SNR
    return {
        "pretrained_model_name_or_path": str(one.checkpoint),
        "v2": one.family is Family.SD2,
        "v_parameterization": one.velocity,
        "zero_terminal_snr": one.zero_terminal_snr,
        "vae": str(one.vae) if one.vae else None,
        "clip_skip": one.clip_skip if one.clip_skip > 1 else None,
        "network_dim": spec.rank,
        "network_alpha": spec.alpha,
        "network_train_unet_only": not spec.text_encoder,
        "network_weights": str(one.start) if one.start else None,
        "base_weights": [str(path) for path, _ in one.base] or None,
        "base_weights_multiplier": [multiplier for _, multiplier in one.base] or None,
        "max_train_steps": spec.steps,
        "learning_rate": spec.learning_rate,
        "lr_warmup_steps": spec.warmup_steps,
        "min_snr_gamma": spec.min_snr_gamma if snr else None,
        "debiased_estimation_loss": spec.loss_weighting is LossWeighting.DEBIASED,
        "noise_offset": spec.noise_offset or None,
        "min_timestep": spec.min_timestep or None,
        "max_timestep": spec.max_timestep if spec.max_timestep < 1000 else None,
        "mixed_precision": "no" if spec.precision is Precision.FP32 else spec.precision.value,
        "fp8_base_unet": spec.fp8_base,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "seed": spec.seed,
        "save_every_n_steps": one.save_every or None,
        "sample_every_n_steps": one.sample_every or None,
        "output_name": one.output_name,
    }


def test_the_real_parsers_take_every_command_and_mean_what_the_training_says(cases, real):
    assert len(cases) > 60
    for command, answer in zip(cases, real["answers"], strict=True):
        assert "error" not in answer, (command.argv, answer["error"])
        values, wanted = answer["values"], expected(command)
        assert {name: values[name] for name in wanted} == wanted


def test_every_option_is_written_out_and_not_an_abbreviation_that_argparse_takes(cases, real):
    for command in cases:
        options = {word for word in command.argv if word.startswith("--")}
        assert options <= set(real["options"][command.script])


def test_the_real_reader_of_datasets_takes_every_one_and_scales_nothing(cases, real):
    if real["answers"][0]["datasets"] is None:
        pytest.skip("voluptuous is not installed: sd-scripts checks its datasets with it")
    for command, answer in zip(cases, real["answers"], strict=True):
        pairs = zip(command.job.pictures, answer["datasets"], strict=True)
        shares = set()
        for pictures, dataset in pairs:
            (subset,) = dataset["subsets"]
            spec = command.job.training
            assert dataset["resolution"] == [pictures.width, pictures.height]
            assert (dataset["batch_size"], dataset["enable_bucket"]) == (spec.batch_size, False)
            assert subset["num_repeats"] * len(pictures.names) % spec.batch_size == 0
            assert (subset["image_dir"], subset["caption_extension"]) == (str(pictures.folder), ".txt")
            assert subset["shuffle_caption"] == spec.captions.shuffle
            assert subset["keep_tokens"] == spec.captions.keep_tokens
            assert subset["caption_dropout_rate"] == spec.captions.dropout
            assert subset["alpha_mask"] == spec.masked_loss
            assert subset["enable_wildcard"] == (spec.captions.policy is CaptionPolicy.VARIED)
            assert not (subset["random_crop"] or subset["color_aug"] or subset["flip_aug"])
            shares.add(subset["num_repeats"])
        assert len(shares) == 1


def test_everything_that_no_extra_argument_may_have_is_an_option_of_the_scripts(real):
    known = set().union(*real["options"].values())
    assert set(MANAGED) <= known
    assert {"--max_grad_norm", "--xformers"} <= known - set(MANAGED)


def test_extra_arguments_are_checked_against_the_options_of_the_real_parser(real):
    options = real["options"]["train_network.py"]
    extra = ("--max_grad_norm", "2")
    one = job(Family.SD1, TrainingSpec(), extra=extra)
    assert build_command(one, options).argv[-2:] == extra


def test_the_tokenizers_are_looked_for_where_we_put_them(real):
    for family, script in SCRIPTS.items():
        names = tuple(name.replace("/", "_") for name in real["tokenizers"][family.value])
        assert names == script.tokenizers


def printed(checkout: Path, words: str) -> list[str]:
    """The texts with ``words`` in them that the sources print or raise, as far as they are constant."""
    sources = [checkout / "train_network.py", checkout / "library" / "train_util.py"]
    texts = []
    trees = (ast.parse(source.read_bytes()) for source in sources)
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.JoinedStr):
            parts = (str(one.value) if isinstance(one, ast.Constant) else "/x.png" for one in node.values)
            texts.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return [text for text in texts if words in text]


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        ("loading model for process", "loading the checkpoint"),
        ("caching latents with caching strategy", "caching latents"),
        ("caching Text Encoder outputs with caching strategy", "caching captions"),
        ("merging module:", "merging base LoRAs"),
        ("prepare optimizer", "preparing the training"),
        ("running training", "training"),
        ("generating sample images at step", "drawing samples"),
        ("saving checkpoint:", "saving"),
    ],
)
def test_the_lines_that_begin_a_phase_are_printed(checkout, words, phase):
    found = [phase_of(text) for text in printed(checkout, words)]
    assert phase in [one.value for one in found if one]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("No data found", "no pictures"),
        ("caption file is empty", "empty caption file"),
        ("Error loading file", "unreadable picture"),
        ("NaN detected in latents", "latents without numbers"),
        ("NaN found in latents", "latents without numbers"),
    ],
)
def test_the_lines_of_its_own_failures_are_printed(checkout, words, name):
    found = [failure_in([text]) for text in printed(checkout, words)]
    assert name in [one[0].name for one in found if one]


def test_its_complaint_about_bitsandbytes_is_known(checkout):
    found = [failure_in([f"ImportError: {text}"]) for text in printed(checkout, "No bitsandbytes")]
    assert {one[0].name for one in found if one} == {"8-bit optimiser"}
