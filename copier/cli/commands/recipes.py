"""``copier recipes``: what there is, and every number of one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from copier.cli.parser import Commands
from copier.cli.session import Answer, Session
from copier.cli.text import table

_WIDEST = 44
"""Characters of a long list that are shown."""


def register(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add(
        "recipes",
        "list the recipes, or show the stages and numbers of one",
        """
        List the built-in recipes and the presets of your own, or show one with all its stages and
        numbers. Use it to choose a recipe, and to find the path of a number that `copier run --set
        PATH=VALUE` changes.
        """,
        ("recipes", "recipes copier-quick", "recipes copier-quick --json > mine.json"),
        _recipes,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe, or a recipe's .json file")


def _recipes(arguments: argparse.Namespace, session: Session) -> Answer:
    from copier.app.own_recipes import find_recipe, listed
    from copier.codec import recipe_to_json

    if arguments.name:
        recipe = find_recipe(arguments.name, session.settings)
        return Answer(recipe_to_json(recipe), _described(recipe))
    data = listed(session.settings)
    rows = [(one["name"], one["trainer"], one["explanation"]) for one in data]
    return Answer({"recipes": data}, table(rows, ("recipe", "trainer", "what it does")))


def _described(recipe: Any) -> str:
    lines = [f"{recipe.name}: {recipe.title}", recipe.explanation, ""]
    lines += [f"trainer = {recipe.trainer.value}, result = {recipe.result}", ""]
    for stage in recipe.stages:
        kind = type(stage).__name__.removesuffix("Stage").lower()
        lines.append(f"{stage.name} ({kind})")
        rows = [(f"  {path}", value, label) for path, value, label in _numbers(stage, stage.name)]
        lines += [table(rows), ""]
    lines.append(f"change one: copier run {recipe.name} ... --set PATH=VALUE")
    return "\n".join(lines)


def _numbers(spec: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Path, value and label of every field, nested ones too."""
    from copier.fields import FIELDS

    for field in fields(spec):
        value = getattr(spec, field.name)
        known = FIELDS[type(spec).__name__][field.name]
        if field.name == "name":
            continue
        if is_dataclass(value):
            yield from _numbers(value, f"{path}.{field.name}")
            continue
        unit = f" ({known.unit})" if known.unit else ""
        yield f"{path}.{field.name}", _shown(value), f"{known.label}{unit}. {known.help}"


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        text = f"[{', '.join(map(_shown, value))}]"
        return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 12].rstrip(', ')}, ... ({len(value)})]"
    if is_dataclass(value):
        return ", ".join(f"{field.name} {_shown(getattr(value, field.name))}" for field in fields(value))
    return repr(value)
