"""Arguments and files for sd-scripts: golden values, laws of captions and repeats, and what is refused."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copier.checkpoint.family import Family
from copier.codec import builtin_recipes
from copier.errors import BadInput, BadPicture, UnknownName
from copier.recipe import (
    CaptionPolicy,
    CaptionSpec,
    LossWeighting,
    Optimiser,
    Precision,
    Schedule,
    TrainingSpec,
)
from copier.training.command import (
    MANAGED,
    SCRIPTS,
    Pictures,
    SamplePrompt,
    ScriptJob,
    build_command,
    caption_text,
    sample_number,
)
from copier.training.memory import PRESETS, with_preset

ROOT = Path(Path(sys.executable).anchor) / "w"
OPTIONS = {"--max_grad_norm", "--scale_weight_norms", "--network_args", *MANAGED}


def job(**changes: Any) -> ScriptJob:
    values: dict[str, Any] = {
        "checkpoint": ROOT / "a model.safetensors",
        "family": Family.SD1,
        "training": TrainingSpec(),
        "pictures": (Pictures(ROOT / "a", ("0.png",), 512, 512),),
        "work": ROOT / "work",
        "output_folder": ROOT / "out",
        "output_name": "lora",
        "tokenizers": ROOT / "tokenizers",
    }
    return ScriptJob(**{**values, **changes})


def lines(*arguments: str) -> list[str]:
    """The arguments with each option and its values in a line."""
    found: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            found.append(word)
        else:
            found[-1] += f" {word.replace(str(ROOT), '/w').replace(chr(92), '/')}"
    return found


QUICK = """
--pretrained_model_name_or_path /w/a model.safetensors
--tokenizer_cache_dir /w/tokenizers
--network_module networks.lora
--network_dim 16
--network_alpha 16
--network_train_unet_only
--base_weights /w/copier.safetensors
--base_weights_multiplier 1
--max_train_steps 500
--seed 1
--learning_rate 0.001
--lr_scheduler cosine
--optimizer_type AdamW8bit
--optimizer_args weight_decay=0.01
--mixed_precision no
--sdpa
--no_half_vae
--cache_latents
--dataset_config /w/work/dataset.json
--output_dir /w/out
--output_name lora
--save_model_as safetensors
--save_precision float
--max_data_loader_n_workers 0
--console_log_simple
""".strip().splitlines()


def test_the_second_training_of_copier_quick_is_these_arguments():
    training = next(s for s in builtin_recipes()["copier-quick"].trainings() if s.name == "lora").training
    command = build_command(job(training=training, base=((ROOT / "copier.safetensors", 1.0),)))
    assert command.script == "train_network.py"
    assert lines(*command.argv) == QUICK
    assert command.dataset == {
        "datasets": [
            {
                "resolution": [512, 512],
                "batch_size": 1,
                "enable_bucket": False,
                "subsets": [
                    {
                        "image_dir": str(ROOT / "a"),
                        "num_repeats": 1,
                        "caption_extension": ".txt",
                        "shuffle_caption": False,
                        "keep_tokens": 0,
                        "enable_wildcard": False,
                        "caption_dropout_rate": 0.0,
                        "alpha_mask": False,
                    }
                ],
            }
        ]
    }
    assert command.captions == {ROOT / "a" / "0.txt": "\n"}


def difference(changes: dict[str, Any]) -> tuple[str, set[str], set[str]]:
    """The script, and what a changed job adds to the arguments and takes away from them."""
    plain, changed = build_command(job()), build_command(job(**changes))
    before, after = set(lines(*plain.argv)), set(lines(*changed.argv))
    return changed.script, after - before, before - after


@pytest.mark.parametrize(
    ("changes", "added", "removed"),
    [
        ({"family": Family.SD2}, {"--v2"}, set()),
        (
            {"family": Family.SD2, "velocity": True, "zero_terminal_snr": True},
            {"--v2", "--v_parameterization", "--zero_terminal_snr"},
            set(),
        ),
        ({"clip_skip": 2}, {"--clip_skip 2"}, set()),
        ({"vae": ROOT / "b.pt"}, {"--vae /w/b.pt"}, set()),
        ({"start": ROOT / "a.safetensors"}, {"--network_weights /w/a.safetensors"}, set()),
        (
            {"base": ((ROOT / "x.safetensors", -1.0), (ROOT / "y.safetensors", 0.00001))},
            {"--base_weights /w/x.safetensors /w/y.safetensors", "--base_weights_multiplier -1 0.00001"},
            set(),
        ),
        ({"save_every": 100}, {"--save_every_n_steps 100"}, set()),
        ({"save_precision": Precision.FP16}, {"--save_precision fp16"}, {"--save_precision float"}),
        (
            {"samples": (SamplePrompt("x", 1, 64, 64),), "sample_every": 50},
            {"--sample_prompts /w/work/samples.json", "--sample_every_n_steps 50"},
            set(),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_field_of_a_job_is_its_own_arguments(changes, added, removed):
    assert difference(changes) == ("train_network.py", added, removed)


@pytest.mark.parametrize(
    ("changes", "added", "removed"),
    [
        ({"steps": 7}, "--max_train_steps 7", "--max_train_steps 500"),
        ({"rank": 8}, "--network_dim 8", "--network_dim 16"),
        ({"alpha": 0.5}, "--network_alpha 0.5", "--network_alpha 16"),
        ({"conv_rank": 32}, "--network_args conv_dim=32 conv_alpha=1", ""),
        ({"text_encoder": True}, "", "--network_train_unet_only"),
        ({"learning_rate": 1e-8}, "--learning_rate 0.00000001", "--learning_rate 0.001"),
        ({"schedule": Schedule.LINEAR}, "--lr_scheduler linear", "--lr_scheduler cosine"),
        ({"schedule": Schedule.CONSTANT}, "--lr_scheduler constant", "--lr_scheduler cosine"),
        (
            {"schedule": Schedule.CONSTANT, "warmup_steps": 5},
            "--lr_scheduler constant_with_warmup|--lr_warmup_steps 5",
            "--lr_scheduler cosine",
        ),
        ({"warmup_steps": 500}, "--lr_warmup_steps 500", ""),
        ({"optimiser": Optimiser.ADAMW}, "--optimizer_type AdamW", "--optimizer_type AdamW8bit"),
        (
            {"weight_decay": 0.0, "optimiser_arguments": ("betas=(0.9,0.99)",)},
            "--optimizer_args weight_decay=0 betas=(0.9,0.99)",
            "--optimizer_args weight_decay=0.01",
        ),
        ({"loss_weighting": LossWeighting.MIN_SNR}, "--min_snr_gamma 5", ""),
        ({"loss_weighting": LossWeighting.DEBIASED}, "--debiased_estimation_loss", ""),
        ({"min_snr_gamma": 1.0}, "", ""),
        ({"noise_offset": 0.05}, "--noise_offset 0.05", ""),
        ({"min_timestep": 1, "max_timestep": 999}, "--min_timestep 1|--max_timestep 999", ""),
        ({"precision": Precision.BF16}, "--mixed_precision bf16", "--mixed_precision no"),
        (
            {"precision": Precision.FP16, "fp8_base": True},
            "--mixed_precision fp16|--fp8_base_unet",
            "--mixed_precision no",
        ),
        ({"gradient_checkpointing": True}, "--gradient_checkpointing", ""),
        ({"seed": 2**32 - 1}, "--seed 4294967295", "--seed 1"),
        # In the dataset file, or nowhere: the pictures have the size that they have.
        ({"batch_size": 4, "masked_loss": True, "resolution": 1024}, "", ""),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_field_of_a_training_is_its_own_arguments(changes, added, removed):
    expected = ({*added.split("|")} - {""}, {*removed.split("|")} - {""})
    assert difference({"training": replace(TrainingSpec(), **changes)})[1:] == expected


def test_sdxl_on_8_gb_is_these_arguments():
    recipe = with_preset(builtin_recipes()["copier-quick"], PRESETS[0])
    training = next(recipe.trainings()).training
    pictures = (Pictures(ROOT / "a", ("0.png",), 1024, 832),)
    script, added, removed = difference(
        {"family": Family.SDXL, "training": training, "pictures": pictures}
    )
    assert script == "sdxl_train_network.py"
    assert added == {
        "--mixed_precision fp16",
        "--fp8_base_unet",
        "--gradient_checkpointing",
        "--cache_text_encoder_outputs",
    }
    assert removed == {"--mixed_precision no"}


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        ({}, True),
        ({"captions": CaptionSpec(CaptionPolicy.FIXED, ("a",))}, True),
        ({"captions": CaptionSpec(CaptionPolicy.FIXED, ("a, b",), shuffle=True)}, False),
        ({"captions": CaptionSpec(CaptionPolicy.FIXED, ("a",), dropout=0.1)}, False),
        ({"captions": CaptionSpec(CaptionPolicy.VARIED, ("a", "b"))}, False),
        ({"text_encoder": True}, False),
    ],
)
def test_captions_are_encoded_once_where_they_never_change(changes, cached):
    command = build_command(job(family=Family.SDXL, training=TrainingSpec(**changes)))
    assert ("--cache_text_encoder_outputs" in command.argv) == cached
    assert "--cache_text_encoder_outputs" not in build_command(job(training=TrainingSpec(**changes))).argv


def test_numbers_below_zero_are_numbers_to_argparse():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--base_weights_multiplier", type=float, nargs="*")
    multipliers = (-1e-5, -10.0, 1e-9, 0.1 + 0.2)
    base = tuple((ROOT / f"{i}.safetensors", value) for i, value in enumerate(multipliers))
    values = parser.parse_known_args(list(build_command(job(base=base)).argv))[0]
    assert values.base_weights_multiplier == list(multipliers)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 12),
)
def test_batches_are_full_and_every_picture_counts_alike(sizes, batch):
    pictures = tuple(
        Pictures(ROOT / f"{number}", tuple(f"{i}.png" for i in range(count)), 64 * (number + 1), 64)
        for number, count in enumerate(sizes)
    )
    command = build_command(job(pictures=pictures, training=TrainingSpec(batch_size=batch)))
    datasets = command.dataset["datasets"]
    repeats = {dataset["subsets"][0]["num_repeats"] for dataset in datasets}
    (number,) = repeats
    assert all(count * number % batch == 0 for count in sizes)
    assert [dataset["resolution"][0] for dataset in datasets] == [64 * (i + 1) for i in range(len(sizes))]
    fewer = (n for n in range(1, number) if all(count * n % batch == 0 for count in sizes))
    assert next(fewer, None) is None


def drawn(text: str, *, wildcards: bool) -> set[str]:
    """What sd-scripts can make of a caption file: the rules of its reader and of its wildcards."""
    rows = text.split("\n")[:-1]
    if not wildcards:
        return {rows[0].strip()}
    found = set()
    for row in (row.strip() for row in rows if row.strip()):
        literal = row.replace("{{", "\0").replace("}}", "\1")
        parts = re.split(r"\{([^}]+)\}", literal)
        choices = [part.split("|") if number % 2 else [part] for number, part in enumerate(parts)]
        for picked in itertools.product(*choices):
            found.add("".join(picked).replace("\0", "{").replace("\1", "}"))
    return found


TEXTS = st.text(alphabet="ab ,{}|\n\u2028é⦅", max_size=12)


@given(st.lists(TEXTS, min_size=2, max_size=5))
def test_of_several_captions_sd_scripts_draws_exactly_these(texts):
    wanted = {" ".join(text.split()) for text in texts}
    assert drawn(caption_text(texts, varied=True), wildcards=True) == wanted


@given(TEXTS)
def test_a_single_caption_is_taken_literally(text):
    written = caption_text([text], varied=False)
    assert drawn(written, wildcards=False) == {" ".join(text.split())}
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "captions", "files", "wildcards"),
    [
        (CaptionSpec(), (), ["\n", "\n"], False),
        (CaptionSpec(CaptionPolicy.FIXED, ("a {b}",)), (), ["a {b}\n"] * 2, False),
        (CaptionSpec(CaptionPolicy.VARIED, ("a", "", "{")), (), ["a\n{|}\n{{\n"] * 2, True),
        (CaptionSpec(CaptionPolicy.FILES), ("{x}\n\n", ""), ["{x}\n", "\n"], False),
        (CaptionSpec(CaptionPolicy.FILES), ("{x}", "y\n\nz\n"), ["{{x}}\n", "y\nz\n"], True),
    ],
)
def test_every_picture_has_a_caption_file_that_is_not_empty(spec, captions, files, wildcards):
    pictures = (Pictures(ROOT / "a", ("p.q.png", "r.PNG"), 64, 64, captions),)
    command = build_command(job(pictures=pictures, training=TrainingSpec(captions=spec)))
    assert command.captions == dict(zip((ROOT / "a" / "p.q.txt", ROOT / "a" / "r.txt"), files, strict=True))
    assert command.dataset["datasets"][0]["subsets"][0]["enable_wildcard"] is wildcards


def test_shuffling_and_the_mask_are_in_the_dataset():
    captions = CaptionSpec(CaptionPolicy.FIXED, ("a, b",), shuffle=True, keep_tokens=3, dropout=0.25)
    training = TrainingSpec(captions=captions, masked_loss=True)
    subset = build_command(job(training=training)).dataset["datasets"][0]["subsets"][0]
    assert (subset["shuffle_caption"], subset["keep_tokens"], subset["alpha_mask"]) == (True, 3, True)
    assert subset["caption_dropout_rate"] == 0.25


def test_the_files_are_json_in_ascii_and_captions():
    samples = (SamplePrompt("", 5, 64, 128, "bad --w 9", 2, 1.5),)
    one = job(
        work=ROOT / "wörk",
        pictures=(Pictures(ROOT / "a ü", ("0.png",), 64, 64),),
        samples=samples,
        sample_every=10,
    )
    command = build_command(one)
    files = command.files()
    assert set(files) == {one.dataset_file, one.samples_file, ROOT / "a ü" / "0.txt"}
    assert files[one.dataset_file].isascii()
    assert json.loads(files[one.dataset_file]) == command.dataset
    assert json.loads(files[one.samples_file]) == [
        {
            "prompt": "",
            "negative_prompt": "bad --w 9",
            "width": 64,
            "height": 128,
            "sample_steps": 2,
            "scale": 1.5,
            "seed": 5,
        }
    ]
    assert one.samples_file not in build_command(job()).files()


def test_the_names_of_what_is_written_are_sd_scripts_own():
    one = job(output_name="a lora")
    assert one.output == ROOT / "out" / "a lora.safetensors"
    assert one.tokenizer_folders == (ROOT / "tokenizers" / "openai_clip-vit-large-patch14",)
    assert one.saved(50) == ROOT / "out" / "a lora-step00000050.safetensors"
    assert sample_number("a lora_000050_01_20261125154500_5.png", "a lora") == (50, 1)
    assert sample_number("a lora_1000000_00_20261125154500.png", "a lora") == (1000000, 0)
    for other in ("a lora_e000050_01_20261125154500.png", "other_000050_01_20261125154500.png", "a lora.png"):
        assert sample_number(other, "a lora") is None


def test_the_same_job_makes_the_same_command():
    assert build_command(job()) == build_command(job())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": Family.FLUX}, "the checkpoint is flux.*use sd1, sd2, sdxl"),
        ({"family": Family.UNKNOWN}, "the checkpoint is unknown"),
        ({"clip_skip": 0}, "clip skip is 0: the smallest value is 1"),
        ({"family": Family.SDXL, "clip_skip": 2}, "clip skip is 2, but sdxl has none"),
        ({"family": Family.SD2, "clip_skip": 2}, "clip skip is 2, but sd2 has none"),
        ({"zero_terminal_snr": True}, "turn v-prediction on"),
        ({"checkpoint": Path("a.safetensors")}, "the checkpoint is 'a.safetensors': give the whole path"),
        ({"work": Path("work")}, "the work folder is 'work'"),
        ({"output_folder": Path("-x")}, "the output folder is '-x'"),
        ({"base": ((Path("b"), 1.0),)}, "a base LoRA is 'b'"),
        ({"start": Path("s")}, "the LoRA to start from is 's'"),
        ({"vae": Path("v")}, "the autoencoder is 'v'"),
        ({"output_name": ""}, "output's name is ''"),
        ({"output_name": "-lora"}, "output's name is '-lora'"),
        ({"output_name": "a/b"}, "output's name is 'a/b'"),
        ({"output_name": "a\\b"}, "output's name is"),
        ({"pictures": ()}, "no picture to train on"),
        ({"pictures": tuple(Pictures(ROOT, ("0.png",), 64, side) for side in (64, 128))}, "two sizes"),
        ({"save_every": -1}, "every 1, 2"),
        ({"sample_every": 5}, "both prompts and a number of steps"),
        ({"samples": (SamplePrompt("x", 1, 64, 64),)}, "both prompts and a number of steps"),
        ({"training": TrainingSpec(captions=CaptionSpec(CaptionPolicy.FILES))}, "have no captions"),
    ],
)
def test_a_job_that_would_fail_or_mean_something_else_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        build_command(job(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ()}, "has no picture"),
        ({"names": ("0.gif",)}, r"'0\.gif'.*\.png"),
        ({"names": ("0.Png",)}, r"'0\.Png'"),
        ({"names": (".0.png",)}, r"does not find the picture '\.0\.png'"),
        ({"names": ("0.png", "0.jpg")}, "would share a caption file"),
        ({"width": 500}, "500 x 512 px: both sides must be multiples of 64; crop or pad"),
        ({"height": 0}, "512 x 0 px"),
    ],
)
def test_pictures_that_sd_scripts_would_miss_or_scale_are_refused(changes, message):
    values = {"folder": ROOT, "names": ("0.png",), "width": 512, "height": 512, **changes}
    with pytest.raises(BadPicture, match=message):
        Pictures(**values)


def test_there_is_one_caption_for_each_picture_or_none():
    with pytest.raises(BadInput, match="2 captions for 1 pictures"):
        Pictures(ROOT, ("0.png",), 64, 64, ("a", "b"))


@pytest.mark.parametrize(
    "extra",
    [
        ("--max_grad_norm", "2", "--scale_weight_norms=1"),
        ("--scale_weight_norms", "-1"),
        ("--network_args", "rank_dropout=0.1", "module_dropout=0.1"),
        (),
    ],
)
def test_extra_arguments_come_last_as_they_are(extra):
    argv = build_command(job(extra=extra), OPTIONS).argv
    assert argv == (*build_command(job()).argv, *extra)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (("--max_grad_nrm", "2"), UnknownName, "did you mean '--max_grad_norm'"),
        (("--base_w", "x"), UnknownName, "no option of train_network.py '--base_w'; did you mean"),
        (("-x",), UnknownName, "no option of train_network.py '-x'"),
        (("2",), BadInput, "begin with '2'"),
        (("--max_train_epochs", "2"), BadInput, "--max_train_epochs is not possible: set steps"),
        (("--max_train_epochs=2",), BadInput, "set steps in the recipe"),
        (("--config_file", "x.toml"), BadInput, "Copier sets it"),
        (("--console_log_file=x",), BadInput, "Copier reads the log"),
        (("--scale_weight_norms", "1", "--resolution", "64"), BadInput, "no effect beside the dataset file"),
        (("--help",), BadInput, "--help is not possible"),
    ],
)
def test_extra_arguments_that_are_unknown_or_override_are_refused(extra, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build_command(job(extra=extra), OPTIONS)


def test_arguments_of_the_network_are_free_unless_the_recipe_sets_them():
    extra = ("--network_args", "rank_dropout=0.1")
    with pytest.raises(BadInput, match="--network_args would override the recipe's"):
        build_command(job(extra=extra, training=TrainingSpec(conv_rank=4)), OPTIONS)


def test_everything_that_a_command_sets_is_closed_to_extra_arguments():
    full = job(
        family=Family.SD1,
        training=TrainingSpec(
            loss_weighting=LossWeighting.MIN_SNR, noise_offset=0.1, min_timestep=1, max_timestep=9,
            precision=Precision.FP16, fp8_base=True, gradient_checkpointing=True, warmup_steps=1,
        ),
        base=((ROOT / "b", 1.0),), start=ROOT / "s", vae=ROOT / "v", clip_skip=2, velocity=True,
        zero_terminal_snr=True, save_every=1, samples=(SamplePrompt("x", 1, 64, 64),), sample_every=1,
    )  # fmt: skip
    used = {word for word in build_command(full).argv if word.startswith("--")}
    flags = {flag for script in SCRIPTS.values() for flag in script.flags}
    assert used | flags <= set(MANAGED)
