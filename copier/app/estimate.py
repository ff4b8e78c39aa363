"""What a run will take: told from what stages of a like kind took on this machine, or not at all."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from copier.app.service import check_runs, plans, set_sizes
from copier.app.settings import Settings
from copier.digest import DigestMemory
from copier.images.sizes import Size, largest
from copier.pipeline.plan import PlannedStage
from copier.pipeline.store import Record, StageStore
from copier.recipe import TrainStage
from copier.request import RunRequest

_COSTLY = (
    *("batch_size", "rank", "conv_rank", "text_encoder", "precision", "optimiser"),
    *("gradient_checkpointing", "fp8_base", "target"),
)
"""Fields of a training that change what a step takes; the sizes of its pictures are compared too."""
_LONG = ("train", "draw")
"""Kinds of stages without which there is no estimate; the others take moments."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage: ``seconds`` 0 where it is reused, None where nothing like it was ever made here.

    ``memory`` is the peak in bytes that was measured, of a training with a largest picture of the same size;
    ``measured`` the number of stages from which the time is told; ``largest`` that size, where the set has
    several.
    """

    name: str
    kind: str
    reused: bool
    seconds: float | None
    memory: int | None = None
    measured: int = 0
    largest: Size | None = None


@dataclass(frozen=True)
class Estimate:
    """A run. ``seconds`` and ``memory`` (bytes, of the card or the process) are None where not known.

    ``unknown`` names the stages that have nothing to be told from.
    """

    stages: tuple[StageEstimate, ...]

    @property
    def seconds(self) -> float | None:
        """Of all stages."""
        if self.unknown:
            return None
        return sum(one.seconds or 0.0 for one in self.stages)

    @property
    def memory(self) -> int | None:
        """The largest of a training that will run; 0 where none will."""
        trainings = self._trainings
        if any(one.memory is None for one in trainings):
            return None
        return max((one.memory or 0 for one in trainings), default=0)

    @property
    def largest(self) -> Size | None:
        """The picture for which the memory is needed, where its set has several sizes."""
        heaviest = max(self._trainings, key=lambda one: one.memory or 0, default=None)
        return heaviest.largest if heaviest else None

    @property
    def _trainings(self) -> list[StageEstimate]:
        return [one for one in self.stages if one.kind == "train" and not one.reused]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Trainings and drawings unlike any that were made here."""
        return tuple(one.name for one in self.stages if one.kind in _LONG and one.seconds is None)


def estimate(
    request: RunRequest, settings: Settings, *, control: bool = False, seeds: int = 1
) -> Estimate:
    """What the run would take now, stages that are there already left out.

    A training's time is its number of steps times the median of the seconds that a step took in trainings
    with the same checkpoint, trainer, sizes and costly settings; one that may end early is taken to end last.
    Its memory is the most that one took whose largest picture has the same size: a batch is of one size. A
    drawing's time goes by the number of pictures. Hashes a checkpoint that was never hashed, once.

    Raises:
        BadInput and its kin: as ``app.service.check``.
    """
    (wanted,) = check_runs([request], settings, control=control, seeds=seeds)
    store = StageStore(settings.stages)
    history = _History([entry.record for entry in store.entries()])
    digest = DigestMemory(settings.digests).digest
    found: dict[str, StageEstimate] = {}
    sizes = set_sizes(wanted)
    for one in plans(wanted, settings, digest, seeds=seeds):
        for stage in one.stages:
            if stage.key not in found:
                reused = store.find(stage.key) is not None
                found[stage.key] = history.estimated(stage, sizes, reused=reused)
    return Estimate(tuple(found.values()))


