"""What a run will take: told from what stages of a like kind took on this machine, or not at all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from copier.app.service import check_runs, repetitions
from copier.app.settings import Settings
from copier.digest import DigestMemory
from copier.images.pairs import fitted, read_picture
from copier.pipeline.plan import PlannedStage, original_side, plan
from copier.pipeline.store import Record, StageStore
from copier.recipe import TrainStage
from copier.request import Edit, Generated, PictureFiles, RunRequest

_COSTLY = (
    *("batch_size", "rank", "conv_rank", "text_encoder", "precision", "optimiser"),
    *("gradient_checkpointing", "fp8_base"),
)
"""Fields of a training that change what a step takes; its size is compared too."""
_LONG = ("train", "draw")
"""Kinds of stages without which there is no estimate; the others take moments."""

Size = tuple[int, int]


@dataclass(frozen=True)
class StageEstimate:
    """One stage: ``seconds`` 0 where it is reused, None where nothing like it was ever made here.

    ``memory`` is the peak in bytes that was measured, ``measured`` the number of stages it is told from.
    """

    name: str
    kind: str
    reused: bool
    seconds: float | None
    memory: int | None = None
    measured: int = 0


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
        trainings = [one for one in self.stages if one.kind == "train" and not one.reused]
        if any(one.memory is None for one in trainings):
            return None
        return max((one.memory or 0 for one in trainings), default=0)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Trainings and drawings unlike any that were made here."""
        return tuple(one.name for one in self.stages if one.kind in _LONG and one.seconds is None)


def estimate(
    request: RunRequest, settings: Settings, *, control: bool = False, seeds: int = 1
) -> Estimate:
    """What the run would take now, stages that are there already left out.

    A training's time is its number of steps times the median of the seconds that a step took in trainings
    with the same checkpoint, trainer, size and costly settings; one that may end early is taken to end last.
    A drawing's goes by the number of pictures. Hashes a checkpoint that was never hashed, once.

    Raises:
        BadInput and its kin: as ``app.service.check``.
    """
    (wanted,) = check_runs([request], settings, control=control, seeds=seeds)
    store = StageStore(settings.stages)
    history = _History([entry.record for entry in store.entries()])
    digest = DigestMemory(settings.digests).digest
    found: dict[str, StageEstimate] = {}
    for one in (wanted, *repetitions(wanted, seeds)):
        sizes = _sizes(one)
        for stage in plan(one, digest).stages:
            if stage.key not in found:
                reused = store.find(stage.key) is not None
                found[stage.key] = history.estimated(stage, sizes, reused=reused)
    return Estimate(tuple(found.values()))


class _History:
    """Records of finished stages, to be asked what a planned one will take."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._by_key = {record.key: record for record in records}

    def estimated(self, stage: PlannedStage, sizes: Mapping[str, Size], *, reused: bool) -> StageEstimate:
        if reused:
            return StageEstimate(stage.name, stage.kind, True, 0.0)
        role = "set" if stage.kind == "train" else "like"
        size = _side(stage.ingredients) or sizes.get(stage.needs.get(role, ""))
        wanted = _traits(stage.kind, stage.ingredients, size)
        alike = [
            one
            for one in self._records
            if one.kind == stage.kind and _traits(one.kind, one.ingredients, self._size(one)) == wanted
        ]
        if not alike:
            return StageEstimate(stage.name, stage.kind, False, None)
        memories = [one.outcome["memory"] for one in alike if "memory" in one.outcome]
        return StageEstimate(
            stage.name,
            stage.kind,
            False,
            statistics.median(map(_per_unit, alike)) * _units(stage),
            max(memories, default=None),
            len(alike),
        )

    def _size(self, record: Record) -> Size | None:
        """Of the pictures that a finished stage trained on or drew; None where it cannot be told any more."""
        if side := _side(record.ingredients):
            return side
        needs = record.ingredients.get("needs", {})
        pictures = self._by_key.get(needs.get("set" if record.kind == "train" else "like", ""))
        if pictures is None or "width" not in pictures.outcome:
            return None
        return pictures.outcome["width"], pictures.outcome["height"]


def _side(ingredients: Mapping[str, Any]) -> Size | None:
    side = ingredients.get("side")
    return (side, side) if isinstance(side, int) else None


def _traits(kind: str, ingredients: Mapping[str, Any], size: Size | None) -> Any:
    """What stages must have in common for one to tell what another takes."""
    if kind == "train":
        training = ingredients.get("training", {})
        costly = [training.get(name) for name in _COSTLY]
        return ingredients.get("trainer"), ingredients.get("checkpoint"), size, costly
    if kind == "draw":
        names = ("checkpoint", "precision", "steps")
        return size, [ingredients.get(name) for name in names], _guided(ingredients)
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


def _sizes(request: RunRequest) -> dict[str, Size]:
    """Width and height of the pictures of each set."""
    sizes: dict[str, Size] = {}
    for pictures in request.recipe.pictures:
        source = request.pictures[pictures.name]
        if isinstance(source, Edit):
            sizes[pictures.name] = sizes[pictures.of]
        elif isinstance(source, Generated):
            sizes[pictures.name] = (original_side(request.recipe, source),) * 2
        elif isinstance(source, PictureFiles):
            sizes[pictures.name] = fitted(read_picture(source.paths[0]), source.fit).size
    return sizes
