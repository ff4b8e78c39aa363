"""A run's request as JSON and back: for jobs, which outlive the process that submitted them.

Paths are made absolute: another process has another current folder. What is free, the extra arguments, is
in it too, so this JSON stays in the data directory; what travels is the recipe alone (``copier.codec``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from copier.codec import recipe_from_json, recipe_to_json, spec_from_json, spec_to_json
from copier.errors import BadInput, UnknownName
from copier.model_options import ModelOptions
from copier.request import Edit, Generated, PictureFiles, RunRequest, ScriptOptions, Source

Json = dict[str, Any]

VERSION = 1
_SOURCES: Mapping[str, type[Source]] = MappingProxyType(
    {"files": PictureFiles, "generated": Generated, "edit": Edit}
)
_PLAIN = ("title", "device", "threads")


def request_to_json(request: RunRequest) -> Json:
    """The request, whole, with absolute paths."""
    return {
        "version": VERSION,
        "recipe": recipe_to_json(request.recipe),
        "checkpoint": absolute(request.checkpoint),
        "pictures": {name: _source_to_json(source) for name, source in request.pictures.items()},
        "out": absolute(request.out),
        "loras": {name: absolute(path) for name, path in request.loras.items()},
        "captions": None if request.captions is None else absolute(request.captions),
        "model": _with_absolute(spec_to_json(request.model), "vae"),
        "scripts": spec_to_json(request.scripts),
        **{name: getattr(request, name) for name in _PLAIN},
    }


def request_from_json(data: Any) -> RunRequest:
    """The inverse of ``request_to_json``.

    Raises:
        BadInput, UnknownName: it is none, of a newer version, or has a value that its field does not take.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("version"), int):
        raise BadInput("this is no request of a run: it must be a JSON object with a version")
    if not 1 <= data["version"] <= VERSION:
        raise BadInput(
            f"the request's version is {data['version']}, this program reads 1 to {VERSION}: update it"
        )
    known = {"version", "recipe", "checkpoint", "pictures", "out", "loras", "captions", "model", "scripts"}
    for name in data:
        if name not in {*known, *_PLAIN}:
            raise UnknownName("field of a request", name, {*known, *_PLAIN})
    for name in ("recipe", "checkpoint", "pictures", "out"):
        if name not in data:
            raise BadInput(f"the request has no {name!r}: add it")
    captions = data.get("captions")
    return RunRequest(
        recipe=recipe_from_json(data["recipe"]),
        checkpoint=_path("checkpoint", data["checkpoint"]),
        pictures={name: _source_from_json(name, one) for name, one in _object("pictures", data).items()},
        out=_path("out", data["out"]),
        loras={name: _path(name, one) for name, one in _object("loras", data).items()},
        title=_of("title", data.get("title", ""), str),
        device=_of("device", data.get("device", "auto"), str),
        threads=_of("threads", data.get("threads"), int, type(None)),
        model=spec_from_json(ModelOptions, _object("model", data)),
        scripts=spec_from_json(ScriptOptions, _object("scripts", data)),
        captions=None if captions is None else _path("captions", captions),
    )


def absolute(path: Path) -> str:
    """The absolute path, links not followed."""
    return os.path.abspath(path)


def _source_to_json(source: Source) -> Json:
    kind = next(name for name, one in _SOURCES.items() if type(source) is one)
    data = {"kind": kind, **spec_to_json(source)}
    if isinstance(source, PictureFiles):
        data["paths"] = [absolute(path) for path in source.paths]
    return data


def _source_from_json(name: str, data: Any) -> Source:
    if not isinstance(data, Mapping):
        raise BadInput(f"the pictures {name!r} are {data!r}: give a JSON object")
    kind = str(data.get("kind"))
    if kind not in _SOURCES:
        raise UnknownName(f"kind of pictures for {name!r}", kind, _SOURCES)
    values = {field: value for field, value in data.items() if field != "kind"}
    return spec_from_json(_SOURCES[kind], values)


def _with_absolute(data: Json, name: str) -> Json:
    return data if data[name] is None else {**data, name: absolute(Path(data[name]))}


def _object(name: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    found = data.get(name, {})
    if not isinstance(found, Mapping):
        raise BadInput(f"{name} is {found!r}: give a JSON object")
    return found


def _path(name: str, value: Any) -> Path:
    return Path(_of(name, value, str))


def _of(name: str, value: Any, *kinds: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise BadInput(f"{name} is {value!r}: give {'a text' if str in kinds else 'a whole number'}")
    return value
