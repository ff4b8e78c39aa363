"""The recipe in the text of pictures: one JSON value, which comes back with the picture."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from copier.app.own_recipes import INFOTEXT_FIELD
from copier.checkpoint.header import read_header
from copier.codec import RECIPE_KEY
from copier.errors import CopierError
from copier.host.known_files import tensors_in
from copier.host.webui.loras import lora_folder
from copier.host.webui.options import IN_INFOTEXT, chosen

log = logging.getLogger(__name__)

_TAG = re.compile(r"<(?:lora|lyco):([^:<>]+)")


def add_recipe(work: Any) -> None:
    """Note the recipe of the first of our LoRAs that the prompts of ``work`` name; never fails."""
    try:
        if not chosen(IN_INFOTEXT, True):
            return
        prompts = work.all_prompts or ([work.prompt] if isinstance(work.prompt, str) else work.prompt)
        recipe = recipe_in(prompts)
        if recipe:
            work.extra_generation_params[INFOTEXT_FIELD] = recipe
    except Exception:
        log.exception("the recipe could not be written into the pictures' text")


def recipe_in(prompts: Sequence[str]) -> str:
    """The recipe, as JSON in one line, of the first LoRA in ``prompts`` that carries one; else ""."""
    names = dict.fromkeys(name for prompt in prompts for name in _TAG.findall(prompt))
    if not names:
        return ""
    files = {path.stem: path for path in tensors_in(lora_folder())}
    for name in names:
        recipe = _carried(files[name]) if name in files else ""
        if recipe:
            return recipe
    return ""


def fields_of(text: str) -> Mapping[str, Any]:
    """The values of a picture's text, by the host's names."""
    from modules import infotext_utils

    return dict(infotext_utils.parse_generation_parameters(text, [])) if text.strip() else {}


def _carried(path: Path) -> str:
    try:
        text = read_header(path).metadata.get(RECIPE_KEY, "")
        return json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) if text else ""
    except (OSError, ValueError, CopierError):
        return ""
