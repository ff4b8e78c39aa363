"""Figures from the pictures of finished stages: what a stage keeps of them, and what the report shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from copier.evaluation.effect import ChangeResult, StripResult, change_strip, effect_strip, to_pairs
from copier.evaluation.gate import ClosenessResult, GateResult, closeness, gate
from copier.images.effects import EFFECTS, Picture, effect_parameters
from copier.pipeline.files import IDEAL, load_folder, load_set, plain_pictures, strip_pictures
from copier.pipeline.plan import Plan, PlannedStage
from copier.pipeline.store import Entry
from copier.recipe import CombineStage, EvaluateStage
from copier.request import Edit, RunRequest

CEILING_WEIGHT = 1.0
"""The weight at which the autoencoder's ceiling is measured."""

Done = Mapping[str, Entry]
"""The finished stages by name."""


def known_edit(edit: Edit | None) -> Callable[[Picture], Picture] | None:
    """The built-in edit as a function f of pictures; None where there is none, for an edit by hand.

    Raises:
        UnknownName, BadInput: as ``images.effects.effect_parameters``.
    """
    if edit is None:
        return None
    parameters = effect_parameters(edit.name, edit.parameters)
    function = EFFECTS[edit.name].function
    return lambda picture: function(picture, **parameters)


def has_ceiling(request: RunRequest, spec: EvaluateStage) -> bool:
    """Whether an evaluation measures the autoencoder's ceiling: the edit is known, the weight drawn."""
    return request.edit_of(spec.pictures) is not None and CEILING_WEIGHT in spec.weights


def gate_result(done: Done, stage: PlannedStage, folder: Path) -> GateResult:
    """The figures of a ``gate`` stage, whose own files lie in ``folder``."""
    return gate(
        plain_pictures(done[stage.needs["pictures"]]),
        plain_pictures(done[stage.needs["base"]]),
        load_folder(folder / IDEAL),
    )


def closeness_result(done: Done, stage: PlannedStage, folder: Path) -> ClosenessResult:
    """The figures of a ``closeness`` stage, whose own files lie in ``folder``."""
    return closeness(
        plain_pictures(done[stage.needs["pictures"]]),
        load_folder(folder / IDEAL),
        load_set(done[stage.needs["a"]]),
        load_set(done[stage.needs["set"]]),
    )


def disagreements(spec: CombineStage, cosines: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """A sentence on each two terms of a sum whose deltas have a cosine below the stage's ``agreement``.

    ``cosines`` are those of the LoRAs; a weight below 0 turns its term's change round.
    """
    terms, found = spec.terms, []
    for i, row in enumerate(cosines):
        for j in range(i):
            cosine = math.copysign(1.0, terms[i].weight * terms[j].weight) * row[j]
            if cosine < spec.agreement:
                found.append(
                    f"{terms[j].lora} and {terms[i].lora} disagree: the cosine of their changes is "
                    f"{cosine:.2f}, below {spec.agreement:g}; look at their pictures, and leave one out"
                )
    return tuple(found)


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
    edit = known_edit(request.edit_of(spec.pictures))
    if edit is None:
        return change_strip(base, drawn)
    ideals = {CEILING_WEIGHT: load_folder(folder / IDEAL)} if has_ceiling(request, spec) else {}
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
    edit = to_pairs(load_set(done[stage.needs["a"]]), load_set(done[stage.needs["b"]]))
    wanted = {weight: drawn[weight] for weight in spec.weights}
    return effect_strip(drawn[0.0], edit, wanted, spec.floor)
