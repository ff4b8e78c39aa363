"""What the API says of itself: OpenAPI 3.1, and the same as a page that loads nothing from anywhere."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence

from copier.api.bodies import picture_schema
from copier.api.calls import Endpoint, Json, PageAnswer
from copier.api.schema import PLACES, Schemas, object_schema
from copier.markup import Content, Markup, join, tag
from copier.version import program_version

_TITLE = "Copier"
_ERROR = "Error"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
  color: #1d2433; background: #fff }
code, pre { font: 13px/1.45 ui-monospace, Consolas, monospace } pre { overflow: auto; padding: .8em;
  background: #f3f5f9; border-radius: 6px }
section { border-top: 1px solid #d9dee8; padding: .4em 0 } h2 { font-size: 1em; margin: .8em 0 .2em }
.method { display: inline-block; min-width: 4.5em; font-weight: 700; color: #2456a8 }
table { border-collapse: collapse } td { text-align: left; padding: .15em 1em .15em 0 }
@media (prefers-color-scheme: dark) { body { color: #d8deea; background: #14171f } pre { background: #1e232e }
  section { border-color: #2c3342 } .method { color: #8fb4f0 } }
"""


def described(endpoints: Sequence[Endpoint], prefix: str) -> tuple[Endpoint, ...]:
    """The endpoints that describe ``endpoints``, which are served under ``prefix``."""
    made = functools.lru_cache(maxsize=1)(lambda: openapi(endpoints, prefix))
    return (
        Endpoint("GET", "/openapi.json", lambda call: made(), "All of this as OpenAPI 3.1."),
        Endpoint("GET", "/docs", lambda call: PageAnswer(page(made())), "All of this as a page."),
    )


def openapi(endpoints: Sequence[Endpoint], prefix: str) -> Json:
    """The description of ``endpoints``."""
    schemas = Schemas()
    schemas.components["Picture"] = picture_schema()
    schemas.components[_ERROR] = _error()
    paths: dict[str, Json] = {}
    for one in endpoints:
        paths.setdefault(_plain(one.path), {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": program_version()},
        "servers": [{"url": prefix}],
        "security": [{}, {"basic": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
    }


def _error() -> Json:
    text = {"type": "string"}
    inner = object_schema({"kind": text, "message": text, "field": text}, ["kind", "message"])
    return object_schema({"error": inner}, ["error"])


def _operation(one: Endpoint, schemas: Schemas) -> Json:
    places = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)", one.path)
    ]
    query = [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in one.query.items()
    ]
    failure = {"application/json": {"schema": {"$ref": PLACES + _ERROR}}}
    operation: Json = {
        "summary": one.text,
        "operationId": re.sub(r"\W+", "_", f"{one.method} {_plain(one.path)}".lower()).strip("_"),
        "parameters": places + query,
        "responses": {
            str(one.status): {"description": "Done."},
            "default": {"description": "Why not.", "content": failure},
        },
    }
    if one.media:
        operation["requestBody"] = {"required": True, "content": {f"{one.media}*": {}}}
    elif one.body is not None:
        sent = {"application/json": {"schema": one.body(schemas)}}
        operation["requestBody"] = {"required": True, "content": sent}
    return operation


def _plain(path: str) -> str:
    return re.sub(r":\w+}", "}", path)


def page(description: Json) -> str:
    """``openapi``'s description as a whole HTML page."""
    prefix = description["servers"][0]["url"]
    sections = [
        _section(method, prefix + path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    specs = [
        (tag("h2", name, id=name), _code(schema))
        for name, schema in description["components"]["schemas"].items()
    ]
    body = (
        tag("h1", f"{_TITLE} {description['info']['version']}: REST API"),
        tag(
            "p",
            "The same for programs: ",
            tag("code", f"{prefix}/openapi.json"),
            ". docs/api.md has examples.",
        ),
        sections,
        tag("h1", "Values"),
        specs,
    )
    head = (tag("meta", charset="utf-8"), tag("title", f"{_TITLE}: REST API"), tag("style", Markup(_STYLE)))
    return "<!doctype html>" + tag("html", tag("head", head), tag("body", body), lang="en")


def _section(method: str, path: str, operation: Json) -> Markup:
    rows = [
        tag("tr", tag("td", tag("code", one["name"])), tag("td", one.get("description", "in the path")))
        for one in operation["parameters"]
    ]
    sent = operation.get("requestBody", {}).get("content", {})
    bodies: list[Content] = []
    for media, content in sent.items():
        bodies.append(tag("p", f"Send {media}"))
        if "schema" in content:
            bodies.append(_code(content["schema"]))
    return tag(
        "section",
        tag("h2", tag("span", method.upper(), class_="method"), tag("code", path)),
        tag("p", operation["summary"]),
        tag("table", rows) if rows else None,
        tag("details", tag("summary", "body"), bodies) if bodies else None,
    )


def _code(schema: Json) -> Markup:
    """A schema as text, with links to the values that it names."""
    text = join(json.dumps(schema, indent=1, ensure_ascii=False))
    place = re.escape(join(PLACES))
    linked = re.sub(rf"&quot;\$ref&quot;: &quot;{place}(\w+)&quot;", r'<a href="#\1">\1</a>', text)
    return tag("pre", Markup(linked))
