"""``report.json``: the figures of a report, in the schema of docs/report.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from copier.evaluation.charts import thinned
from copier.evaluation.comparison import Spread
from copier.evaluation.effect import ChangeResult, StripResult, WeightFigures
from copier.evaluation.report_data import (
    Check,
    ClosenessReport,
    Draw,
    GateReport,
    LossCurve,
    ReportData,
    Result,
    SeedTable,
    StageLine,
)
from copier.images.effects import to_array
from copier.images.metrics import distance
from copier.images.pairs import DifferenceMap, difference_map
from copier.images.sheet import AnyPicture, as_image

SCHEMA = "copier.report"
VERSION = 1
"""Raised where a key goes or changes its meaning; a new key alone raises nothing."""

_DIGITS = 6

Json = dict[str, Any]


def report_json(data: ReportData) -> Json:
    """The whole report as plain JSON values, numbers rounded to six digits, without the pictures."""
    image = as_image(data.a)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "program": data.program,
        "created": data.created,
        "title": data.title,
        "summary": data.summary,
        "recipe": data.recipe,
        "checkpoint": data.checkpoint,
        "seconds": _number(data.seconds),
        "original": {"prompt": data.a_prompt, "width": image.width, "height": image.height},
        "gate": None if data.gate is None else _gate(data.gate),
        "results": [_result(result, data.a) for result in data.results],
        "losses": [_curve(curve) for curve in data.losses],
        "stages": [_stage(stage) for stage in data.stages],
        "checks": [_check(check) for check in data.checks],
        "notes": list(data.notes),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), _DIGITS)


def _numbers(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _gate(gate: GateReport) -> Json:
    result, spec = gate.result, gate.spec
    measured = zip(gate.draws, result.distances, result.base, strict=True)
    return {
        "passed": result.passed(spec),
        "enough": result.enough,
        "median": _number(result.median),
        "median_limit": _number(spec.median_limit),
        "within": result.within(spec.single_limit),
        "count": len(result.distances),
        "single_limit": _number(spec.single_limit),
        "share": _number(spec.share),
        "base_median": _number(result.base_median),
        "pictures": [
            {**_draw(draw), "distance": _number(with_copier), "base_distance": _number(without)}
            for draw, with_copier, without in measured
        ],
    }


def _draw(draw: Draw) -> Json:
    return {"prompt": draw.prompt, "seed": draw.seed, "guidance": _number(draw.guidance)}


def _result(result: Result, a: AnyPicture) -> Json:
    control, both = result.control, result.comparison
    return {
        "name": result.name,
        "title": result.title,
        "explanation": result.explanation,
        "files": list(result.files),
        "pair": _pair(difference_map(as_image(a), as_image(result.b)), a, result.b),
        "draws": [_draw(draw) for draw in result.draws],
        "lora": {"label": result.strip.label, **_figures(result.strip.figures)},
        "control": None if control is None else {"label": control.label, **_figures(control.figures)},
        "comparison": None if both is None else {key: _number(value) for key, value in asdict(both).items()},
        "closeness": None if result.closeness is None else _closeness(result.closeness),
        "on_original": None if result.on_original is None else _figures(result.on_original),
        "losses": [_curve(curve) for curve in result.losses],
        "seeds": None if result.seeds is None else _seeds(result.seeds),
        "checks": [_check(check) for check in result.checks],
    }


def _pair(found: DifferenceMap, a: AnyPicture, b: AnyPicture) -> Json:
    return {
        "distance": _number(distance(to_array(as_image(a)), to_array(as_image(b)))),
        "threshold": _number(found.threshold),
        "changed": _number(found.changed),
        "mean": _number(found.mean),
        "maximum": _number(found.maximum),
        "box": None if found.box is None else list(found.box),
        "areas": found.areas,
        "outside": _number(found.outside),
        "warnings": list(found.warnings),
    }


def _figures(figures: StripResult | ChangeResult) -> Json:
    if isinstance(figures, ChangeResult):
        return {
            "measures": "change",
            "weights": [
                {
                    "weight": _number(one.weight),
                    "magnitude": _number(one.magnitude),
                    "consistency": _number(one.consistency),
                    "magnitudes": _numbers(one.magnitudes),
                }
                for one in figures.weights
            ],
        }
    best, suggested = figures.best, figures.suggested
    return {
        "measures": "effect",
        "floor": _number(figures.floor),
        "best_weight": None if best is None else _number(best.weight),
        "suggested_weights": None if suggested is None else _numbers(suggested),
        "rises": figures.rises,
        "weights": [_weight(one) for one in figures.weights],
    }


def _weight(one: WeightFigures) -> Json:
    return {
        "weight": _number(one.weight),
        "effect": _number(one.effect),
        "leakage": _number(one.leakage),
        "projection": _number(one.projection),
        "ceiling": _number(one.ceiling),
        "change": _number(one.change),
        "counted": one.counted,
        "left_out": one.left_out,
        "pairs": [{key: _number(value) for key, value in asdict(pair).items()} for pair in one.pairs],
    }


def _closeness(closeness: ClosenessReport) -> Json:
    result = closeness.result
    return {
        "median": _number(result.median),
        "limit": _number(closeness.limit),
        "pair_distance": _number(result.pair_distance),
        "pictures": [
            {**_draw(draw), "distance": _number(distance)}
            for draw, distance in zip(closeness.draws, result.distances, strict=True)
        ],
    }


def _seeds(table: SeedTable) -> Json:
    def one(spread: Spread | None) -> Json | None:
        if spread is None:
            return None
        numbers = {key: _number(getattr(spread, key)) for key in ("mean", "low", "high")}
        return {**numbers, "count": spread.count}

    return {
        "seeds": list(table.seeds),
        "rows": [
            {"label": row.label, "lora": one(row.lora), "control": one(row.control)} for row in table.rows
        ],
    }


def _curve(curve: LossCurve) -> Json:
    points = thinned(tuple(zip(curve.steps, curve.losses, strict=True)))
    return {
        "label": curve.label,
        "steps": [int(step) for step, _ in points],
        "losses": _numbers(loss for _, loss in points),
    }


def _stage(stage: StageLine) -> Json:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status.value,
        "reason": stage.reason,
        "seconds": _number(stage.seconds),
    }


def _check(check: Check) -> Json:
    return {
        "label": check.label,
        "value": _number(check.value),
        "limit": _number(check.limit),
        "at_least": check.at_least,
        "strict": check.strict,
        "passed": check.passed,
    }
