"""The main figures of a finished run as plain data, for front ends that show a few lines."""

from __future__ import annotations

import json
from typing import Any

from copier.app.service import Outcome
from copier.evaluation.gate import worse
from copier.evaluation.report import ReportFiles
from copier.pipeline.measure import disagreements
from copier.pipeline.runner import FinishedRun, StageState
from copier.recipe import CombineStage, GateStage

Json = dict[str, Any]

_SHOWN_WEIGHT = 1.0


def outcome_json(outcome: Outcome) -> Json:
    """Files, gate, effect and leakage at +1, checks, and what became of every stage.

    ``gate`` is None for a recipe without one; ``results`` and ``checks`` are empty without evaluation.
    """
    report: Json = {}
    if outcome.report is not None:
        report = read_report(outcome.report)
    stages = _stages(outcome)
    checks = [*report.get("checks", ()), *(c for one in report.get("results", ()) for c in one["checks"])]
    return {
        "recipes": [run.request.recipe.name for run in outcome.runs],
        "result": str(outcome.result),
        "files": [{name: str(path) for name, path in files.items()} for files in outcome.files],
        "report": None if outcome.report is None else files_json(outcome.report),
        "gate": _gate(outcome),
        "results": results_json(report),
        "disagreements": _disagreements(outcome),
        "checks": {
            "passed": sum(check["passed"] for check in checks),
            "count": len(checks),
            "missed": [check for check in checks if not check["passed"]],
        },
        "stages": stages,
        "reused": sum(stage["status"] == "reused" for stage in stages),
        "seconds": round(sum(run.seconds for run in outcome.everything), 3),
    }


def preview_json(states: tuple[StageState, ...]) -> Json:
    """What a dry run shows."""
    return {
        "dry_run": True,
        "stages": [
            {
                "name": state.stage.name,
                "kind": state.stage.kind,
                "key": state.stage.key,
                "status": "reuse" if state.entry else "run",
                "reason": state.reason,
            }
            for state in states
        ],
        "reused": sum(state.entry is not None for state in states),
    }


def measured_json(files: ReportFiles) -> Json:
    """The main figures of a measurement, and where its report is."""
    return {"report": files_json(files), "results": results_json(read_report(files))}


def read_report(files: ReportFiles) -> Json:
    """The content of ``report.json``."""
    content: Json = json.loads(files.json.read_text(encoding="utf-8"))
    return content


def files_json(files: ReportFiles) -> Json:
    """Where a report was written."""
    return {"json": str(files.json), "html": str(files.html), "sheet": str(files.sheet)}


def results_json(report: Json) -> list[Json]:
    """Effect and leakage at +1, or the change, of every result in a report, and of its control."""
    return [_result(one) for one in report.get("results", ())]


def _gate(outcome: Outcome) -> Json | None:
    """Of several gates the one that the report shows: the worst."""
    gates = []
    for run in outcome.runs:
        for one in run.stages:
            if one.stage.kind == "gate" and isinstance(one.stage.spec, GateStage):
                record = one.entry.record.outcome
                spec = one.stage.spec
                gates.append({
                    "stage": one.stage.name,
                    "lora": spec.lora,
                    **{name: record[name] for name in ("median", "within", "count", "passed")},
                    "median_limit": spec.median_limit,
                    "single_limit": spec.single_limit,
                })  # fmt: skip
    return max(gates, key=_badness, default=None)


def _disagreements(outcome: Outcome) -> list[str]:
    """A sentence on each two LoRAs of a sum that do not make the same change."""
    found = [
        text
        for run in outcome.runs
        for one in run.stages
        if isinstance(one.stage.spec, CombineStage)
        for text in disagreements(one.stage.spec, one.entry.record.outcome.get("cosines", ()))
    ]
    return list(dict.fromkeys(found))


def _badness(gate: Json) -> tuple[bool, float]:
    return worse(gate["median"], gate["median_limit"], passed=gate["passed"])


def _result(result: Json) -> Json:
    control = result["control"]
    return {
        "name": result["name"],
        "title": result["title"],
        "measures": result["lora"]["measures"],
        "best_weight": result["lora"].get("best_weight"),
        "suggested_weights": result["lora"].get("suggested_weights"),
        "lora": _at_one(result["lora"]),
        "control": None if control is None else _at_one(control),
    }


def _at_one(figures: Json) -> Json | None:
    names = ("effect", "leakage", "projection", "ceiling", "magnitude", "consistency")
    for one in figures["weights"]:
        if one["weight"] == _SHOWN_WEIGHT:
            return {name: one[name] for name in names if name in one}
    return None


def _stages(outcome: Outcome) -> list[Json]:
    """Every stage once; runs that share one made it once."""
    found: dict[str, Json] = {}
    for run in outcome.everything:
        for line in _lines(run):
            found.setdefault(line["key"], line)
    return list(found.values())


def _lines(run: FinishedRun) -> list[Json]:
    return [
        {
            "name": one.stage.name,
            "kind": one.stage.kind,
            "key": one.stage.key,
            "status": "reused" if one.reused else "run",
            "reason": one.reason,
            "seconds": round(one.seconds, 3),
        }
        for one in run.stages
    ]
