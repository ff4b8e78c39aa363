"""From finished runs to what their report shows."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from copier.evaluation.comparison import compare, spread
from copier.evaluation.effect import StripResult
from copier.evaluation.gate import ENOUGH, worse
from copier.evaluation.report_data import (
    Check,
    ClosenessReport,
    Draw,
    GateReport,
    LossCurve,
    ReportData,
    Result,
    SeedRow,
    SeedTable,
    StageLine,
    StageStatus,
    Strip,
)
from copier.images.effects import EFFECTS
from copier.images.sizes import sizes_text
from copier.pipeline.files import (
    LOSSES,
    load_picture,
    picture_paths,
    picture_sizes,
    plain_pictures,
    strip_pictures,
)
from copier.pipeline.measure import (
    closeness_result,
    disagreements,
    gate_result,
    known_edit,
    original_figures,
    strip_figures,
)
from copier.pipeline.plan import Draws, PlannedStage
from copier.pipeline.runner import FinishedRun
from copier.recipe import CombineStage, EvaluateStage, GateStage
from copier.request import Edit, Generated
from copier.version import program

MORE_EFFECT = 0.3
"""Goal: effect at +1 of the LoRA less that of the control, at least."""
LESS_LEAKAGE = 0.55
"""Goal: leakage at +1 of the LoRA over that of the control, at most."""
PROJECTION = 0.35
"""Goal: projection at +1, at least."""
OPPOSITE = -0.2
"""Goal: projection at -1, at most."""
CEILING = 0.6
"""Goal for ``CLEAR_EDITS``: the autoencoder's ceiling at +1, at least."""
CLEAR_EDITS = ("grayscale", "outline", "high_contrast")
"""Edits that the autoencoder must be able to show; others may be finer than it, with any ceiling."""


LONGEST_STEM = 100
"""Letters of a file name; file systems allow 255, and stage and ending come on top."""


def file_stem(run: FinishedRun) -> str:
    """What the files of the run's result are called: its title, edit or recipe, fit for a file name."""
    edits = run.request.edits
    what = run.request.title or (edits[0].name if len(edits) == 1 else run.request.recipe.name)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", what).strip("-").lower()[:LONGEST_STEM].rstrip("-") or "lora"


def report_data(
    runs: Sequence[FinishedRun],
    published: Sequence[Mapping[str, Path]],
    repeats: Sequence[Sequence[FinishedRun]] = (),
) -> ReportData:
    """Everything that the report of these runs shows; ``published`` are their files by stage name.

    Every run must have an ``evaluate`` stage, and the same originals. Gates, and the losses that all
    share, are those of the first; of several gates the one is shown that kept its limits worst.
    ``repeats`` are for each run the same with other training seeds; the report gives mean and range
    over them and the run itself.
    """
    first = runs[0]
    original = first.request.recipe.original_of(_evaluation(first).pictures)
    a = first.request.source_of(original)
    gates = {stage.name: _gate(first, stage) for stage in first.plan.stages if stage.kind == "gate"}
    shared = {
        stage.key
        for stage in first.plan.stages
        if stage.kind == "train" and not first.plan.depends_on_change(stage.name)
    }
    names = _unique([file_stem(run) for run in runs])
    again = repeats or [()] * len(runs)
    everything = (*runs, *(one for others in again for one in others))
    results = (_result(*one, shared) for one in zip(runs, published, names, again, strict=True))
    return ReportData(
        title="What changed, and nothing else",
        summary=_summary(first, len(runs)),
        a=load_picture(picture_paths(first.entries[original])[0]),
        results=tuple(results),
        a_prompt=a.prompt if isinstance(a, Generated) else "",
        recipe=first.request.recipe.title,
        checkpoint=first.request.checkpoint.name,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        program=program(),
        gate=max(gates.values(), key=_badness, default=None),
        losses=_losses(first, shared),
        stages=_lines(everything),
        seconds=sum(run.seconds for run in everything),
        checks=tuple(
            check
            for name, gate in gates.items()
            for check in _gate_checks(gate, "Gate" if len(gates) == 1 else f"Gate {name!r}")
        ),
        notes=_notes(first),
    )


