"""The fields of a recipe as a form shows them: one leaf for each, made from the specs and the field table.

A leaf's path is what ``--set`` takes for a kind of stage: ``train.training.steps``, ``recipe.trainer``.
Lists of parts (base LoRAs, terms, sets of pictures) are written as text, one part a line.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from copier.codec import spec_to_json
from copier.errors import BadInput
from copier.fields import FIELDS, Field
from copier.recipe import STAGE_KINDS, BaseLora, PictureSet, Recipe, WeightedLora

RECIPE = "recipe"
"""First part of the paths of the recipe's own fields."""


def elem_id(path: str) -> str:
    """The element's id in the page: ``train.training.steps`` is ``copier_train__training__steps``."""
    return "copier_" + path.replace(".", "__")


class Shape(str, Enum):
    """How a leaf's value is written."""

    WHOLE = "whole"
    NUMBER = "number"
    FLAG = "flag"
    CHOICE = "choice"
    TEXT = "text"
    LINES = "lines"
    NUMBERS = "numbers"
    PARTS = "parts"


@dataclass(frozen=True)
class Leaf:
    """One field of one kind of stage, or of the recipe.

    ``specs`` are the (class, field) pairs of the field table that it covers: its own, and those of the
    parts that are written in its lines. ``choices`` are an enum's; ``whole``: its numbers are integers.
    """

    path: str
    field: Field
    shape: Shape
    specs: tuple[tuple[str, str], ...]
    choices: tuple[str, ...] = ()
    whole: bool = False
    part: type | None = None

    @property
    def kind(self) -> str:
        """The kind of stage, or ``RECIPE``."""
        return self.path.partition(".")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The path within the spec."""
        return tuple(self.path.split(".")[1:])

    @property
    def info(self) -> str:
        """Help, unit and bounds in one line."""
        known = self.field
        parts = [known.help]
        if self.part is not None:
            parts.append(PART_HELP[self.part])
        unit = f" {known.unit}" if known.unit else ""
        if known.minimum is not None and known.maximum is not None:
            parts.append(f"{_short(known.minimum)} to {_short(known.maximum)}{unit}.")
        elif unit:
            parts.append(f"In{unit}.")
        return " ".join(parts)


def _short(bound: float) -> str:
    return f"{bound:g}" if abs(bound) < 1e6 or bound % 1 else f"{bound:.0f}"


PART_HELP: Mapping[type, str] = {
    BaseLora: "One a line: stage = multiplier.",
    WeightedLora: "One a line: stage = weight.",
    PictureSet: "One a line: name, or name = the set that it changes; then, after commas, more fields: "
    "views-a =, part_of=a, views=8.",
}


def leaves() -> tuple[Leaf, ...]:
    """Every field of the recipe and of each kind of stage, in the order of the specs."""
    found = list(_of(Recipe, RECIPE))
    for kind, spec in STAGE_KINDS.items():
        found += _of(spec, kind)
    return tuple(found)


def _of(spec: type, path: str) -> typing.Iterator[Leaf]:
    hints = typing.get_type_hints(spec)
    for field in fields(spec):
        hint, where = hints[field.name], f"{path}.{field.name}"
        known = FIELDS[spec.__name__][field.name]
        if spec is Recipe and field.name == "stages":
            continue  # a stage's fields are leaves of their own, under its kind
        if is_dataclass(hint):
            yield from _of(typing.cast(type, hint), where)
        else:
            yield _leaf(where, spec.__name__, field.name, known, hint)


def _leaf(path: str, spec: str, name: str, known: Field, hint: Any) -> Leaf:
    own = ((spec, name),)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if is_dataclass(item):
            part = typing.cast(type, item)
            inner = tuple((part.__name__, one.name) for one in fields(part))
            return Leaf(path, known, Shape.PARTS, own + inner, part=part)
        if item is str:
            return Leaf(path, known, Shape.LINES, own)
        return Leaf(path, known, Shape.NUMBERS, own, whole=item is int)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Leaf(path, known, Shape.CHOICE, own, choices=tuple(one.value for one in hint))
    shape = {int: Shape.WHOLE, float: Shape.NUMBER, bool: Shape.FLAG, str: Shape.TEXT}[hint]
    return Leaf(path, known, shape, own, whole=hint is int)


def written(leaf: Leaf, value: Any) -> Any:
    """The value of a spec's field (as JSON) as the form shows it."""
    if leaf.shape is Shape.LINES:
        return "\n".join(value)
    if leaf.shape is Shape.NUMBERS:
        return ", ".join(f"{one:.10g}" for one in value)
    if leaf.shape is Shape.PARTS:
        return "\n".join(_part_text(one) for one in value)
    return value


