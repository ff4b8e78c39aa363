"""What each stage of a job does, for somebody who never saw the recipe. Pure: no gradio here."""

from __future__ import annotations

from copier.app.jobs import RUN, Job
from copier.errors import CopierError
from copier.recipe import (
    CombineStage,
    DifferenceStage,
    EvaluateStage,
    FileStage,
    GateStage,
    Recipe,
    ResizeStage,
    StageSpec,
    Target,
    TrainStage,
)
from copier.ui import words

_DRAWING = {"pictures", "base", "lora", "control"}
"""Second parts of the names of drawings that a gate or an evaluation needs."""


def stage_words(job: Job) -> dict[str, str]:
    """By the name of a stage of the job's recipe, or of a set of its pictures; {} for what is no run."""
    if job.kind != RUN:
        return {}
    try:
        recipe = job.request.written_out().recipe
    except CopierError:  # of another version of the program
        return {}
    original = words.SET_A if recipe.changed else words.PICTURES_GIVEN
    sets = {one.name: words.SET_B if one.of else original for one in recipe.pictures}
    return sets | {stage.name: _does(stage, recipe) for stage in recipe.stages}


def said_of(name: str, known: dict[str, str]) -> str:
    """What the planned stage ``name`` does: one of the recipe, or a drawing that one needs."""
    head, _, part = name.partition(".")
    return words.DRAWS if part in _DRAWING and head in known else known.get(name, "")


def _does(stage: StageSpec, recipe: Recipe) -> str:
    changed = {one.name for one in recipe.pictures if one.of}
    if isinstance(stage, TrainStage):
        if stage.concept.by_text:
            return words.LEARNS_CONCEPT
        if stage.pictures not in changed:
            return words.LEARNS_A if changed else words.LEARNS_SET
        from_pair = stage.training.target is not Target.NOISE
        return words.LEARNS_CHANGE if stage.base or from_pair else words.LEARNS_B
    if isinstance(stage, GateStage):
        return words.CHECKS_B if stage.pictures in changed else words.CHECKS_A
    return _OTHERS[type(stage)]


_OTHERS: dict[type, str] = {
    FileStage: words.GIVEN,
    DifferenceStage: words.SUBTRACTS,
    CombineStage: words.ADDS,
    ResizeStage: words.RESIZES,
    EvaluateStage: words.MEASURES,
}
