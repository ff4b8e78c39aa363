"""Recipes as JSON: one codec for presets, LoRA metadata, the command line, the tab and the API.

A recipe file is an object ``{"format": "copier-recipe", "version": 1, "name": ..., "stages":
[{"kind": "train", ...}, ...], ...}``. Fields that are left out take their defaults; unknown ones are
errors that offer the nearest names. Older versions are migrated step by step (``MIGRATIONS``).
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from copier.errors import BadInput, UnknownName
from copier.recipe import STAGE_KINDS, Recipe, StageSpec

FORMAT = "copier-recipe"
VERSION = 1
RECIPE_KEY = "copier.recipe"
"""Metadata key of a LoRA that holds its recipe as JSON."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""``MIGRATIONS[n]`` turns the JSON of version n into that of version n + 1."""

SpecT = TypeVar("SpecT")

_STAGE_CLASSES = {kind: name for name, kind in STAGE_KINDS.items()}


def spec_to_json(spec: Any) -> dict[str, Any]:
    """A spec dataclass as JSON values; a stage also says its ``kind``."""
    data: dict[str, Any] = {}
    if type(spec) in _STAGE_CLASSES:
        data["kind"] = _STAGE_CLASSES[type(spec)]
    for field in fields(spec):
        data[field.name] = value_to_json(getattr(spec, field.name))
    return data


def spec_from_json(cls: type[SpecT], data: Mapping[str, Any]) -> SpecT:
    """A spec of class ``cls`` from JSON values.

    Raises:
        UnknownName: a field that the spec does not have.
        BadInput: a value of the wrong type, a missing field, or one outside its bounds.
    """
    if not isinstance(data, Mapping):
        raise BadInput(f"{cls.__name__} is {data!r}: it must be a JSON object")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name == "kind" and cls in _STAGE_CLASSES:
            continue
        if name not in known:
            raise UnknownName(f"field of {cls.__name__}", name, known)
        values[name] = value_from_json(f"{cls.__name__}.{name}", hints[name], value)
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise BadInput(f"{cls.__name__} has no {name!r}: add it")
    return cls(**values)


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe as JSON values, with format and version."""
    return {"format": FORMAT, "version": VERSION, **spec_to_json(recipe)}


def recipe_from_json(data: Any) -> Recipe:
    """A recipe from JSON values of any version up to ``VERSION``.

    Raises:
        BadInput, UnknownName: not a recipe, a newer version, or as ``spec_from_json``.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise BadInput(f'this is no recipe: a recipe is a JSON object with "format": "{FORMAT}"')
    content = dict(data)
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BadInput(f"the recipe's version is {version!r}: it must be a number from 1 to {VERSION}")
    if version > VERSION:
        raise BadInput(
            f"the recipe's version is {version}, this program reads 1 to {VERSION}: update the program"
        )
    while version < VERSION:
        content = MIGRATIONS[version](content)
        version += 1
    content.pop("format")
    content.pop("version", None)
    return spec_from_json(Recipe, content)