def _part_text(part: Mapping[str, Any]) -> str:
    name, second = list(part.values())[:2]
    if not isinstance(second, str):
        return f"{name} = {second:g}"
    default = spec_to_json(PictureSet(name))
    more = [f"{key}={json.dumps(value) if not isinstance(value, str) else value}"
            for key, value in list(part.items())[2:] if value != default[key]]  # fmt: skip
    first = f"{name} = {second}".rstrip() if second or more else name
    return ", ".join([first, *more])


def understood(leaf: Leaf, given: Any) -> Any:
    """What the form holds as the JSON value of the field.

    Raises:
        BadInput: it is empty or no number; the message says what to give. Bounds are checked by the specs.
    """
    return _READERS[leaf.shape](leaf, given)


def _number(leaf: Leaf, given: Any) -> float | int:
    if given is None or given == "":
        raise BadInput(f"{leaf.field.label} is empty: give a number")
    try:
        number = float(given)
    except (TypeError, ValueError):
        raise BadInput(f"{leaf.field.label} is {given!r}: give a number") from None
    if leaf.whole:
        if not number.is_integer():
            raise BadInput(f"{leaf.field.label} is {given}: give a whole number")
        return int(number)
    return number


def _numbers(leaf: Leaf, given: Any) -> list[float | int]:
    words = str(given or "").replace(",", " ").split()
    return [_number(leaf, word) for word in words]


def _lines(leaf: Leaf, given: Any) -> list[str]:
    # An empty line is a caption of its own: the empty one. An empty field has none.
    text = str(given or "")
    return text.split("\n") if text else []


def _parts(leaf: Leaf, given: Any) -> list[dict[str, Any]]:
    assert leaf.part is not None
    if leaf.part is PictureSet:
        return [_picture_set(line) for line in str(given or "").splitlines() if line.strip()]
    first, second = (one.name for one in fields(leaf.part))
    found = []
    for line in str(given or "").splitlines():
        name, separator, value = (word.strip() for word in line.partition("="))
        if not name and not separator:
            continue
        part: dict[str, Any] = {first: name}
        if separator:
            part[second] = _number(leaf, value)
        found.append(part)
    return found


def _picture_set(line: str) -> dict[str, Any]:
    """A set of pictures from its line: name, what it changes, and more fields as name=value."""
    head, *more = (word.strip() for word in line.split(","))
    name, separator, of = (word.strip() for word in head.partition("="))
    part: dict[str, Any] = {"name": name, **({"of": of} if separator else {})}
    for one in more:
        key, _, value = (word.strip() for word in one.partition("="))
        try:
            part[key] = json.loads(value)
        except ValueError:
            part[key] = value
    return part


def _choice(leaf: Leaf, given: Any) -> str:
    if given in (None, ""):
        raise BadInput(f"{leaf.field.label} is empty: choose one")
    return str(given)


_READERS: Mapping[Shape, Callable[[Leaf, Any], Any]] = {
    Shape.WHOLE: _number,
    Shape.NUMBER: _number,
    Shape.FLAG: lambda leaf, given: bool(given),
    Shape.CHOICE: _choice,
    Shape.TEXT: lambda leaf, given: str(given or ""),
    Shape.LINES: _lines,
    Shape.NUMBERS: _numbers,
    Shape.PARTS: _parts,
}
