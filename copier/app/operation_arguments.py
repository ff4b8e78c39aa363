"""What the operations on files take, told from their signatures: checked before a job is queued.

The same names, types and defaults serve jobs, the API and its page; bounds and help are the field table's.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from copier.codec import value_from_json
from copier.errors import BadInput, UnknownName, about
from copier.fields import FIELDS, Field, check_number
from copier.request import DEVICES

OPERATIONS = ("difference", "combine", "resize", "merge", "extract")
"""Functions of ``copier.app.operations``."""
FILES = ("minuend", "subtrahend", "lora", "checkpoint", "tuned", "base")
"""Arguments that are files to read; ``loras`` are files with weights, and ``out`` is the one to write."""
WEIGHTED = "loras"
OUT = "out"
_GIVEN = ("metadata", "digest", "observer", "cancel")
"""What whoever carries an operation out adds."""
_RANKS = FIELDS["RankPolicy"]
KNOWN: Mapping[str, Field] = MappingProxyType(
    {
        "ratios": FIELDS["DifferenceStage"]["minuend_ratio"],
        "loras": FIELDS["WeightedLora"]["weight"],
        "rank": _RANKS["rank"],
        "max_rank": _RANKS["rank"],
        "conv_rank": _RANKS["conv_rank"],
        **dict.fromkeys(("sv_ratio", "sv_fro", "sv_cumulative"), _RANKS["threshold"]),
    }
)
"""Bounds and help, by argument."""
_DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Parameter:
    """An argument: its annotation, its default (``inspect.Parameter.empty``: it must be given), choices."""

    name: str
    hint: Any
    default: Any
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty


def find_operation(name: Any) -> Callable[..., Any]:
    """The function of that name. Raises ``UnknownName``; imports torch."""
    if name not in OPERATIONS:
        raise UnknownName("operation", str(name), OPERATIONS)
    from copier.app import operations

    function: Callable[..., Any] = getattr(operations, name)
    return function


def parameters(operation: str) -> Mapping[str, Parameter]:
    """The arguments of an operation that a user may give, in its order. Raises as ``find_operation``."""
    function = find_operation(operation)
    hints = typing.get_type_hints(function)
    return {
        name: Parameter(name, hints[name], one.default, _choices(name, one.default))
        for name, one in inspect.signature(function).parameters.items()
        if name not in _GIVEN
    }


def read_arguments(operation: str, data: Any) -> dict[str, Any]:
    """Arguments from JSON, as the operation takes them; no file is looked at.

    Raises:
        UnknownName: another operation, an argument that it does not have, or a value that is no choice.
        BadInput: an argument is missing, of another type, or out of bounds.
    """
    known = parameters(operation)
    if not isinstance(data, Mapping):
        raise BadInput(f"the arguments of {operation!r} are {data!r}: give a JSON object")
    for name in data:
        if name not in known:
            raise UnknownName(f"argument of {operation!r}", name, known)
    for name, one in known.items():
        if one.required and name not in data:
            with about(name):
                raise BadInput(f"{operation!r} has no {name!r}: add it")
    found = {}
    for name, value in data.items():
        with about(name):
            found[name] = _value(known[name], value)
    return found


def _choices(name: str, default: Any) -> tuple[str, ...]:
    if name == "device":
        return DEVICES
    if name != "dtype":
        return ()
    return _DTYPES if default in _DTYPES else (default, *_DTYPES)


def _value(one: Parameter, value: Any) -> Any:
    if one.name in (*FILES, OUT):
        return value_from_json(one.name, str, value)
    if one.name == WEIGHTED:
        return _weighted(value)
    read = value_from_json(one.name, one.hint, value)
    if one.choices and read not in one.choices:
        raise UnknownName(f"value for {one.name}", read, one.choices)
    if isinstance(one.default, tuple) and one.default and len(read) != len(one.default):
        raise BadInput(f"{one.name} has {len(read)} numbers: give {len(one.default)}")
    for number in read if isinstance(read, tuple) else (read,):
        _check(one.name, number)
    return read


def _weighted(value: Any) -> list[tuple[str, float]]:
    pairs = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    if pairs is None or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise BadInput(f"{WEIGHTED} is {value!r}: give a list of [path, weight]")
    found = []
    for path, weight in pairs:
        read = value_from_json(WEIGHTED, float, weight)
        _check(WEIGHTED, read)
        found.append((value_from_json(WEIGHTED, str, path), read))
    return found


def _check(name: str, value: Any) -> None:
    if name in KNOWN and isinstance(value, (int, float)) and not isinstance(value, bool):
        check_number(name, value, KNOWN[name])
