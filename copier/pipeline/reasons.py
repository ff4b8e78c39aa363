"""Why a stage is reused or must run: one line for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from copier.pipeline.plan import Plan, PlannedStage
from copier.pipeline.store import Entry

_SHOWN = 3
_LONGEST = 24
"""Characters of a value that is shown; a digest or a prompt list is longer, and only named."""

_REUSED = {
    "original": "same prompt, seed and model, or same files",
    "edited": "same originals and edit, or same files",
    "derived": "same pictures and views",
    "file": "same file",
    "train": "same pictures, model and settings",
    "draw": "same prompts, seeds, model and LoRA",
    "gate": "same pictures and limits",
    "closeness": "same pictures and limits",
    "difference": "same LoRAs and ratios",
    "combine": "same LoRAs and weights",
    "resize": "same LoRA and rank",
    "evaluate": "same pictures and edit",
}


def reused(stage: PlannedStage, plan: Plan) -> str:
    """Why the stored outcome serves."""
    twin = _twin(stage, plan)
    return f"reused: {f'the same as {twin!r}' if twin else _REUSED[stage.kind]}"


def needed(stage: PlannedStage, plan: Plan, earlier: Sequence[Entry]) -> str:
    """Why the stage must run: what differs from the stored one of its name that is most like it.

    ``earlier`` are the stored stages, the newest first.
    """
    twin = _twin(stage, plan)
    if twin:
        return f"the same as {twin!r}: made once"
    alike = [e.record for e in earlier if (e.record.name, e.record.kind) == (stage.name, stage.kind)]
    if not alike:
        return "not made before"
    changes = min((_differences(one.ingredients, stage.ingredients) for one in alike), key=len)
    texts = list(dict.fromkeys(_named(change, stage) for change in changes))
    if not texts:
        return "the stored outcome is damaged"
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"changed: {', '.join(texts[:_SHOWN])}{more}"


def _twin(stage: PlannedStage, plan: Plan) -> str:
    """The name of an earlier stage of the plan with the same key, or ""."""
    first = next(one for one in plan.stages if one.key == stage.key)
    return "" if first.name == stage.name else first.name


def _differences(known: Any, wanted: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
    if isinstance(known, Mapping) and isinstance(wanted, Mapping):
        found = []
        for name in sorted({*known, *wanted}):
            found += _differences(known.get(name), wanted.get(name), (*path, name))
        return found
    return [] if known == wanted else [(".".join(path), known, wanted)]


def _named(difference: tuple[str, Any, Any], stage: PlannedStage) -> str:
    path, known, wanted = difference
    role = path.removeprefix("needs.")
    if role != path:
        return stage.needs.get(role, role)
    if path == "version":
        return "the way the program makes it"
    name = path.removeprefix("training.")
    before, after = _shown(known), _shown(wanted)
    return f"{name} {before} -> {after}" if before and after else name


def _shown(value: Any) -> str:
    """The value as text, or "" where it is too long."""
    if value is None or value == "":
        return "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else ""
