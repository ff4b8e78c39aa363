"""Why a stage is reused or must run: one line for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from copier.pipeline.plan import Plan, PlannedStage
from copier.pipeline.store import Entry

_SHOWN = 3
_REUSED = {
    "original": "same prompt, seed and model, or same file",
    "edited": "same original and edit, or same file",
    "train": "same picture, model and settings",
    "draw": "same prompts, seeds, model and LoRA",
    "gate": "same pictures and limits",
    "closeness": "same pictures and limits",
    "difference": "same LoRAs and ratios",
    "resize": "same LoRA and rank",
    "evaluate": "same pictures and edit",
}


def reused(stage: PlannedStage) -> str:
    """Why the stored outcome serves."""
    return f"reused: {_REUSED[stage.kind]}"


def needed(stage: PlannedStage, plan: Plan, earlier: list[Entry]) -> str:
    """Why the stage must run: what differs from the latest stored one of its name and kind."""
    same = [e for e in earlier if e.record.name == stage.name and e.record.kind == stage.kind]
    if not same:
        return "not made before"
    known, wanted = same[0].record.ingredients, stage.ingredients
    changed = [_named(path, stage, plan) for path in _differences(known, wanted)]
    texts = list(dict.fromkeys(changed))
    if not texts:
        return "the stored outcome is gone"
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"changed: {', '.join(texts[:_SHOWN])}{more}"


def _differences(known: Any, wanted: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
    if isinstance(known, Mapping) and isinstance(wanted, Mapping):
        found = []
        for name in sorted({*known, *wanted}):
            found += _differences(known.get(name), wanted.get(name), (*path, name))
        return found
    return [] if known == wanted else [(".".join(path), known, wanted)]


def _named(difference: tuple[str, Any, Any], stage: PlannedStage, plan: Plan) -> str:
    path, known, wanted = difference
    role = path.removeprefix("needs.")
    if role != path:
        return stage.needs.get(role, role)
    short = all(isinstance(v, (int, float, bool)) or v in ("", None) for v in (known, wanted))
    return f"{path} {known} -> {wanted}" if short else path.removeprefix("training.")
