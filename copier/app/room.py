"""Room on the disk: what a run will need, and whether it is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from copier.checkpoint.header import Header
from copier.checkpoint.lora_keys import split_key
from copier.checkpoint.targets import trained_names
from copier.disk import free_disk
from copier.errors import BadInput
from copier.images.sizes import Size
from copier.recipe import (
    CombineStage,
    DifferenceStage,
    FileStage,
    GateStage,
    RankMethod,
    Recipe,
    ResizeStage,
    SumRoute,
    TrainStage,
)

ROOM = 256 * 1024 * 1024
"""Bytes that any run needs besides its LoRAs and sets: what it draws, the report, scratch files."""
_PICTURE_BYTES = 3 + 3
"""Of each pixel of a set: PNG files, no larger than the pixels, in the store and in the output folder."""
_MEASURED_BYTES = 3 + 12
"""And of each stage that measures by the set: PNG again, and float32 on the way to the autoencoder."""
NONE_GIVEN: Mapping[str, Header] = MappingProxyType({})
_BYTES = 4 + 2
"""Of each number of a LoRA: float32 in the store, float16 in the output folder."""


def lora_room(recipe: Recipe, checkpoint: Header, given: Mapping[str, Header] = NONE_GIVEN) -> int:
    """Bytes that the recipe's LoRAs take for that checkpoint, in the store and published.

    An upper bound: where linear modules and convolutions differ in rank the larger one counts for all.
    ``given`` are the LoRA files of the recipe's file stages, by name.
    """
    ranks: dict[str, int] = {}
    total = 0
    for stage in recipe.stages:
        if isinstance(stage, FileStage):
            ranks[stage.name] = largest_rank(given[stage.name])
            total += given[stage.name].file_size
            continue
        if isinstance(stage, TrainStage):
            spec = stage.training
            rank, conv, text = max(spec.rank, spec.conv_rank), spec.conv_rank > 0, spec.text_encoder
        elif isinstance(stage, (DifferenceStage, CombineStage, ResizeStage)):
            rank = sum(ranks[one] for one in stage.references)
            if stage.ranks.method is not RankMethod.EXACT:
                rank = min(rank, max(stage.ranks.rank, stage.ranks.conv_rank))
            conv = bool(given) or any(one.training.conv_rank > 0 for one in recipe.trainings())
            text = bool(given) or any(one.training.text_encoder for one in recipe.trainings())
        else:
            continue
        ranks[stage.name] = rank
        total += rank * _numbers(checkpoint, conv=conv, text=text) * _BYTES
    return total


def processed_room(recipe: Recipe, checkpoint: Header) -> int:
    """Bytes of the checkpoint that a sum by way of one writes meanwhile: in fp32, of a file in fp16."""
    routes = [stage.route for stage in recipe.stages if isinstance(stage, CombineStage)]
    return 0 if all(route is SumRoute.FACTORS for route in routes) else 2 * checkpoint.file_size


def picture_room(recipe: Recipe, sets: Mapping[str, Sequence[Size]]) -> int:
    """Bytes that the pictures of the sets take, at most; ``sets`` are the sizes of all pictures by name."""
    total = 0
    for name, sizes in sets.items():
        measured = sum(isinstance(one, GateStage) and one.pictures == name for one in recipe.stages)
        pixels = sum(width * height for width, height in sizes)
        total += pixels * (_PICTURE_BYTES + measured * _MEASURED_BYTES)
    return total


def largest_rank(lora: Header) -> int:
    """The largest rank of a module in a LoRA file."""
    keys = ((split_key(name), info.shape) for name, info in lora.tensors.items())
    return max((shape[0] for key, shape in keys if key and key.part == "down" and shape), default=0)


def check_room(folder: Path, option: str = "--out", *, files: int = 0) -> None:
    """Raise ``BadInput`` where the disk of ``folder``, which need not exist, is nearly full.

    ``files`` are the bytes for LoRAs and sets of pictures that will be needed, besides ``ROOM``.
    """
    free, needed = free_disk(folder), ROOM + files
    if free < needed:
        raise BadInput(
            f"the disk of {folder} has {free >> 20} MB free, a run needs {needed >> 20} MB: free some "
            f"room, or choose another folder with {option}"
        )


def _numbers(checkpoint: Header, *, conv: bool, text: bool) -> int:
    """Numbers in a LoRA of rank 1: inputs and outputs of all modules that it has."""
    targets = trained_names(checkpoint, conv=conv, text=text).values()
    shapes = [checkpoint.tensors[target.key].shape for target in targets]
    return sum(shape[0] + math.prod(shape[1:]) for shape in shapes)
