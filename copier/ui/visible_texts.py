"""Every text of the tab that stands alone in the page: what a translation has to have.

Hosts translate a page by its texts, each as a whole; what has numbers or names of files in it stays English.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from copier.app.edits import edits_json
from copier.codec import builtin_recipes
from copier.ui import words

_TAGS = re.compile(r"<[^>]*>")
_WORD_OF_RECIPES = re.compile(r"[a-z0-9_-]+")
"""Choices that are values in a recipe (adamw8bit, min_snr) or names of its stages: nobody translates them."""
_PARTS = ("label", "info", "placeholder")


def visible_texts(config: Mapping[str, Any]) -> frozenset[str]:
    """Labels, helps, choices and buttons of the tab, the texts of its HTML, and those that it shows later.

    ``config`` is what gradio sends to the page (``Blocks.get_config_file``).
    """
    found = {*words.EVERY, *(edit["explanation"] for edit in edits_json())}
    found |= {recipe.explanation for recipe in builtin_recipes().values()}
    for one in config["components"]:
        found |= set(_of(one["type"], one["props"]))
    return frozenset(text for text in found if _says_something(text))


def _of(kind: str, props: dict[str, Any]) -> Iterator[str]:
    for name in _PARTS:
        if isinstance(props.get(name), str):
            yield props[name]
    if kind == "button":
        yield str(props["value"])
    if kind == "html":
        for part in _TAGS.split(str(props.get("value") or "")):
            yield html.unescape(part).strip()
    if kind in ("radio", "dropdown"):
        for choice in props.get("choices") or ():
            label = str(choice[0] if isinstance(choice, (list, tuple)) else choice)
            if not _WORD_OF_RECIPES.fullmatch(label):
                yield label


def _says_something(text: str) -> bool:
    """Whether there is a word in it."""
    return bool(re.search(r"[A-Za-z]{2}", text))
