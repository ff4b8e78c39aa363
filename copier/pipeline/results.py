"""What a finished run hands over: the pictures and LoRAs in the user's folder, and the report."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from copier.checkpoint.temporary import create_temporary, remove_leftovers
from copier.codec import recipe_to_json
from copier.digest import file_digest
from copier.errors import BadInput
from copier.evaluation.effect import StripResult
from copier.evaluation.report import ReportFiles, write_report
from copier.evaluation.report_data import (
    Check,
    ClosenessReport,
    Draw,
    GateReport,
    LossCurve,
    ReportData,
    Result,
    StageLine,
    StageStatus,
    Strip,
)
from copier.images.effects import EFFECTS
from copier.ops.lora_file import read_lora, write_lora
from copier.pipeline import stages
from copier.pipeline.plan import Draws, PlannedStage
from copier.pipeline.runner import FinishedRun
from copier.recipe import EvaluateStage, GateStage, TrainStage
from copier.request import Edit, Generated
from copier.writepoints import write_point

log = logging.getLogger(__name__)

RECIPE_KEY = "copier.recipe"
"""Metadata key of a LoRA that holds the recipe as JSON."""
PROVENANCE_KEY = "copier.provenance"
"""Metadata key with the keys of base, pair and copier: what the LoRA was made from."""
_REPORT_NAMES = ("report.json", "report.html", "sheet.png")
_NEARER = 0.3
_LESS_LEAKAGE = 0.55
_MORE_EFFECT = 0.3
_PROJECTION = 0.35
_OPPOSITE = -0.2


def check_folder(out: Path) -> None:
    """Make the output folder and sweep leftovers of killed runs; before anything is trained.

    Raises:
        BadInput: it is no folder, cannot be written, or holds a report that is not ours.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe, path = create_temporary(out / "probe")
        probe.close()
        path.unlink()
    except OSError as error:
        raise BadInput(
            f"the output folder {out} cannot be written: {error.strerror}; choose another with --out"
        ) from error
    for leftover in out.glob(".*.tmp"):
        target = re.match(r"\.(.+)\.[0-9a-f]+\.tmp$", leftover.name)
        if target:
            remove_leftovers(out / target[1])
    report = out / "report.json"
    if report.exists():
        try:
            ours = json.loads(report.read_text(encoding="utf-8")).get("schema") == "copier.report"
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise BadInput(
                f"{report} is not one of this program's reports, and it would be replaced: choose "
                "another folder with --out"
            )
    elif any((out / name).exists() for name in _REPORT_NAMES):
        raise BadInput(
            f"{out} holds a report.html or sheet.png of another program: choose another folder with "
            "--out"
        )


def publish(source: Path, target: Path) -> Path:
    """Copy ``source`` to ``target``, whole or not at all; never over another file.

    A file of the same content stays as it is; another one under that name makes this one
    ``<stem>-2``, ``<stem>-3``, ... Returns where the content now is.
    """
    digest = file_digest(source)
    place, number = target, 1
    while place.exists():
        if file_digest(place) == digest:
            return place
        number += 1
        place = target.with_name(f"{target.stem}-{number}{target.suffix}")
    remove_leftovers(place)
    file, temporary = create_temporary(place)
    try:
        with file, open(source, "rb") as content:
            shutil.copyfileobj(content, file)
            write_point("out-temporary")
            os.fsync(file.fileno())
        write_point("out-rename")
        os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    write_point("out-done")
    return place


def publish_run(run: FinishedRun) -> dict[str, Path]:
    """Put pair, LoRAs and recipe of a finished run into its output folder; paths by stage name."""
    out = run.request.out
    name = _file_stem(run)
    published = {"a": publish(run.entries["a"].path(stages.PICTURE), out / "a.png")}
    published["b"] = publish(run.entries["b"].path(stages.PICTURE), out / f"{name}-b.png")
    with tempfile.TemporaryDirectory(prefix="copier-") as folder:
        for one in run.stages:
            source = one.entry.path(stages.LORA)
            if not source.is_file():
                continue
            stage = one.stage.name
            stem = name if stage == run.request.recipe.result else stage
            if stage not in (run.request.recipe.result, "copier"):
                stem = f"{name}-{stage}"
            final = Path(folder) / f"{stem}.safetensors"
            lora = read_lora(source)
            metadata = {
                **lora.metadata,
                "ss_output_name": stem,
                RECIPE_KEY: json.dumps(recipe_to_json(run.request.recipe)),
                PROVENANCE_KEY: json.dumps(_provenance(run, one.stage), sort_keys=True),
            }
            write_lora(final, lora.weights, metadata, dtype="fp16")
            published[stage] = publish(final, out / final.name)
    return published