def _evaluation(run: FinishedRun) -> EvaluateStage:
    """What the report of a run is about: the evaluation of its result, else the first."""
    found = [stage for stage in run.request.recipe.stages if isinstance(stage, EvaluateStage)]
    return next((stage for stage in found if stage.lora == run.request.recipe.result), found[0])


def _badness(gate: GateReport) -> tuple[bool, float]:
    result, spec = gate.result, gate.spec
    return worse(result.median, spec.median_limit, passed=result.passed(spec))


def _notes(run: FinishedRun) -> tuple[str, ...]:
    """What the report does not show of the run's pictures."""
    notes = []
    counts = {one.name: len(picture_paths(run.entries[one.name])) for one in run.request.recipe.given}
    several = [f"{name} has {count} pictures" for name, count in counts.items() if count > 1]
    if several:
        notes.append(f"Of every set of pictures the first one is shown: {', '.join(several)}.")
    sizes = picture_sizes(run.entries[run.request.recipe.original_of(_evaluation(run).pictures)])
    if len(set(sizes)) > 1:
        notes.append(
            f"The originals have several sizes: {sizes_text(sizes)}. So have the pictures that were drawn, "
            "and each is compared with originals of its size."
        )
    notes += _notes_on_sums(run)
    for one in run.request.recipe.pictures:
        if one.views and not one.of:
            places = "; ".join(run.entries[one.name].record.outcome["views"])
            notes.append(f"{one.name} are {one.views} views of each picture of {one.part_of}: {places}.")
    shown = _evaluation(run)
    others = [
        stage.name
        for stage in run.request.recipe.stages
        if isinstance(stage, EvaluateStage) and stage is not shown
    ]
    if others:
        notes.append(f"The evaluation {shown.name!r} is shown; there are others: {', '.join(others)}.")
    return tuple(notes)


def _notes_on_sums(run: FinishedRun) -> list[str]:
    """How alike the LoRAs of each sum are, and which of them disagree."""
    notes = []
    for one in run.stages:
        cosines = one.entry.record.outcome.get("cosines", ())
        if not isinstance(one.stage.spec, CombineStage) or len(cosines) < 2:
            continue
        found = [value for i, row in enumerate(cosines) for value in row[:i]]
        notes.append(
            f"{one.stage.name} adds {len(cosines)} LoRAs; the cosines of their changes are "
            f"{min(found):.2f} to {max(found):.2f}."
        )
        notes += [f"{text}." for text in disagreements(one.stage.spec, cosines)]
    return notes


def _unique(names: Sequence[str]) -> list[str]:
    """Names that occur again get a number: two runs may be of the same edit."""
    found: list[str] = []
    for name in names:
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name}-{number}"
        found.append(free)
    return found


def _summary(run: FinishedRun, count: int) -> str:
    recipe = run.request.recipe
    controls = {stage.control for stage in recipe.stages if isinstance(stage, EvaluateStage)}
    trained = ", then ".join(
        f"{stage.training.steps} steps on {stage.pictures.upper() or 'text alone'}"
        for stage in recipe.trainings()
        if stage.name not in controls
    )
    what = "one change" if count == 1 else f"{count} changes"
    return (
        f"The recipe “{recipe.title}” was run on {run.request.checkpoint.name}: {trained}. "
        f"Below is how well {what} came out alone, on prompts and seeds that no training saw."
    )


def _draws(draws: Draws) -> tuple[Draw, ...]:
    return tuple(map(Draw, draws.prompts, draws.seeds, draws.guidance))


def _gate(run: FinishedRun, stage: PlannedStage) -> GateReport:
    assert isinstance(stage.spec, GateStage)
    done = run.entries
    return GateReport(
        result=gate_result(done, stage, done[stage.name].folder),
        spec=stage.spec,
        draws=_draws(run.plan.draws[stage.needs["pictures"]]),
        pictures=plain_pictures(done[stage.needs["pictures"]]),
        base=plain_pictures(done[stage.needs["base"]]),
    )


