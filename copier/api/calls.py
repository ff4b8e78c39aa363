"""A request and its answer as plain values: what an endpoint of the API sees of HTTP."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copier.app.jobs import JobService
from copier.app.ports import HostServices
from copier.app.settings import Settings
from copier.codec import value_from_json
from copier.errors import BadInput, UnknownName, about
from copier.progress import CancelToken

Json = dict[str, Any]

LARGEST_JSON = 64 << 20
"""Bytes of a JSON body; pictures above that are uploaded by themselves."""


@dataclass(frozen=True)
class Services:
    """What the API serves: the host, the queue of jobs, and where the program keeps its files."""

    host: HostServices
    jobs: JobService
    settings: Settings


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        path: what stands in the place of the ``{names}`` of the endpoint's path.
        query: the query's parameters.
        body: the JSON object that was sent; {} where nothing was.
        content: the bytes that were sent to an endpoint that takes a file.
        cancel: set when whoever asked has gone.
    """

    services: Services
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Json
    content: bytes = b""
    cancel: CancelToken = field(default_factory=CancelToken)

    def whole(self, name: str, otherwise: int, *, most: int = 2**53) -> int:
        """A whole number of the query, 0 to ``most``. Raises ``BadInput``."""
        text = self.query.get(name, str(otherwise))
        number = whole_number(text)
        with about(name):
            if number is None or number > most:
                raise BadInput(f"{name} is {text!r}: give a whole number from 0 to {most}")
        return number

    def flag(self, name: str) -> bool:
        """Whether the query says ``name=true``; false where it does not name it. Raises ``BadInput``."""
        text = self.query.get(name, "false").lower()
        with about(name):
            if text not in ("true", "false", "1", "0"):
                raise BadInput(f"{name} is {text!r}: give true or false")
        return text in ("true", "1")

    def value(self, name: str, hint: Any, otherwise: Any) -> Any:
        """A field of the body, as ``codec`` takes it for ``hint``; ``otherwise`` where it is not named.

        Raises:
            BadInput: it has a value of another kind.
        """
        with about(name):
            return value_from_json(name, hint, self.body.get(name, otherwise))

    def only(self, *names: str) -> None:
        """Raise ``UnknownName`` where the body has another field."""
        for name in self.body:
            if name not in names:
                raise UnknownName("field", name, names)


def whole_number(text: str) -> int | None:
    """``text`` as a whole number from 0 on, of up to 19 digits; None where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def json_text(data: Any) -> str:
    """``data`` as JSON in ASCII, with null for what JSON lacks: NaN and infinity."""
    return json.dumps(_finite(data), ensure_ascii=True, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


@dataclass(frozen=True)
class FileAnswer:
    """A file as the answer; a page in it may run nothing and load nothing."""

    path: Path
    media_type: str


@dataclass(frozen=True)
class PageAnswer:
    """An HTML page as the answer."""

    html: str


@dataclass(frozen=True)
class StreamAnswer:
    """Server-sent events of a job from a cursor on."""

    job: str
    since: int


Handler = Callable[[Call], Any]
"""Gives a JSON object, or one of the other answers. Raises ``CopierError``, ``NotFound``."""
Schema = Callable[[Any], Json]
"""Makes the JSON Schema of a body, given ``schema.Schemas``, when it is asked for."""


@dataclass(frozen=True)
class Endpoint:
    """One thing that the API does.

    Attributes:
        path: below ``PREFIX``, with ``{names}``.
        text: one line or more on what it does, for the page.
        body: what must be sent, None for nothing.
        query: parameters, each with a line of help.
        status: of an answer that is one.
        media: kind of content that is sent where it is no JSON, as in "image/".
        largest: bytes that may be sent.
        long: it may take minutes; few of them run at a time.
    """

    method: str
    path: str
    handler: Handler
    text: str
    body: Schema | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    media: str = ""
    largest: int = LARGEST_JSON
    long: bool = False


class NotFound(Exception):
    """What the address names is not there; says so as the error that it carries."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