def _file_stem(run: FinishedRun) -> str:
    b = run.request.b
    what = run.request.title or (b.name if isinstance(b, Edit) else run.request.recipe.name)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", what).strip("-").lower() or "lora"


def _provenance(run: FinishedRun, stage: PlannedStage) -> dict[str, object]:
    """The stage's key, and those of everything it was made from; no paths, no names of files."""
    return {
        "stage": stage.name,
        "key": stage.key,
        "checkpoint_sha256": run.plan["copier"].ingredients.get("checkpoint", "")
        if any(one.name == "copier" for one in run.plan.stages)
        else stage.ingredients.get("checkpoint", ""),
        "needs": dict(stage.ingredients["needs"]),
    }


def report(runs: Sequence[FinishedRun], published: Sequence[dict[str, Path]]) -> ReportFiles:
    """Write the report of one or several runs that share the original, into the first one's folder."""
    return write_report(report_data(runs, published), runs[0].request.out)


def report_data(
    runs: Sequence[FinishedRun], published: Sequence[dict[str, Path]]
) -> ReportData:
    """Everything that the report of these runs shows."""
    first = runs[0]
    a = first.request.a
    prompt = a.prompt if isinstance(a, Generated) else ""
    recipe = first.request.recipe
    gates = [(run, stage) for run in runs for stage in run.plan.stages if stage.kind == "gate"]
    gate = _gate(*gates[0]) if gates else None
    checks: list[Check] = []
    if gate is not None:
        spec, result = gate.spec, gate.result
        checks.append(Check("Gate: median distance", result.median, spec.median_limit, False))
        checks.append(
            Check(
                f"Gate: pictures within {spec.single_limit:g}",
                float(result.within(spec.single_limit)),
                spec.share * len(result.distances),
                True,
            )
        )
    return ReportData(
        title="What changed, and nothing else",
        summary=_summary(first, len(runs)),
        a=stages.load_picture(first.entries["a"].path(stages.PICTURE)),
        results=tuple(_result(run, files) for run, files in zip(runs, published, strict=True)),
        a_prompt=prompt,
        recipe=recipe.title,
        checkpoint=first.request.checkpoint.name,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        gate=gate,
        losses=_losses(first, {"copier"}),
        stages=_lines(runs),
        seconds=sum(run.seconds for run in runs),
        checks=tuple(checks),
    )


def _summary(run: FinishedRun, count: int) -> str:
    recipe = run.request.recipe
    trained = ", then ".join(
        f"{stage.training.steps} steps on {stage.pictures.upper()}" for stage in recipe.trainings()
        if stage.name != "control"
    )  # fmt: skip
    what = "one change" if count == 1 else f"{count} changes"
    return (
        f"The recipe “{recipe.title}” was run on {run.request.checkpoint.name}: {trained}. "
        f"Below is how well {what} came out alone, on prompts and seeds that no training saw."
    )


def _draws(draws: Draws) -> tuple[Draw, ...]:
    return tuple(
        Draw(prompt, seed, guidance)
        for prompt, seed, guidance in zip(draws.prompts, draws.seeds, draws.guidance, strict=True)
    )


def _gate(run: FinishedRun, stage: PlannedStage) -> GateReport:
    assert isinstance(stage.spec, GateStage)
    done = run.entries
    base = stages.weight_folder(0.0)
    return GateReport(
        result=stages.gate_result(done, stage, done[stage.name].folder),
        spec=stage.spec,
        draws=_draws(run.plan.draws[stage.needs["pictures"]]),
        pictures=stages.load_stack(done[stage.needs["pictures"]].path(base)),
        base=stages.load_stack(done[stage.needs["base"]].path(base)),
    )


