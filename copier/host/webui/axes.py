"""Two axes for the host's X/Y/Z plot: LoRA files, and the weight."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from copier.host.known_files import tensors_in
from copier.host.webui.loras import lora_folder

LORA, WEIGHT = "[Copier] LoRA", "[Copier] weight"
_SCRIPT = "xyz_grid.py"
_TAG = re.compile(r"<lora:([^:<>]+):[^<>]*>")
_NONE = "None"


def add_axes() -> None:
    """Add them, once, to each plot script that the host has loaded."""
    for plot in _plots():
        known = {option.label for option in plot.axis_options}
        # Of a cost between that of prompts and that of checkpoints: weights are added to the model anew.
        for option in (
            plot.AxisOption(LORA, str, _set_lora, confirm=_check_loras, cost=0.3, choices=_choices),
            plot.AxisOption(WEIGHT, float, _set_weight, cost=0.2),
        ):
            if option.label not in known:
                plot.axis_options.append(option)


def _plots() -> list[ModuleType]:
    from modules import scripts

    found = {id(one.module): one.module for one in scripts.scripts_data if one.path.endswith(_SCRIPT)}
    return list(found.values())


def _choices() -> list[str]:
    return [_NONE, *(path.stem for path in tensors_in(lora_folder()))]


def _check_loras(work: Any, values: list[str]) -> None:
    known = _choices()
    unknown = [one for one in values if one not in known]
    if unknown:
        raise RuntimeError(f"there is no LoRA {unknown[0]!r} in the LoRA folder: choose one from the list")


def _set_lora(work: Any, value: str, values: list[str]) -> None:
    """Draw with this LoRA: it takes the place of the axis's other ones."""
    work.copier_lora = "" if value == _NONE else value
    before, after = getattr(work, "copier_weighed", (None, None))
    if work.prompt == after:
        # The weight's axis came first, when nobody knew whose weight it is.
        work.prompt = before
    work.prompt = _tagged(work, others=set(values))


def _set_weight(work: Any, value: float, values: list[float]) -> None:
    """The weight of the axis's LoRA; without that axis, of every LoRA in the prompt."""
    work.copier_weight = value
    before = work.prompt
    work.prompt = _tagged(work, others=set())
    work.copier_weighed = before, work.prompt


def _tagged(work: Any, *, others: set[str]) -> str:
    name, weight = getattr(work, "copier_lora", None), getattr(work, "copier_weight", None)
    return tagged(work.prompt, name=name, weight=weight, others=others)


def tagged(prompt: str, *, name: str | None, weight: float | None, others: set[str]) -> str:
    """``prompt`` with the tag of the LoRA ``name`` at ``weight``; without those of ``others``.

    ``name`` None: no LoRA is set, all tags get the weight; "": none is drawn with. ``weight`` None: 1, and
    tags that are there keep theirs.
    """

    def written(found: re.Match[str]) -> str:
        tag = found[1]
        if tag in others and tag != name:
            return ""
        mine = name is None or tag == name
        return f"<lora:{tag}:{weight:g}>" if mine and weight is not None else found[0]

    text = _TAG.sub(written, prompt)
    if name and not any(found[1] == name for found in _TAG.finditer(text)):
        text = f"{text.rstrip()} <lora:{name}:{1.0 if weight is None else weight:g}>"
    return text
