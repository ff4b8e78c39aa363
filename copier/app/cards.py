"""Fits a recipe to the memory of a card, for families whose checkpoints need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from copier.app.settings import Settings
from copier.checkpoint.family import detect
from copier.checkpoint.header import read_header
from copier.codec import with_values
from copier.errors import BadInput
from copier.recipe import Recipe, Trainer
from copier.training.interpreter import ask_interpreter
from copier.training.machine import device_of, find_device
from copier.training.memory import PRESETS, preset_for, with_preset

_GB = 1 << 30
_TRAINER = "trainer="


def fitted(
    recipe: Recipe, checkpoint: Path, settings: Settings, *, device: str, card: int | None
) -> tuple[Recipe, str]:
    """``recipe`` with the numbers for a card of ``card`` GB (None: the one that is there), and what was done.

    Only where sd-scripts trains a family that has such presets, SDXL; else the recipe as it is, and "". On
    the processor the largest preset counts, in the recipe's own precision.

    Raises:
        BadInput: a card is named that is too small, or for a recipe or family that has no presets.
    """
    if recipe.trainer is not Trainer.SD_SCRIPTS or not checkpoint.is_file():
        return _unfitted(recipe, card)
    family = detect(read_header(checkpoint)).family
    presets = [preset for preset in PRESETS if preset.family is family]
    if not presets:
        return _unfitted(recipe, card)
    memory = card if card is not None else _memory(settings, device)
    if memory is None:
        largest = max(presets, key=lambda preset: preset.gigabytes)
        # The processor has no fp16.
        values = {name: value for name, value in largest.values.items() if name != "precision"}
        return with_preset(recipe, replace(largest, values=values)), f"the recipe is set for {family.value}"
    preset = preset_for(family, memory)
    if preset is None:
        smallest = min(one.gigabytes for one in presets)
        raise BadInput(
            f"the card has {memory:.0f} GB, and {family.value} needs {smallest} GB to be trained: use an SD "
            f"1.x checkpoint, or try the settings for {smallest} GB with --card {smallest}"
        )
    return (
        with_preset(recipe, preset),
        f"the recipe is set for {family.value} on a card of {preset.gigabytes} GB",
    )


def _unfitted(recipe: Recipe, card: int | None) -> tuple[Recipe, str]:
    if card is not None:
        raise BadInput(
            f"a card of {card} GB is named, but only trainings of SDXL by sd-scripts are fitted to one: "
            "leave out --card"
        )
    return recipe, ""


def _memory(settings: Settings, device: str) -> float | None:
    """Of the card that trains, in GB; None on the processor, or where it is not known."""
    interpreter = ask_interpreter(settings.python)
    if device == "cpu" or device_of(interpreter).kind == "cpu":
        return None
    return find_device(interpreter.path).memory / _GB or None


def changed(
    recipe: Recipe,
    changes: Sequence[str],
    checkpoint: Path,
    settings: Settings,
    *,
    device: str,
    card: int | None = None,
) -> tuple[Recipe, str]:
    """``recipe`` ``fitted`` and with the ``changes``, as ``codec.with_value`` takes them; and what was done.

    The trainer comes first: what a card needs depends on it. Every other change comes after that.

    Raises:
        BadInput, UnknownName: as ``fitted`` and ``codec.with_value``.
    """
    recipe = with_values(recipe, [one for one in changes if one.startswith(_TRAINER)])
    recipe, note = fitted(recipe, checkpoint, settings, device=device, card=card)
    return with_values(recipe, [one for one in changes if not one.startswith(_TRAINER)]), note
