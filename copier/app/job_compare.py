"""Two jobs beside each other: the settings in which they differ, and the figures that they reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from copier.app.job_values import Job, Json

_FIGURES = ("effect", "leakage", "projection", "magnitude", "consistency")


def compare(first: Job, second: Job) -> Json:
    """``settings`` (path -> [first, second]) and ``figures`` (label -> [first, second], None for none)."""
    ours, theirs = flat(first.payload), flat(second.payload)
    differing = [path for path in dict.fromkeys((*ours, *theirs)) if ours.get(path) != theirs.get(path)]
    reached, others = figures(first), figures(second)
    return {
        "jobs": [first.id, second.id],
        "settings": {path: [ours.get(path), theirs.get(path)] for path in differing},
        "figures": {
            label: [reached.get(label), others.get(label)] for label in dict.fromkeys((*reached, *others))
        },
    }


def figures(job: Job) -> dict[str, float]:
    """The main figures of a run that is done, by a label for people."""
    outcome = job.outcome or {}
    found: dict[str, float] = {}
    if outcome.get("gate"):
        found["gate: median distance"] = outcome["gate"]["median"]
    for result in outcome.get("results", ()):
        for role in ("lora", "control"):
            for name in _FIGURES:
                value = (result.get(role) or {}).get(name)
                if value is not None:
                    found[f"{name} at +1{' of the control' if role == 'control' else ''}"] = value
        if result.get("best_weight") is not None:
            found["best weight"] = result["best_weight"]
    if job.seconds is not None:
        found["seconds"] = round(job.seconds, 1)
    return found


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON as path -> value; members of a list that have a name are called by it."""
    if isinstance(value, Mapping):
        parts = {str(name): part for name, part in value.items()}
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        parts = {_name(part, number): part for number, part in enumerate(value)}
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        found.update(flat(part, f"{path}.{name}" if path else name))
    return found


def _name(part: Any, number: int) -> str:
    return str(part["name"]) if isinstance(part, Mapping) and "name" in part else str(number)
