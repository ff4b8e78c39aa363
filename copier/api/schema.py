"""JSON Schemas of specs, told from their annotations and the field table (JSON Schema 2020-12)."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from copier.api.calls import Json
from copier.codec import FORMAT, VERSION, value_to_json
from copier.fields import FIELDS, Field
from copier.recipe import STAGE_KINDS, Recipe

_PLAIN: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}
PLACES = "#/components/schemas/"


class Schemas:
    """Schemas of annotations; those of specs are gathered in ``components``, each once."""

    def __init__(self) -> None:
        self.components: dict[str, Json] = {}

    def of(self, hint: Any) -> Json:
        """The schema of values that ``codec`` takes for ``hint``."""
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            return self._choice(inner)
        if origin in (tuple, Sequence):
            fixed = origin is tuple and inner[-1] is not Ellipsis
            count = {"minItems": len(inner), "maxItems": len(inner)} if fixed else {}
            return {"type": "array", "items": self.of(inner[0]), **count}
        if origin is Mapping:
            return {"type": "object", "additionalProperties": self.of(inner[1])}
        if isinstance(hint, type) and issubclass(hint, Enum):
            return {"enum": [one.value for one in hint]}
        if is_dataclass(hint):
            return self.spec(hint)
        return {"type": _PLAIN[hint]} if hint in _PLAIN else {}

    def spec(self, cls: Any) -> Json:
        """A reference to the schema of the spec ``cls``."""
        name = cls.__name__
        if name not in self.components:
            self.components[name] = {}
            self.components[name] = self._object(cls)
        return {"$ref": PLACES + name}

    def properties(self, cls: Any) -> dict[str, Json]:
        """Of each field of a dataclass."""
        hints = typing.get_type_hints(cls)
        known = FIELDS.get(cls.__name__, {})
        found = {}
        for one in fields(cls):
            schema = described(self.of(hints[one.name]), known.get(one.name))
            if one.default is not MISSING:
                schema = {**schema, "default": value_to_json(one.default)}
            found[one.name] = schema
        return found

    def _object(self, cls: Any) -> Json:
        needed = [
            one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING
        ]
        properties = self.properties(cls)
        kind = next((name for name, stage in STAGE_KINDS.items() if stage is cls), "")
        if kind:
            properties = {"kind": {"const": kind}, **properties}
            needed = ["kind", *needed]
        if cls is Recipe:
            form: dict[str, Json] = {
                "format": {"const": FORMAT},
                "version": {"type": "integer", "maximum": VERSION},
            }
            properties = {**form, **properties}
            needed = [*form, *needed]
        doc = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        return object_schema(properties, needed, doc)

    def _choice(self, inner: tuple[Any, ...]) -> Json:
        kinds = [one for one in inner if one is not type(None)]
        if str in kinds and any(getattr(one, "__origin__", one) is os.PathLike for one in kinds):
            kinds = [str]
        found = [self.of(one) for one in kinds]
        if len(kinds) < len(inner) and type(None) in inner:
            found.append({"type": "null"})
        return found[0] if len(found) == 1 else {"anyOf": found}


def object_schema(properties: Mapping[str, Json], needed: Sequence[str] = (), text: str = "") -> Json:
    """An object with these properties and no others."""
    return {
        "type": "object",
        **({"description": text} if text else {}),
        "properties": dict(properties),
        **({"required": list(needed)} if needed else {}),
        "additionalProperties": False,
    }


def described(schema: Json, known: Field | None) -> Json:
    """``schema`` with label, help and bounds of the field table."""
    if known is None:
        return schema
    limits: Json = {}
    if known.minimum is not None:
        limits["minimum"] = known.minimum
    if known.maximum is not None:
        limits["maximum"] = known.maximum
    made = dict(schema)
    if schema.get("type") == "array":
        made["items"] = {**schema["items"], **limits}
        if known.shortest:
            made["minItems"] = known.shortest
    elif "anyOf" in schema:
        made["anyOf"] = [
            {**one, **limits} if one.get("type") in ("integer", "number") else one for one in schema["anyOf"]
        ]
    else:
        made |= limits
        if known.shortest and schema.get("type") == "string":
            made["minLength"] = known.shortest
    unit = f" ({known.unit})" if known.unit else ""
    return {**made, "title": f"{known.label}{unit}", "description": known.help}