def recipe_from_text(text: str, source: str) -> Recipe:
    """A recipe from JSON text; ``source`` names it in errors."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{source} is not valid JSON: {error}") from error
    return recipe_from_json(data)


def builtin_recipes() -> dict[str, Recipe]:
    """The recipes that come with the program, by name."""
    folder = resources.files("copier") / "presets"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            recipe = recipe_from_text(entry.read_text(encoding="utf-8"), entry.name)
            found[recipe.name] = recipe
    return found


def load_recipe(name_or_path: str) -> Recipe:
    """A built-in recipe by name, or one from a ``.json`` file.

    Raises:
        UnknownName: neither a file nor a built-in recipe.
        BadInput: a file that is no recipe.
    """
    path = Path(name_or_path)
    if path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the recipe file {name_or_path} cannot be read: {error}") from error
        return recipe_from_text(text, name_or_path)
    recipes = builtin_recipes()
    if name_or_path not in recipes:
        raise UnknownName("recipe", name_or_path, recipes)
    return recipes[name_or_path]


def with_value(recipe: Recipe, assignment: str) -> Recipe:
    """``recipe`` with one value changed, as ``--set path=value`` does.

    The path is ``STAGE.FIELD`` (``copier.training.steps=300``), ``KIND.FIELD`` for every stage of a
    kind (``train.training.steps=300``), ``training.FIELD`` for all trainings, or a field of the
    recipe itself (``name=mine``). Values are JSON; what is no JSON is a text.

    Raises:
        BadInput, UnknownName: no such path, or a value that its field does not take.
    """
    path, separator, text = assignment.partition("=")
    if not separator or not path:
        raise BadInput(f"--set {assignment!r}: write it as path=value, as in training.steps=300")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    head, *rest = path.split(".")
    if head == "training":
        head, rest = "train", ["training", *rest]
    if not rest:
        changed: Recipe = _with_field(recipe, [head], value)
        return changed
    chosen = [s for s in recipe.stages if head in (s.name, _STAGE_CLASSES[type(s)])]
    if not chosen:
        known = {"training", *(stage.name for stage in recipe.stages), *STAGE_KINDS}
        raise UnknownName(f"stage of the recipe {recipe.name!r}", head, known)
    stages = tuple(_with_field(s, rest, value) if s in chosen else s for s in recipe.stages)
    return replace(recipe, stages=stages)


def with_values(recipe: Recipe, assignments: Iterable[str]) -> Recipe:
    """``recipe`` with several values changed, one after the other; raises as ``with_value``."""
    return functools.reduce(with_value, assignments, recipe)


def _with_field(spec: Any, path: list[str], value: Any) -> Any:
    names = [field.name for field in fields(spec)]
    name, *rest = path
    if name not in names:
        raise UnknownName(f"field of {type(spec).__name__}", name, names)
    if rest:
        inner = getattr(spec, name)
        if not is_dataclass(inner):
            raise BadInput(f"{type(spec).__name__}.{name} has no field {rest[0]!r}: it is a value")
        return replace(spec, **{name: _with_field(inner, rest, value)})
    hint = typing.get_type_hints(type(spec))[name]
    checked = value_from_json(f"{type(spec).__name__}.{name}", hint, value)
    return replace(spec, **{name: checked})


def value_to_json(value: Any) -> Any:
    """The value of a field as JSON values."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return spec_to_json(value)
    if isinstance(value, tuple):
        return [value_to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: value_to_json(item) for name, item in value.items()}
    return value


def value_from_json(where: str, hint: Any, value: Any) -> Any:
    """The value of a field that is annotated with ``hint``; ``where`` names it in errors.

    Raises:
        BadInput, UnknownName: as ``spec_from_json``.
    """
    if typing.get_origin(hint) in (tuple, Sequence):
        item = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise BadInput(f"{where} is {value!r}: give a list")
        return tuple(value_from_json(where, item, part) for part in value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if type(None) not in typing.get_args(hint):
            return _stage_from_json(value)
        inner = next(one for one in typing.get_args(hint) if one is not type(None))
        return None if value is None else value_from_json(where, inner, value)
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, Mapping):
            raise BadInput(f"{where} is {value!r}: give a JSON object")
        item = typing.get_args(hint)[1]
        return {name: value_from_json(f"{where}.{name}", item, part) for name, part in value.items()}
    if hint is Path:
        return Path(_plain(where, str, value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise UnknownName(f"value for {where}", str(value), (m.value for m in hint)) from None
    if is_dataclass(hint):
        return spec_from_json(typing.cast("type[Any]", hint), value)
    return _plain(where, hint, value)


def _plain(where: str, hint: Any, value: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{where} is a number of {len(str(value))} digits: give a smaller one") from None
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
        raise BadInput(f"{where} is {value!r}: give {kind}")
    return value


def _stage_from_json(value: Any) -> StageSpec:
    if not isinstance(value, Mapping):
        raise BadInput(f"a stage is {value!r}: it must be a JSON object")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in STAGE_KINDS:
        raise UnknownName("kind of stage", str(kind), STAGE_KINDS)
    return spec_from_json(STAGE_KINDS[kind], value)
