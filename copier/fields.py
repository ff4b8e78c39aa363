"""The field table: label, help, bounds, choices and unit of every field of every spec.

One table feeds validation, the command line, the tab, the API and the docs. ``FIELDS[spec][field]``
is keyed by the spec's class name. A test proves that it is complete in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from copier.errors import BadInput

LARGEST_SEED = 2**32 - 1
LARGEST_SIDE = 4096
"""Of a picture, in pixels."""
LARGEST_UPLOAD = 256 << 20
"""Bytes of a picture file that is handed to a page or a service."""


class Level(str, Enum):
    """Where a form shows a field."""

    ESSENTIAL = "essential"
    ADVANCED = "advanced"
    STRUCTURE = "structure"


@dataclass(frozen=True)
class Field:
    """What is known of one field, apart from its type and default, which the spec itself has.

    ``minimum`` and ``maximum`` are inclusive; for a tuple of numbers they hold for each one. A text
    or a tuple must have at least ``shortest`` characters or members.
    """

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    level: Level = Level.ADVANCED
    shortest: int = 0


def _structure(label: str, help: str, shortest: int = 0) -> Field:
    return Field(label, help, level=Level.STRUCTURE, shortest=shortest)


_NAME = _structure("Name", "How other stages and --set refer to this stage.", 1)
_LORA = _structure("LoRA", "The stage whose LoRA is used.", 1)
SEED = Field("Seed", "Seed of the LoRA's start, the noise and the timesteps.", 0, LARGEST_SEED)
_PROMPTS = Field("Prompts", "Prompts that training never sees, one picture each.", shortest=1)
_SEEDS = Field("Seeds", "Seeds of the starting noise; prompts and seeds are paired in turn.", 0,
               LARGEST_SEED, shortest=1)  # fmt: skip
SAMPLING_STEPS = Field("Sampling steps", "Steps of the DDIM sampler for each picture.", 1, 150)
GUIDANCE = Field("Guidance", "Classifier-free guidance scale (CFG).", 1, 30)
CLIP_SKIP = Field("Clip skip", "As hosts count it: 1 uses all layers of the text encoder; SD 1.x.", 1, 12)

FIELDS: Mapping[str, Mapping[str, Field]] = {
    "CaptionSpec": {
        "policy": Field(
            "Captions",
            "empty: none; fixed: one text; varied: another of the texts at "
            "every step; files: a .txt beside each picture.",
            level=Level.ESSENTIAL,
        ),
        "texts": Field("Caption texts", "The texts of the policies fixed and varied."),
        "shuffle": Field("Shuffle tags", "Shuffle the comma-separated tags at every step."),
        "keep_tokens": Field("Keep tags", "Leading tags that shuffling leaves in place.", 0, 255),
        "dropout": Field(
            "Without caption",
            "Share of steps that leave the caption away: guidance compares with such a prompt.",
            0,
            0.9,
        ),
        "kept": Field(
            "What captions keep",
            "Of caption files, all: everything; varies: what is not on every picture, and the tags to keep; "
            "constant: only the tags to keep.",
        ),
        "keep": Field(
            "Tags to keep", "For varies and constant; none: framing, and for constant a plain background too."
        ),
    },
    "TrainingSpec": {
        "steps": Field("Steps", "Optimiser steps.", 1, 1_000_000, level=Level.ESSENTIAL),
        "batch_size": Field("Batch size", "Noised copies of the picture in one step.", 1, 64),
        "learning_rate": Field(
            "Learning rate", "Peak rate of the optimiser.", 1e-8, 1.0, level=Level.ESSENTIAL
        ),
        "rank": Field("Rank", "Rank of the linear and 1x1 modules.", 1, 1024, level=Level.ESSENTIAL),
        "alpha": Field(
            "Alpha", "Scale numerator: the LoRA counts alpha / rank.", 1e-3, 4096, level=Level.ESSENTIAL
        ),
        "conv_rank": Field("Conv rank", "Rank of the 3x3 convolutions; 0 leaves them alone.", 0, 1024),
        "conv_alpha": Field("Conv alpha", "Scale numerator of the 3x3 convolutions.", 1e-3, 4096),
        "text_encoder": Field("Train the text encoder", "Also train LoRA modules there."),
        "optimiser": Field("Optimiser", "adamw8bit needs CUDA; elsewhere adamw takes its place."),
        "optimiser_arguments": Field(
            "Optimiser arguments", "name=value, numbers only, as in betas=(0.9,0.99); sd-scripts only."
        ),
        "weight_decay": Field("Weight decay", "Decoupled weight decay of AdamW.", 0, 1),
        "schedule": Field("Schedule", "How the rate falls after the warm-up."),
        "warmup_steps": Field("Warm-up steps", "Steps over which the rate rises.", 0, 1_000_000),
        "captions": _structure("Captions", "What the training prompts are."),
        "loss_weighting": Field("Loss weighting", "Weights of the timesteps in the loss."),
        "min_snr_gamma": Field("Min-SNR gamma", "Limit of the signal-to-noise ratio.", 0.1, 100),
        "noise_offset": Field("Noise offset", "Share of constant noise in each channel.", 0, 1),
        "min_timestep": Field("First timestep", "Smallest timestep that is drawn.", 0, 999),
        "max_timestep": Field("Last timestep", "Timesteps below this one are drawn.", 1, 1000),
        "resolution": Field(
            "Resolution",
            "Longest side that the pictures must have, and the side of a generated A; 0: any size.",
            0,
            LARGEST_SIDE,
            unit="px",
        ),
        "precision": Field("Precision", "Number format of the frozen weights in training."),
        "fp8_base": Field(
            "Base in fp8", "Frozen weights in half the memory, less exact; fp16 or bf16; sd-scripts only."
        ),
        "gradient_checkpointing": Field("Gradient checkpointing", "Less memory, a third slower."),
        "masked_loss": Field("Masked loss", "The alpha channel says where the loss counts; none: all."),
        "pair_mask": Field("Mask by the pair", "The loss counts only where A and B differ."),
        "mask_margin": Field(
            "Margin of the mask", "How far beyond the changed pixels it reaches.", 0, 512, unit="px"
        ),
        "target": Field(
            "Target",
            "noise: that of the pictures; pair: B at weight +1, A at -1; semantic: on A towards B. "
            "The last two: builtin only.",
        ),
        "eta": Field("Strength towards B", "eta in noise + eta (A - B), for the target semantic.", 0, 20),
        "seed": SEED,
    },
    "ConceptSpec": {
        "action": Field(
            "Concept",
            "erase, enhance or move what a prompt names, without pictures; none: train on pictures. "
            "Builtin only.",
        ),
        "target": Field(
            "Prompt that changes",
            "What is asked for, and will be drawn differently.",
            level=Level.ESSENTIAL,
        ),
        "positive": Field(
            "Prompt of the concept",
            "What is taken away or added; move: what is drawn instead. Empty: the prompt that changes.",
            level=Level.ESSENTIAL,
        ),
        "neutral": Field(
            "Neutral prompt",
            "What the prompt that changes is drawn as without the concept.",
            level=Level.ESSENTIAL,
        ),
        "contexts": Field(
            "Contexts", "Frames for the prompts, as in {} on white background; one at every step.", shortest=1
        ),
        "guidance": Field(
            "Strength", "How far beyond the neutral prompt: eta of ESD.", 0, 20, level=Level.ESSENTIAL
        ),
        "sampling_steps": Field("Steps of drawing", "DDIM steps of the latents that are trained on.", 2, 150),
        "drawing_guidance": Field("Guidance of drawing", "CFG of the latents that are trained on.", 1, 30),
    },
    "RankPolicy": {
        "method": Field(
            "Rank by",
            "exact: concatenate; rank: a fixed one; the others keep the "
            "smallest rank that satisfies the threshold.",
            level=Level.ESSENTIAL,
        ),
        "rank": Field("Rank", "Rank, or the largest one allowed.", 1, 4096, level=Level.ESSENTIAL),
        "conv_rank": Field("Conv rank", "The same for 3x3 convolutions; 0: as the others.", 0, 4096),
        "threshold": Field(
            "Threshold",
            "sv_ratio: largest over smallest singular value kept; sv_fro, sv_cumulative: share kept.",
            0,
            1e6,
        ),
    },
    "PictureSet": {
        "name": _structure("Name", "How stages and a run refer to these pictures.", 1),
        "of": _structure("Change of", "The set that these are with one thing changed, or nothing."),
        "part_of": _structure("Made from", "The set that these are made from, or nothing: they are given."),
        "number": Field("Picture", "Which picture of that set, from 1; 0: all.", 0, 100_000),
        "views": Field("Views", "Crops and zooms of each picture; 0: the picture as it is.", 0, 1000),
        "nearest": Field("Nearest view", "Smallest share of a side that a view shows.", 0.05, 0.95),
        "views_seed": Field("Seed of the views", "Seed of their places and sizes.", 0, LARGEST_SEED),
        "one_by_one": Field(
            "One by one", "Each picture goes through the stages by itself; sums add their LoRAs."
        ),
    },
    "WeightedLora": {
        "lora": _LORA,
        "weight": Field("Weight", "Weight of the LoRA in the sum.", -10, 10),
    },
    "FileStage": {"name": _NAME},
    "BaseLora": {
        "lora": _LORA,
        "multiplier": Field("Multiplier", "Weight with which it is merged into the base.", -10, 10),
    },
    "TrainStage": {
        "name": _NAME,
        "pictures": _structure("Pictures", "The set of pictures that is trained on; none for a concept."),
        "base": _structure("Base LoRAs", "LoRAs merged into the checkpoint before training."),
        "start": _structure("Start from", "Stage whose LoRA training starts from, or nothing."),
        "check_every": Field(
            "Check every",
            "End when the gate holds for what was trained so far; 0: train all steps.",
            0,
            1_000_000,
            unit="steps",
        ),
        "check_pictures": Field(
            "Pictures of a check", "Drawn at each check, with other seeds; 0: those of the gate.", 0, 1000
        ),
        "check_sampling_steps": Field("Sampling steps of a check", "0: those of the gate.", 0, 150),
        "concept": _structure("Concept", "What is changed by text alone."),
        "training": _structure("Training", "How it is trained."),
    },
    "GateStage": {
        "name": _NAME,
        "lora": _LORA,
        "pictures": _structure("Pictures", "The set that it should draw, whatever the prompt.", 1),
        "base": _structure("Base LoRAs", "LoRAs merged beneath it."),
        "prompts": _PROMPTS,
        "seeds": _SEEDS,
        "sampling_steps": SAMPLING_STEPS,
        "guidance": Field("Guidance", "CFG of every second picture; the others have none.", 1, 30),
        "median_limit": Field("Median limit", "The median distance must not exceed this.", 0, 2),
        "single_limit": Field("Single limit", "Distance that a single picture may have.", 0, 2),
        "share": Field("Share", "Share of the pictures within the single limit.", 0, 1),
    },
    "DifferenceStage": {
        "name": _NAME,
        "minuend": _structure("B", "Stage whose LoRA counts positive.", 1),
        "subtrahend": _structure("A", "Stage whose LoRA is taken away.", 1),
        "minuend_ratio": Field("Ratio of B", "Weight of B in the sum.", -10, 10),
        "subtrahend_ratio": Field("Ratio of A", "Weight of A in the sum.", -10, 10),
        "ranks": _structure("Rank", "How far the sum is truncated."),
    },
    "CombineStage": {
        "name": _NAME,
        "terms": _structure("Terms", "The LoRAs that are added, with their weights.", 1),
        "average": Field("Average", "Divide the sum by the number of LoRAs.", level=Level.ESSENTIAL),
        "route": Field(
            "Route",
            "factors: exact; checkpoint-...: all LoRAs are merged into the checkpoint in that number format, "
            "and what it changed is extracted.",
        ),
        "agreement": Field(
            "Agreement", "Two LoRAs whose deltas have a cosine below this are reported; -1: none.", -1, 1
        ),
        "ranks": _structure("Rank", "How far the sum is truncated."),
    },
    "ResizeStage": {
        "name": _NAME,
        "lora": _LORA,
        "ranks": _structure("Rank", "The rank that is kept."),
    },
    "EvaluateStage": {
        "name": _NAME,
        "lora": _LORA,
        "pictures": _structure("Pictures", "The changed set whose change it should make.", 1),
        "control": _structure("Control", "Stage of the LoRA to compare with, or nothing."),
        "prompts": _PROMPTS,
        "seeds": _SEEDS,
        "weights": Field("Weights", "LoRA weights of the strip.", -10, 10, shortest=1),
        "sampling_steps": SAMPLING_STEPS,
        "guidance": GUIDANCE,
        "floor": Field(
            "Floor", "Pairs whose ideal change is below this root mean square are left out and counted.", 0, 1
        ),
    },
    "Recipe": {
        "name": _structure("Name", "Name of the recipe: letters, digits, '-', '_'.", 1),
        "title": _structure("Title", "What a list shows.", 1),
        "explanation": _structure("Explanation", "One line: what it is good for."),
        "trainer": Field("Trainer", "builtin or sd-scripts.", level=Level.ADVANCED),
        "pictures": _structure("Pictures", "The sets of pictures that a run is given, if any."),
        "stages": _structure("Stages", "In an order in which they can run.", 1),
        "result": _structure("Result", "The stage whose LoRA is the outcome.", 1),
    },
}


def check(spec: Any, field: str, value: Any) -> None:
    """Raise ``BadInput`` where ``value`` is outside the bounds of ``field`` of the spec class.

    Enums and nested specs check themselves; here: numbers (finite, within bounds), texts and
    tuples (not too short).
    """
    known = FIELDS[type(spec).__name__][field]
    where = f"{type(spec).__name__}.{field}"
    if isinstance(value, (str, tuple)) and len(value) < known.shortest and not isinstance(value, Enum):
        raise BadInput(f"{where} is empty: give at least {known.shortest}")
    values = value if isinstance(value, tuple) else (value,)
    for text in values:
        if isinstance(text, str):
            check_text(where, text)
    for number in values:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        check_number(where, number, known)


def check_number(where: str, number: float, known: Field) -> None:
    """Raise ``BadInput`` where ``number`` is not finite, or outside the bounds of the field ``known``."""
    if isinstance(number, float) and not math.isfinite(number):
        raise BadInput(f"{where} is {number}: give a finite number")
    if known.minimum is not None and number < known.minimum:
        raise BadInput(f"{where} is {number}: the smallest allowed value is {known.minimum}")
    if known.maximum is not None and number > known.maximum:
        raise BadInput(f"{where} is {number}: the largest allowed value is {known.maximum}")


def check_text(where: str, text: str) -> None:
    """Raise ``BadInput`` where ``text`` holds what no file can hold: half of a letter (a lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{where} has a character that is no Unicode text at position {error.start + 1}: type it again"
        ) from None