class _History:
    """Records of finished stages, to be asked what a planned one will take."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._by_key = {record.key: record for record in records}

    def estimated(
        self, stage: PlannedStage, sets: Mapping[str, Sequence[Size]], *, reused: bool
    ) -> StageEstimate:
        if reused:
            return StageEstimate(stage.name, stage.kind, True, 0.0)
        role = "set" if stage.kind == "train" else "like"
        sizes = _side(stage.ingredients) or sets.get(stage.needs.get(role, ""), ())
        alike = self._alike(stage, sizes, _mix)
        as_large = [one.outcome for one in self._alike(stage, sizes, _largest)]
        return StageEstimate(
            stage.name,
            stage.kind,
            False,
            statistics.median(map(_per_unit, alike)) * _units(stage) if alike else None,
            max((outcome["memory"] for outcome in as_large if "memory" in outcome), default=None),
            len(alike),
            largest(sizes) if stage.kind == "train" and len(set(sizes)) > 1 else None,
        )

    def _alike(
        self, stage: PlannedStage, sizes: Sequence[Size], of_sizes: Callable[[str, Sequence[Size]], Any]
    ) -> list[Record]:
        """Finished stages of the kind with the same traits, and what ``of_sizes`` tells of sizes the same."""
        kind = stage.kind
        wanted = _traits(kind, stage.ingredients), of_sizes(kind, sizes)
        records = (one for one in self._records if one.kind == kind)
        return [
            one
            for one in records
            if (_traits(kind, one.ingredients), of_sizes(kind, self._sizes(one))) == wanted
        ]

    def _sizes(self, record: Record) -> Sequence[Size]:
        """Of the pictures that a finished stage trained on or drew; none where that is not known any more."""
        if side := _side(record.ingredients):
            return side
        needs = record.ingredients.get("needs", {})
        pictures = self._by_key.get(needs.get("set" if record.kind == "train" else "like", ""))
        if pictures is None or "width" not in pictures.outcome:
            return ()
        first = (pictures.outcome["width"], pictures.outcome["height"])
        return [(width, height) for width, height in pictures.outcome.get("sizes", [first])]


def _side(ingredients: Mapping[str, Any]) -> Sequence[Size]:
    side = ingredients.get("side")
    return [(side, side)] if isinstance(side, int) else ()


def _mix(kind: str, sizes: Sequence[Size]) -> dict[Size, int]:
    """What sizes a stage has to do with, in the least numbers of the same proportion: that decides its time.

    A drawing has as many pictures of every size.
    """
    counts = Counter(sizes if kind == "train" else set(sizes))
    divisor = math.gcd(*counts.values()) or 1
    return {size: count // divisor for size, count in counts.items()}


def _largest(kind: str, sizes: Sequence[Size]) -> Size | None:
    return largest(sizes) if sizes else None


def _traits(kind: str, ingredients: Mapping[str, Any]) -> Any:
    """What stages must have in common, besides sizes, for one to tell what another takes."""
    if kind == "train":
        training = ingredients.get("training", {})
        costly = [training.get(name) for name in _COSTLY]
        drawn = ingredients.get("concept", {}).get("sampling_steps")
        return ingredients.get("trainer"), ingredients.get("checkpoint"), costly, drawn
    if kind == "draw":
        names = ("checkpoint", "precision", "steps")
        return [ingredients.get(name) for name in names], _guided(ingredients)
    return ()


def _guided(ingredients: Mapping[str, Any]) -> float:
    """The share of pictures that take two passes of the U-Net a step."""
    guidance: list[float] = ingredients.get("guidance", [])
    return sum(scale != 1 for scale in guidance) / max(1, len(guidance))


def _per_unit(record: Record) -> float:
    """Seconds of a step or a picture, or of the whole stage."""
    if record.kind == "train":
        return record.seconds / max(1, int(record.outcome.get("steps", 1)))
    if record.kind == "draw":
        return record.seconds / max(1, int(record.outcome.get("pictures", 1)))
    return record.seconds


def _units(stage: PlannedStage) -> int:
    if isinstance(stage.spec, TrainStage):
        return stage.spec.training.steps
    if stage.kind == "draw":
        return len(stage.ingredients["prompts"]) * len(stage.ingredients["weights"])
    return 1