def _gate_checks(gate: GateReport, label: str) -> tuple[Check, ...]:
    spec, result = gate.spec, gate.result
    near = float(result.within(spec.single_limit))
    return (
        Check(f"{label}: pictures drawn", len(result.distances), ENOUGH, at_least=True),
        Check(f"{label}: median distance", result.median, spec.median_limit, at_least=False),
        Check(
            f"{label}: pictures within {spec.single_limit:g}",
            near,
            spec.share * len(result.distances),
            at_least=True,
        ),
    )


def _closeness(run: FinishedRun) -> ClosenessReport | None:
    """Of several second trainings the one that kept its limit worst."""
    found = []
    for stage in run.plan.stages:
        if stage.kind == "closeness" and isinstance(stage.spec, GateStage):
            done = run.entries
            one = ClosenessReport(
                result=closeness_result(done, stage, done[stage.name].folder),
                draws=_draws(run.plan.draws[stage.needs["pictures"]]),
                pictures=plain_pictures(done[stage.needs["pictures"]]),
                limit=stage.spec.median_limit,
            )
            median, limit = one.result.median, stage.spec.median_limit
            found.append((worse(median, limit, passed=median <= limit), one))
    return max(found, key=lambda pair: pair[0], default=(None, None))[1]


def _result(
    run: FinishedRun,
    files: Mapping[str, Path],
    name: str,
    repeats: Sequence[FinishedRun],
    shared: Collection[str],
) -> Result:
    stage = run.plan[_evaluation(run).name]
    request, pictures = run.request, _evaluation(run).pictures
    applied = request.edit_of(pictures)
    strip = _strip(run, stage, "lora", "LoRA")
    control = _strip(run, stage, "control", "plain LoRA on B") if "control" in stage.needs else None
    base = plain_pictures(run.entries[stage.needs["base"]])
    edit = known_edit(applied)
    closeness = _closeness(run)
    own = {one.key for one in run.plan.stages if one.kind == "train"} - set(shared)
    return Result(
        name=name,
        title=request.title or (EFFECTS[applied.name].label if applied else "B"),
        b=load_picture(picture_paths(run.entries[pictures])[0]),
        draws=_draws(run.plan.draws[stage.needs["base"]]),
        base=base,
        strip=strip,
        explanation=request.recipe.explanation,
        control=control,
        ideals=None if edit is None else [np.clip(edit(x), 0, 1) for x in base],
        closeness=closeness,
        on_original=original_figures(run.plan, run.entries, stage),
        losses=_losses(run, own),
        seeds=seed_table((run, *repeats)) if repeats else None,
        checks=(
            Check("Evaluation: pairs of prompt and seed", len(base), ENOUGH, at_least=True),
            *_closeness_checks(closeness),
            *_strip_checks(strip, control),
            *_ceiling_checks(strip, applied),
        ),
        files=tuple(path.name for stage, path in files.items() if _is_own(run, stage)),
    )


def _is_own(run: FinishedRun, stage: str) -> bool:
    return stage not in run.plan.changed and run.plan.depends_on_change(stage)


def _strip(run: FinishedRun, stage: PlannedStage, role: str, label: str) -> Strip:
    done, name = run.entries, stage.needs[role]
    return Strip(
        label=label,
        pictures=strip_pictures(done[name], run.plan.draws[name]),
        figures=strip_figures(run.request, run.plan, done, stage, done[stage.name].folder, role),
    )


def _closeness_checks(closeness: ClosenessReport | None) -> tuple[Check, ...]:
    if closeness is None or closeness.limit is None:
        return ()
    label = "B on base + copier: median distance"
    return (Check(label, closeness.result.median, closeness.limit, at_least=False),)


def _strip_checks(strip: Strip, control: Strip | None) -> tuple[Check, ...]:
    """The goals that can be checked: the strip has the weights +1 and -1, and there is a control."""
    ours = strip.figures
    if not isinstance(ours, StripResult):
        return ()
    checks = []
    plus, minus = ours.at(1.0), ours.at(-1.0)
    if plus is not None and control is not None and isinstance(control.figures, StripResult):
        against = compare(ours, control.figures)
        checks += [
            Check("Effect at +1 above the control's by", against.effect_gain, MORE_EFFECT, at_least=True),
            Check("Leakage at +1 over the control's", against.leakage_ratio, LESS_LEAKAGE, at_least=False),
        ]
    if ours.best is not None:
        checks.append(Check("Effect at the best weight", ours.best.effect, 0.0, at_least=True, strict=True))
    if plus is not None:
        checks.append(Check("Projection at +1", plus.projection, PROJECTION, at_least=True))
    if minus is not None:
        checks.append(Check("Projection at −1", minus.projection, OPPOSITE, at_least=False))
    if len(ours.weights) > 1:
        label = "Projection: smallest rise from a weight to the next"
        checks.append(Check(label, ours.smallest_rise, 0.0, at_least=True, strict=True))
    return tuple(checks)


