"""Pictures: hand one in, have some drawn, apply an edit."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from copier.api.bodies import edit_schema, generate_schema
from copier.api.calls import Call, Endpoint, Json, NotFound
from copier.app.edits import edits_json
from copier.app.names import free_name
from copier.app.submission import checked_path, keep_content, read_generation, read_picture_file
from copier.errors import BadInput, UnknownName, about
from copier.fields import LARGEST_UPLOAD
from copier.progress import ignore


def _upload(call: Call) -> Json:
    with about("name"):
        name = call.query.get("name", "picture.png")
    path = keep_content(call.content, name, call.services.settings)
    return _shown(path, embedded=False)


def _generate(call: Call) -> Json:
    embedded = call.value("data", bool, False)
    asked = {name: value for name, value in call.body.items() if name != "data"}
    request = read_generation(asked, call.services.host)
    drawn = call.services.host.generate(request, ignore, call.cancel)
    return {
        "pictures": [
            {**_shown(one.path, embedded=embedded), "seed": one.seed, "infotext": one.infotext}
            for one in drawn
        ]
    }


def _edits(call: Call) -> Json:
    return {"edits": edits_json()}


def _edit(call: Call) -> Json:
    from copier.app.pictures import edit_picture

    name, services = call.path["name"], call.services
    known = [one["name"] for one in edits_json()]
    if name not in known:
        raise NotFound(UnknownName("edit", name, known))
    call.only("picture", "parameters", "out", "data")
    embedded = call.value("data", bool, False)
    values = call.value("parameters", Mapping[str, float], {})
    with about("picture"):
        if "picture" not in call.body:
            raise BadInput("no picture is given: add one")
        source = read_picture_file(call.body["picture"], services.host, services.settings)
    with about("out"):
        given = call.body.get("out")
        if given is None:
            out = _place(source, name, services.settings.pictures / "edited")
        else:
            out = checked_path(given, services.host)
    done = edit_picture(name, source, out, values)
    return {**done, **_shown(out, embedded=embedded)}


def _place(source: Path, edit: str, folder: Path) -> Path:
    """A new file in ``folder``, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = free_name(f"{source.stem[:100]}-{edit}", lambda one: (folder / f"{one}.png").exists())
    return folder / f"{stem}.png"


def _shown(path: Path, *, embedded: bool) -> Json:
    from copier.app.pair_preview import picture_size

    width, height = picture_size(path)
    shown: Json = {"path": str(path), "name": path.name, "width": width, "height": height}
    if embedded:
        shown["data"] = base64.b64encode(path.read_bytes()).decode("ascii")
    return shown


ENDPOINTS = (
    Endpoint(
        "POST",
        "/pictures",
        _upload,
        "Hand in a picture file as it is, with its own content type; its path is what the others take.",
        query={"name": "Its name, which of several pictures pairs A with B."},
        media="image/",
        largest=LARGEST_UPLOAD,
        status=201,
    ),
    Endpoint(
        "POST",
        "/generate",
        _generate,
        "Have the host draw pictures. Closing the connection stops it.",
        body=generate_schema,
        long=True,
    ),
    Endpoint("GET", "/edits", _edits, "The built-in edits with their parameters and bounds."),
    Endpoint("POST", "/edits/{name}", _edit, "Apply a built-in edit to a picture.", body=edit_schema),
)
