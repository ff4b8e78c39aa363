"""Figures from the pictures of finished stages: what a stage keeps of them, and what the report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from copier.evaluation.effect import ChangeResult, StripResult, change_strip, effect_strip, to_picture
from copier.evaluation.gate import ClosenessResult, GateResult, closeness, gate
from copier.images.effects import EFFECTS, Picture, effect_parameters
from copier.pipeline.files import IDEAL, PICTURE, load_picture, load_stack, plain_pictures, strip_pictures
from copier.pipeline.plan import Plan, PlannedStage
from copier.pipeline.store import Entry
from copier.recipe import EvaluateStage
from copier.request import Edit, RunRequest

CEILING_WEIGHT = 1.0
"""The weight at which the autoencoder's ceiling is measured."""

Done = Mapping[str, Entry]
"""The finished stages by name."""


def known_edit(request: RunRequest) -> Callable[[Picture], Picture] | None:
    """The edit f of the request as a function of pictures; None for an edit by hand."""
    if not isinstance(request.b, Edit):
        return None
    function = EFFECTS[request.b.name].function
    parameters = effect_parameters(request.b.name, request.b.parameters)
    return lambda picture: function(picture, **parameters)


def has_ceiling(request: RunRequest, spec: EvaluateStage) -> bool:
    """Whether an evaluation measures the autoencoder's ceiling: the edit is known, the weight drawn."""
    return isinstance(request.b, Edit) and CEILING_WEIGHT in spec.weights


def gate_result(done: Done, stage: PlannedStage, folder: Path) -> GateResult:
    """The figures of a ``gate`` stage, whose own files lie in ``folder``."""
    return gate(
        plain_pictures(done[stage.needs["pictures"]]),
        plain_pictures(done[stage.needs["base"]]),
        load_stack(folder / IDEAL)[0],
    )


def closeness_result(done: Done, stage: PlannedStage, folder: Path) -> ClosenessResult:
    """The figures of a ``closeness`` stage, whose own files lie in ``folder``."""
    return closeness(
        plain_pictures(done[stage.needs["pictures"]]),
        load_stack(folder / IDEAL)[0],
        load_picture(done[stage.needs["a"]].path(PICTURE)),
        load_picture(done[stage.needs["picture"]].path(PICTURE)),
    )


def strip_figures(
    request: RunRequest, plan: Plan, done: Done, stage: PlannedStage, folder: Path, role: str
) -> StripResult | ChangeResult:
    """The figures of an ``evaluate`` stage for the ``role`` lora or control.

    Effect and leakage where the edit is known, else magnitude and consistency of the change.
    ``folder`` holds the stage's own files.
    """
    spec = stage.spec
    assert isinstance(spec, EvaluateStage)
    name = stage.needs[role]
    base = plain_pictures(done[stage.needs["base"]])
    drawn = strip_pictures(done[name], plan.draws[name])
    edit = known_edit(request)
    if edit is None:
        return change_strip(base, drawn)
    ideals = {CEILING_WEIGHT: load_stack(folder / IDEAL)} if has_ceiling(request, spec) else {}
    return effect_strip(base, edit, drawn, spec.floor, ideals=ideals)


def original_figures(plan: Plan, done: Done, stage: PlannedStage) -> StripResult | None:
    """Effect of an ``evaluate`` stage's LoRA on A itself, for an edit by hand; else None.

    The ideal is known only there, and is B; the pictures without the LoRA are the copier's.
    """
    spec = stage.spec
    assert isinstance(spec, EvaluateStage)
    if "original" not in stage.needs:
        return None
    name = stage.needs["original"]
    drawn = strip_pictures(done[name], plan.draws[name])
    b = load_picture(done[stage.needs["b"]].path(PICTURE))
    wanted = {weight: drawn[weight] for weight in spec.weights}
    return effect_strip(drawn[0.0], to_picture(b), wanted, spec.floor)