def _ceiling_checks(strip: Strip, edit: Edit | None) -> tuple[Check, ...]:
    plus = strip.figures.at(1.0) if isinstance(strip.figures, StripResult) else None
    if plus is None or edit is None or edit.name not in CLEAR_EDITS:
        return ()
    return (Check("Ceiling at +1", plus.ceiling, CEILING, at_least=True),)


def seed_table(runs: Sequence[FinishedRun]) -> SeedTable:
    """Mean and range of the main figures over runs that differ in their training seeds alone."""
    measured = [_main_figures(run) for run in runs]
    rows = []
    for label in measured[0]:
        ours, theirs = zip(*(figures[label] for figures in measured), strict=True)
        known = [value for value in ours if value is not None]
        beside = [value for value in theirs if value is not None]
        if known:
            rows.append(SeedRow(label, spread(known), spread(beside) if beside else None))
    return SeedTable(tuple(next(run.request.recipe.trainings()).training.seed for run in runs), tuple(rows))


def _main_figures(run: FinishedRun) -> dict[str, tuple[float | None, float | None]]:
    """The LoRA's and the control's, by label; None where there is none."""
    figures: dict[str, tuple[float | None, float | None]] = {}
    for kind, label in (("gate", "Gate"), ("closeness", "B on base + copier")):
        found = [stage.name for stage in run.plan.stages if stage.kind == kind]
        for name in found:
            what = label if len(found) == 1 else f"{label} {name!r}"
            figures[f"{what}: median distance"] = (run.entries[name].record.outcome["median"], None)
    stage = run.plan[_evaluation(run).name]
    lora, control = (
        strip_figures(run.request, run.plan, run.entries, stage, run.entries[stage.name].folder, role)
        if role in stage.needs
        else None
        for role in ("lora", "control")
    )
    if not isinstance(lora, StripResult):
        return figures
    beside = control if isinstance(control, StripResult) else None
    for weight, sign in ((1.0, "+1"), (-1.0, "−1")):
        ours, theirs = lora.at(weight), beside.at(weight) if beside else None
        for name in ("effect", "leakage", "projection", "ceiling"):
            value, other = getattr(ours, name, None), getattr(theirs, name, None)
            figures[f"{name.capitalize()} at {sign}"] = (value, None if name == "ceiling" else other)
    if beside is not None:
        against = compare(lora, beside)
        figures["Effect at +1 above the control's by"] = (against.effect_gain, None)
        figures["Leakage at +1 over the control's"] = (against.leakage_ratio, None)
    best, other_best = lora.best, beside.best if beside else None
    figures["Effect at the best weight"] = (
        best.effect if best else None,
        other_best.effect if other_best else None,
    )
    figures["Projection: smallest rise"] = (lora.smallest_rise, None)
    return figures


def _losses(run: FinishedRun, keys: Collection[str]) -> tuple[LossCurve, ...]:
    curves = []
    for one in run.stages:
        path = one.entry.path(LOSSES)
        if one.stage.key in keys and path.is_file():
            losses = tuple(json.loads(path.read_text(encoding="utf-8")))
            curves.append(LossCurve(one.stage.name, tuple(range(1, len(losses) + 1)), losses))
    return tuple(curves)


def _lines(runs: Sequence[FinishedRun]) -> tuple[StageLine, ...]:
    """Every stage once; what became of it where it came first."""
    lines: dict[str, StageLine] = {}
    for run in runs:
        for one in run.stages:
            status = StageStatus.REUSED if one.reused else StageStatus.RUN
            line = StageLine(one.stage.name, one.stage.kind, status, one.reason, one.seconds)
            lines.setdefault(one.stage.key, line)
    return tuple(lines.values())