def _closeness(run: FinishedRun) -> ClosenessReport | None:
    for stage in run.plan.stages:
        if stage.kind == "closeness" and isinstance(stage.spec, GateStage):
            done = run.entries
            pictures = done[stage.needs["pictures"]].path(stages.weight_folder(0.0))
            return ClosenessReport(
                result=stages.closeness_result(done, stage, done[stage.name].folder),
                draws=_draws(run.plan.draws[stage.needs["pictures"]]),
                pictures=stages.load_stack(pictures),
                limit=stage.spec.median_limit,
            )
    return None


def _result(run: FinishedRun, files: dict[str, Path]) -> Result:
    stage = next(stage for stage in run.plan.stages if stage.kind == "evaluate")
    assert isinstance(stage.spec, EvaluateStage)
    done, request = run.entries, run.request
    strips = {}
    for role in ("lora", "control"):
        if role in stage.needs:
            name = stage.needs[role]
            strips[role] = Strip(
                label="LoRA" if role == "lora" else "plain LoRA on B",
                pictures=stages.strip_pictures(done[name], run.plan.draws[name]),
                figures=stages.strip_figures(
                    request, run.plan, done, stage, done[stage.name].folder, role
                ),
            )
    base = stages.load_stack(done[stage.needs["base"]].path(stages.weight_folder(0.0)))
    edit = stages.known_edit(request)
    b = request.b
    title = request.title or (EFFECTS[b.name].label if isinstance(b, Edit) else "B")
    closeness = _closeness(run)
    own = {one.name for one in request.recipe.stages if isinstance(one, TrainStage)} - {"copier"}
    return Result(
        name=_file_stem(run),
        title=title,
        b=stages.load_picture(done["b"].path(stages.PICTURE)),
        draws=_draws(run.plan.draws[stage.needs["base"]]),
        base=base,
        strip=strips["lora"],
        explanation=request.recipe.explanation,
        control=strips.get("control"),
        ideals=None if edit is None else np.stack([np.clip(edit(x), 0, 1) for x in base]),
        closeness=closeness,
        losses=_losses(run, own),
        checks=_checks(strips, closeness),
        files=tuple(
            path.name for name, path in files.items() if name not in ("a", "b", "copier")
        ),
    )


def _checks(strips: dict[str, Strip], closeness: ClosenessReport | None) -> tuple[Check, ...]:
    checks = []
    if closeness is not None:
        limit = closeness.limit or _NEARER
        checks.append(Check("B on base + copier: median distance", closeness.result.median, limit, False))
    ours = strips["lora"].figures
    if not isinstance(ours, StripResult):
        return tuple(checks)
    plus, minus = ours.at(1.0), ours.at(-1.0)
    control = strips["control"].figures if "control" in strips else None
    theirs = control.at(1.0) if isinstance(control, StripResult) else None
    if plus and theirs and plus.effect is not None and theirs.effect is not None:
        checks.append(
            Check("Effect at +1 above the control's by", plus.effect - theirs.effect, _MORE_EFFECT, True)
        )
    if plus and theirs and plus.leakage is not None and theirs.leakage:
        checks.append(
            Check("Leakage at +1 over the control's", plus.leakage / theirs.leakage, _LESS_LEAKAGE, False)
        )
    if ours.best is not None:
        checks.append(Check("Effect at the best weight", ours.best.effect, 0.0, True))
    if plus is not None:
        checks.append(Check("Projection at +1", plus.projection, _PROJECTION, True))
    if minus is not None:
        checks.append(Check("Projection at −1", minus.projection, _OPPOSITE, False))
    return tuple(checks)


def _losses(run: FinishedRun, names: set[str]) -> tuple[LossCurve, ...]:
    curves = []
    for one in run.stages:
        path = one.entry.path(stages.LOSSES)
        if one.stage.name in names and path.is_file():
            losses = tuple(json.loads(path.read_text(encoding="utf-8")))
            curves.append(LossCurve(one.stage.name, tuple(range(1, len(losses) + 1)), losses))
    return tuple(curves)


def _lines(runs: Sequence[FinishedRun]) -> tuple[StageLine, ...]:
    lines: dict[str, StageLine] = {}
    for run in runs:
        for one in run.stages:
            lines.setdefault(
                one.stage.key,
                StageLine(
                    name=one.stage.name,
                    kind=one.stage.kind,
                    status=StageStatus.REUSED if one.reused else StageStatus.RUN,
                    reason=one.reason,
                    seconds=one.seconds,
                ),
            )
    return tuple(lines.values())
