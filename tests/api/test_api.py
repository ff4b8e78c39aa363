"""The API by HTTP: what it does, what it refuses, and that tab, command line and API mean the same."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from copier.api import PREFIX, Guard, stream
from copier.api.application import ENDPOINTS
from copier.app import operations
from copier.app.job_events import EventLog
from copier.app.operation_arguments import OPERATIONS, parameters
from copier.app.ports import Security
from copier.app.request_json import request_to_json
from copier.app.submission import read_run
from copier.codec import builtin_recipes, recipe_from_json, recipe_to_json
from copier.fields import FIELDS, LARGEST_UPLOAD
from copier.images.effects import apply_effect
from copier.images.pairs import read_picture
from tests.api.conftest import Client, Served, sent


def run_body(folder: Path, doubles: ModuleType, **more: Any) -> dict[str, Any]:
    return {
        "recipe": doubles.short_recipe(),
        "pictures": {"a": sent(folder / "a.png"), "b": {"kind": "edit", "name": "grayscale"}},
        **more,
    }


def events_of(client: Client, id: str, **headers: str) -> list[tuple[str, Any, str]]:
    """Type, data and id of all events of a job's stream."""
    answer = client.send("GET", f"/jobs/{id}/stream", **headers)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.content.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        found.append((lines["event"], json.loads(lines["data"]), lines.get("id", "")))
    return found


def test_recipes_are_those_of_the_codec(client: Client, doubles: ModuleType) -> None:
    listed = client.get("/recipes")["recipes"]
    assert {one["name"] for one in listed} == set(builtin_recipes())
    for name, recipe in builtin_recipes().items():
        assert recipe_from_json(client.get(f"/recipes/{name}")) == recipe
    checked = client.made("/recipes/check", {"recipe": "copier-quick", "set": ["training.steps=77"]}, 200)
    assert {one.training.steps for one in recipe_from_json(checked["recipe"]).trainings()} == {77}
    own = {**doubles.short_recipe(), "extra": "--network_module x"}
    checked = client.made("/recipes/check", {"recipe": own}, 200)
    assert checked["recipe"] == recipe_to_json(recipe_from_json(doubles.short_recipe()))
    assert "extra" in checked["notes"][0]
    assert client.post("/recipes/check", {"recipe": {**own, "stepps": 1}}).error == (
        422,
        "UnknownName",
        "recipe",
    )
    bad = {"recipe": "copier-quick", "set": ["training.steps=0"]}
    assert client.post("/recipes/check", bad).error == (422, "BadInput", "set")


def test_a_run_from_pictures_that_are_sent_to_a_lora_in_the_folder(
    client: Client, folder: Path, doubles: ModuleType
) -> None:
    body = run_body(folder, doubles, title="Grey", control=True)
    planned = client.made("/plan", body, 200)
    assert planned["stages"] and planned["reused"] == 0
    assert client.get("/jobs")["jobs"] == []
    queued = client.made("/jobs", body)
    assert queued["state"] == "queued" and queued["title"] == "Grey"
    streamed = events_of(client, queued["id"])
    job = client.ended(queued["id"])
    assert job["state"] == "done"
    assert job["payload"]["control"] is True

    kind, data, cursor = streamed[-1]
    assert (kind, data["state"], int(cursor)) == ("end", "done", job["cursor"])
    polled: list[Any] = []
    page = {"cursor": 0, "events": [0]}
    while page["events"]:
        page = client.get(f"/jobs/{queued['id']}/events?since={page['cursor']}&most=7")
        polled += page["events"]
        assert len(page["events"]) <= 7
    assert [data for kind, data, _ in streamed if kind != "end"] == polled
    assert polled[-1]["state"] == "done"
    known = [(int(id), i) for i, (_, _, id) in enumerate(streamed) if id and i < len(streamed) - 1]
    middle, index = known[len(known) // 2]
    again = events_of(client, queued["id"], last_event_id=str(middle))
    assert [one[:2] for one in again] == [one[:2] for one in streamed[index + 1 :]]

    wrong = client.send("GET", f"/jobs/{queued['id']}/events?since=-1")
    assert wrong.error == (422, "BadInput", "since")

    result = client.get(f"/jobs/{queued['id']}/result")
    assert result["outcome"] == job["outcome"] and result["outcome"]["results"]
    files = {one["name"]: one for one in client.get(f"/jobs/{queued['id']}/files")["files"]}
    assert {"report.html", "a.png", Path(result["outcome"]["result"]).name} <= set(files)
    assert any(name.startswith("samples/") for name in files)
    for name, one in files.items():
        got = client.send("GET", f"/jobs/{queued['id']}/files/{name.replace(' ', '%20').replace('+', '%2B')}")
        assert got.content == Path(one["path"]).read_bytes() and got.headers["content-type"].startswith(
            one["type"]
        )
        assert "sandbox" in got.headers["content-security-policy"]
    assert client.made("/estimate", body, 200)["seconds"] == 0.0  # all of it is there already

    card = {"weight": 0.5, "activation": "grey"}
    placed = client.made(
        "/loras", {"job": queued["id"], "name": "grey", "card": card, "preview": sent(folder / "b.png")}
    )
    assert Path(placed["path"]).parent == client.services.settings.loras
    assert json.loads(Path(placed["card"]).read_text())["preferred weight"] == 0.5
    assert client.get("/loras")["loras"] == [{"name": "grey.safetensors", "path": placed["path"]}]
    taken = client.post("/loras", {"job": queued["id"], "name": "grey"})
    assert taken.error == (422, "BadInput", "name") and "'grey-2'" in taken.json["error"]["message"]

    used = client.get(f"/jobs/{queued['id']}/disk")
    gone = client.send("DELETE", f"/jobs/{queued['id']}?output=true").json
    assert gone["files"] == used["files"] and not any(Path(path).exists() for path in gone["files"])
    assert Path(placed["path"]).is_file()
    assert client.send("GET", f"/jobs/{queued['id']}").error[:2] == (404, "UnknownName")


def test_a_body_is_the_request_that_the_command_line_would_make(
    served: Served, folder: Path, doubles: ModuleType
) -> None:
    client = served()
    body = {
        **run_body(folder, doubles),
        "pictures": {"a": str(folder / "a.png"), "b": {"kind": "files", "paths": [str(folder / "b.png")]}},
        "out": str(folder / "out"),
        "set": ["training.steps=2"],
        "model": {"clip_skip": 2},
    }
    request = read_run(body, client.services.host, client.services.settings).request
    again = {**body, "set": [], **request_to_json(request)}
    assert read_run(again, client.services.host, client.services.settings).request == request
    assert {one.training.steps for one in request.recipe.trainings()} == {2}
    assert (request.checkpoint, request.model.clip_skip) == (folder / "base.safetensors", 2)


def test_a_job_is_stopped_and_repeated_with_other_numbers(
    client: Client, folder: Path, doubles: ModuleType, worker: Any
) -> None:
    begun = threading.Event()

    def wait(self: Any, cancel: Any) -> None:
        begun.set()
        doubles.until_cancelled(cancel)

    worker.on_train = wait
    first = client.made("/jobs", run_body(folder, doubles))
    second = client.made("/jobs", run_body(folder, doubles))
    assert begun.wait(20)
    busy = client.post("/generate", {"prompt": "x"})
    assert busy.error[:2] == (409, "NotNow")
    assert client.send("DELETE", f"/jobs/{first['id']}").error[:2] == (409, "NotNow")
    assert client.post(f"/jobs/{first['id']}/retry").error[:2] == (409, "NotNow")
    assert client.send("GET", f"/jobs/{first['id']}/result").error[:2] == (409, "NotNow")
    assert client.made(f"/jobs/{second['id']}/cancel", status=200)["state"] == "stopped"
    assert client.made(f"/jobs/{first['id']}/cancel", status=200)["state"] in ("running", "stopped")
    assert client.ended(first["id"])["state"] == "stopped"
    worker.on_train = None
    wrong = client.post(f"/jobs/{first['id']}/retry", {"set": ["training.steps=no"]})
    assert wrong.error[:2] == (422, "BadInput")
    again = client.made(f"/jobs/{first['id']}/retry", {"set": ["training.seed=9"]})
    done = client.ended(again["id"])
    assert (done["state"], done["retry_of"]) == ("done", first["id"])
    assert {
        one.training.seed for one in client.services.jobs.job(again["id"]).request.recipe.trainings()
    } == {9}


def test_tools_give_what_the_operations_give(client: Client, folder: Path, doubles: ModuleType) -> None:
    loras = client.services.settings.loras
    loras.mkdir()
    for name, seed in (("one", 1), ("two", 2)):
        doubles.write_small_lora(loras / f"{name}.safetensors", seed=seed)
    both = client.made(
        "/tools/combine", {"loras": [["one", 1], ["two", 0.5]], "out": "both", "exact": True, "dtype": "fp32"}
    )
    assert client.ended(both["id"])["state"] == "done"
    back = client.made(
        "/tools/difference",
        {
            "minuend": "both",
            "subtrahend": "two",
            "out": "back",
            "ratios": [1, -0.5],
            "rank": 2,
            "dtype": "fp32",
        },
    )
    job = client.ended(back["id"])
    assert job["outcome"]["output"] == str(loras / "back.safetensors")
    one, found = (client.made("/tools/inspect", {"lora": name}, 200) for name in ("one", "back"))
    assert found["ranks"] == one["ranks"] and found["norm"] == pytest.approx(one["norm"], rel=1e-4)
    assert found["sha256"] == operations.inspect(loras / "back.safetensors")["sha256"]
    merged = client.made("/tools/merge", {"checkpoint": "base", "loras": [["one", 1]], "out": "merged"})
    assert client.ended(merged["id"])["state"] == "done"
    assert "merged" in [one["name"] for one in client.get("/checkpoints")["checkpoints"]]
    assert client.get(f"/jobs/{both['id']}/files")["files"][0]["name"] == "both.safetensors"


def test_the_host_draws_and_edits_are_applied(client: Client, folder: Path) -> None:
    drawn = client.made(
        "/generate", {"prompt": "x", "count": 2, "seed": 5, "width": 64, "height": 128, "data": True}, 200
    )
    assert [one["seed"] for one in drawn["pictures"]] == [5, 6]
    for one in drawn["pictures"]:
        assert base64.b64decode(one["data"]) == Path(one["path"]).read_bytes()
        assert (one["width"], one["height"]) == (64, 128) and "Seed: " in one["infotext"]
    source = drawn["pictures"][0]["path"]
    edited = client.made("/edits/grayscale", {"picture": source, "parameters": {"strength": 0.5}}, 200)
    expected = apply_effect(read_picture(source), "grayscale", {"strength": 0.5})
    assert read_picture(edited["path"]).tobytes() == expected.tobytes()
    again = client.made("/edits/grayscale", {"picture": sent(folder / "a.png"), "data": True}, 200)
    assert again["path"] != edited["path"] and base64.b64decode(again["data"])[:4] == b"\x89PNG"
    content = (folder / "a.png").read_bytes()
    kept = client.send("POST", "/pictures?name=star.png", content, content_type="image/png")
    assert kept.status == 201 and kept.json["name"] == "star.png"
    assert Path(kept.json["path"]).read_bytes() == content
    names = {one["name"] for one in client.get("/edits")["edits"]}
    assert "grayscale" in names


JSON = {"content_type": "application/json"}
WRONG: dict[str, tuple[str, str, Any, tuple[int, str, str]]] = {
    "another type": ("POST", "/jobs", {"recipe": 7}, (422, "BadInput", "recipe")),
    "no pictures": ("POST", "/jobs", {"recipe": "copier-quick-pocket"}, (422, "BadInput", "")),
    "no recipe of that name": ("POST", "/jobs", {"recipe": "../x.json"}, (422, "UnknownName", "recipe")),
    "a recipe's file": ("POST", "/jobs", {"recipe": "/etc/x.json"}, (422, "UnknownName", "recipe")),
    "an unknown field": ("POST", "/jobs", {"%run": {"stepps": 3}}, (422, "UnknownName", "")),
    "a text for a number": ("POST", "/jobs", {"%run": {"seeds": "2"}}, (422, "BadInput", "seeds")),
    "too many": ("POST", "/jobs", {"%run": {"seeds": 21}}, (422, "BadInput", "seeds")),
    "a number for a truth": ("POST", "/jobs", {"%run": {"control": 1}}, (422, "BadInput", "control")),
    "a relative path": ("POST", "/jobs", {"%run": {"out": "out"}}, (422, "BadInput", "out")),
    "a path with a zero": ("POST", "/jobs", {"%run": {"out": "/x\0y"}}, (422, "BadInput", "out")),
    "no checkpoint": ("POST", "/jobs", {"%run": {"checkpoint": "/none.safetensors"}}, (422, "BadInput", "")),
    "another device": ("POST", "/jobs", {"%run": {"device": "tpu"}}, (422, "UnknownName", "")),
    "no base64": ("POST", "/jobs", {"%a": {"data": "%%%"}}, (422, "BadInput", "pictures.a")),
    "no picture": ("POST", "/jobs", {"%a": {"data": "aGFsbG8="}}, (422, "BadPicture", "pictures.a")),
    "a name with a folder": (
        "POST",
        "/jobs",
        {"%a": {"data": "aGFsbG8=", "name": "../a.png"}},
        (422, "BadInput", "pictures.a"),
    ),
    "no file": ("POST", "/jobs", {"%a": "/none.png"}, (422, "BadPicture", "")),
    "no operation": ("POST", "/tools/unlink", {}, (404, "NotFound", "")),
    "an argument missing": ("POST", "/tools/resize", {"lora": "x"}, (422, "BadInput", "out")),
    "no such argument": ("POST", "/tools/resize", {"loro": "x"}, (422, "UnknownName", "")),
    "what is not a user's": (
        "POST",
        "/tools/resize",
        {"digest": "x", "lora": "x", "out": "y"},
        (422, "UnknownName", ""),
    ),
    "a rank as text": (
        "POST",
        "/tools/resize",
        {"lora": "x", "out": "y", "rank": "8"},
        (422, "BadInput", "rank"),
    ),
    "a rank of 0": ("POST", "/tools/resize", {"lora": "x", "out": "y", "rank": 0}, (422, "BadInput", "rank")),
    "another dtype": (
        "POST",
        "/tools/resize",
        {"lora": "x", "out": "y", "dtype": "keep"},
        (422, "UnknownName", "dtype"),
    ),
    "overwriting": (
        "POST",
        "/tools/resize",
        {"lora": "x", "out": "y", "overwrite": True},
        (422, "BadInput", "overwrite"),
    ),
    "three ratios": (
        "POST",
        "/tools/difference",
        {"minuend": "x", "subtrahend": "x", "out": "y", "ratios": [1, 2, 3]},
        (422, "BadInput", "ratios"),
    ),
    "no LoRA": (
        "POST",
        "/tools/resize",
        {"lora": "/none.safetensors", "out": "y", "rank": 1},
        (422, "BadInput", "lora"),
    ),
    "threads as text": (
        "POST",
        "/tools/measure",
        {"lora": "/x.safetensors", "threads": "2"},
        (422, "BadInput", "threads"),
    ),
    "no edit": ("POST", "/edits/gray", {"picture": "/x.png"}, (404, "UnknownName", "")),
    "no parameter": (
        "POST",
        "/edits/grayscale",
        {"%picture": {"parameters": {"x": 1}}},
        (422, "UnknownName", ""),
    ),
    "an edit over its picture": ("POST", "/edits/grayscale", {"%over": 1}, (422, "BadInput", "")),
    "a size": ("POST", "/generate", {"prompt": "x", "width": 65}, (422, "BadInput", "")),
    "a seed as text": ("POST", "/generate", {"prompt": "x", "seed": "1"}, (422, "BadInput", "")),
    "a LoRA without weight": (
        "POST",
        "/generate",
        {"prompt": "x", "loras": ["x"]},
        (422, "BadInput", "loras"),
    ),
    "no job": ("GET", "/jobs/7", None, (404, "UnknownName", "")),
    "no job to stop": ("POST", "/jobs/7/cancel", {}, (404, "UnknownName", "")),
    "no job to delete": ("DELETE", "/jobs/7", None, (404, "UnknownName", "")),
    "no recipe": ("GET", "/recipes/none", None, (404, "UnknownName", "")),
    "nothing there": ("GET", "/nothing", None, (404, "NotFound", "")),
    "another method": ("PUT", "/jobs", None, (405, "NotAllowed", "")),
    "half of a letter": ("POST", "/generate", {"prompt": "\ud800"}, (422, "BadInput", "")),
}


def test_what_is_wrong_is_refused_and_nothing_is_written(
    served: Served, folder: Path, doubles: ModuleType
) -> None:
    client = served()
    run = run_body(folder, doubles)
    before = doubles.tree(folder)
    got = {}
    for name, (method, path, body, _) in WRONG.items():
        if body is not None:
            if "%run" in body:
                body = {**run, **body["%run"]}
            elif "%a" in body:
                body = {**run, "pictures": {**run["pictures"], "a": body["%a"]}}
            elif "%picture" in body:
                body = {"picture": str(folder / "a.png"), **body["%picture"]}
            elif "%over" in body:
                body = {"picture": str(folder / "a.png"), "out": str(folder / "a.png")}
        content = None if body is None else json.dumps(body).encode()
        answer = client.send(method, path, content, **(JSON if body is not None else {}))
        got[name] = answer.error
    assert got == {name: expected for name, (*_, expected) in WRONG.items()}
    assert client.get("/jobs")["jobs"] == []
    after = {
        name: content
        for name, content in doubles.tree(folder).items()
        if content != b"<folder>" and not name.startswith("data/pictures/")
    }
    assert after.items() <= before.items()


def test_what_json_lacks_is_null_in_answers_and_in_streams(
    served: Served, folder: Path, doubles: ModuleType
) -> None:
    client = served()  # nobody works the queue
    job = client.made("/jobs", run_body(folder, doubles))
    EventLog(Path(job["folder"])).append("progress", stage="copier", losses=[[1, float("nan")]])
    client.made(f"/jobs/{job['id']}/cancel", status=200)
    polled = client.get(f"/jobs/{job['id']}/events")["events"]
    assert polled[0]["losses"] == [[1, None]]
    assert [data for kind, data, _ in events_of(client, job["id"]) if kind != "end"] == polled


def test_bodies_that_are_none_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(content: bytes, **headers: str) -> tuple[int, str]:
        return client.send("POST", "/jobs", content, **headers).error[:2]

    assert status(b'{"recipe": NaN}', **JSON) == (400, "NoJson")
    assert status(b"[1]", **JSON) == (400, "NoJson")
    assert status(b"{", **JSON) == (400, "NoJson")
    assert status(b"\xff", **JSON) == (400, "NoJson")
    assert status(b"[" * 100_000, **JSON) == (400, "NoJson")
    assert status(b"{}") == (415, "WrongType")
    assert status(b"{}", content_type="text/plain") == (415, "WrongType")
    assert status(b"a=1", content_type="application/x-www-form-urlencoded") == (415, "WrongType")
    assert status(b"{}", content_type="application/json", content_length=str(65 << 20)) == (413, "TooLarge")
    upload = client.send("POST", "/pictures", b"x", content_type="text/plain")
    assert upload.error[:2] == (415, "WrongType")
    large = {"content_type": "image/png", "content_length": str(LARGEST_UPLOAD + 1)}
    assert client.send("POST", "/pictures", b"", **large).error[:2] == (413, "TooLarge")


def test_a_bug_is_told_to_the_log_and_not_to_the_client(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(client.services.jobs, "jobs", broken)
    answer = client.send("GET", "/jobs")
    assert answer.error == (500, "ZeroDivisionError", "")
    assert b"secret" not in answer.content and "/secret/path" in caplog.text


def test_credentials_are_asked_for_everywhere(served: Served) -> None:
    client = served(Guard((("me", "secret"),)), tokens={"good": "me"})
    right = {"authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    wrong = {"authorization": "Basic " + base64.b64encode(b"me:secre").decode()}
    for one in (*ENDPOINTS, None):
        path = re.sub(r"{.*?}", "x", one.path) if one else "/nothing"
        for headers in ({}, wrong):
            answer = client.send(one.method if one else "GET", path, **headers)
            assert answer.error[:2] == (401, "Unauthorized")
            assert answer.headers["www-authenticate"].startswith("Basic")
    assert client.send("GET", "/jobs", **right).status == 200
    assert client.send("GET", "/jobs", cookie="access-token-unsecure=good").status == 200
    foreign = client.send("GET", "/jobs", origin="https://example.org", **right)
    assert foreign.error[:2] == (403, "ForeignOrigin")
    assert client.send("GET", "/other", prefix="").json == {"the host's own": "other"}


def test_a_host_that_others_reach_keeps_paths_within_its_folders(
    served: Served, folder: Path, doubles: ModuleType, tmp_path: Path
) -> None:
    client = served(security=Security(listening=True))
    outside = doubles.write_picture(tmp_path / "outside.png", seed=3)
    (folder / "link.png").symlink_to(outside)
    doubles.write_small_lora(tmp_path / "outside.safetensors")
    run = run_body(folder, doubles)

    def refused(path: str, body: Any) -> tuple[int, str, str]:
        answer = client.post(path, body)
        assert "WebUI" in answer.json["error"]["message"]
        return answer.error

    for place in (str(outside), f"{folder}/../outside.png", str(folder / "link.png")):
        pictures = {**run["pictures"], "a": place}
        assert refused("/jobs", {**run, "pictures": pictures}) == (422, "BadInput", "pictures.a")
        assert refused("/edits/grayscale", {"picture": place}) == (422, "BadInput", "picture")
    other = str(tmp_path / "outside.safetensors")
    for field in ("out", "captions", "checkpoint"):
        assert refused("/jobs", {**run, field: other}) == (422, "BadInput", field)
    assert refused("/jobs", {**run, "model": {"vae": other}}) == (422, "BadInput", "model.vae")
    assert refused("/jobs", {**run, "scripts": {"extra": ["--x"]}}) == (422, "BadInput", "scripts.extra")
    assert refused("/tools/resize", {"lora": other, "out": "x", "rank": 1}) == (422, "BadInput", "lora")
    inside = str(folder / "small.safetensors")
    assert refused("/tools/resize", {"lora": inside, "out": other, "rank": 1}) == (422, "BadInput", "out")
    assert refused("/tools/inspect", {"lora": other}) == (422, "BadInput", "lora")
    assert refused("/generate", {"prompt": "x", "loras": [[other, 1]]}) == (422, "BadInput", "loras")
    assert refused("/loras", {"lora": other, "name": "x"}) == (422, "BadInput", "lora")
    assert client.made("/jobs", {**run, "pictures": {**run["pictures"], "a": str(folder / "a.png")}})
    open_ = served(security=Security(listening=True, insecure_access=True))
    assert open_.post("/tools/inspect", {"lora": other}).status == 200


def test_what_is_described_is_what_is_there(client: Client, folder: Path, doubles: ModuleType) -> None:
    description = client.get("/openapi.json")
    assert description["openapi"].startswith("3.1")
    listed = {(m.upper(), p) for p, methods in description["paths"].items() for m in methods}
    assert listed == {(one.method, one.path.replace(":path", "")) for one in ENDPOINTS}
    ids = [one["operationId"] for methods in description["paths"].values() for one in methods.values()]
    assert len(ids) == len(set(ids))
    schemas = description["components"]["schemas"]
    for spec, known in FIELDS.items():
        properties = schemas[spec]["properties"]
        assert set(known) <= set(properties)
        for name, one in known.items():
            shown = properties[name].get("items", properties[name])
            assert properties[name]["description"] == one.help
            if one.minimum is not None and "$ref" not in properties[name]:
                assert (shown["minimum"], shown["maximum"]) == (one.minimum, one.maximum)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(description)):
        assert reference in schemas
    for operation in OPERATIONS:
        body = description["paths"][f"/tools/{operation}"]["post"]["requestBody"]
        properties = body["content"]["application/json"]["schema"]["properties"]
        assert set(properties) - {"title"} == set(parameters(operation)) - {"overwrite"}


def test_every_field_of_a_run_that_is_described_is_taken_and_no_other(
    served: Served, folder: Path, doubles: ModuleType
) -> None:
    client = served()
    post = client.get("/openapi.json")["paths"]["/jobs"]["post"]
    properties = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    run = run_body(folder, doubles)
    for name in properties:
        error = client.post("/plan", {**run, name: "%"}).json.get("error", {})
        assert "there is no field" not in error.get("message", ""), name
    known = client.post("/plan", {**run, "%": 1}).json["error"]["message"]
    assert set(re.findall(r"\w+", known.partition("known: ")[2])) <= set(properties)


def test_the_page_lists_everything_and_loads_nothing(client: Client) -> None:
    answer = client.send("GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.content.decode()
    for one in ENDPOINTS:
        assert f"{PREFIX}{one.path.replace(':path', '')}" in page
    assert not re.search(r"<script|<link|\bsrc=|url\(|https?://", page)
    ids = set(re.findall(r' id="(\w+)"', page))
    links = set(re.findall(r'href="#(\w+)"', page))
    assert links and links <= ids


def test_streams_are_counted_and_end_with_their_listener_or_their_job(
    served: Served, folder: Path, doubles: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_STREAMS", 1)
    monkeypatch.setattr(stream, "QUIET_SECONDS", 0.05)
    client = served()  # nobody works the queue: the job waits
    job = client.made("/jobs", run_body(folder, doubles))
    path = f"{PREFIX}/jobs/{job['id']}/stream"
    first = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    first.request("GET", path)
    listening = first.getresponse()
    assert listening.readline() == b": still here\n"
    assert client.send("GET", f"/jobs/{job['id']}/stream").error[:2] == (503, "TooMany")
    listening.close()
    first.close()
    second = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    limit = time.monotonic() + 30
    while True:
        second.request("GET", path)
        answer = second.getresponse()
        if answer.status == 200:
            break
        answer.read()
        assert time.monotonic() < limit, "the first stream was never given up"
        time.sleep(0.05)
    client.made(f"/jobs/{job['id']}/cancel", status=200)
    assert client.send("DELETE", f"/jobs/{job['id']}").status == 200
    text = answer.read().decode()
    assert re.search("event: (end|gone)\n", text)
    second.close()


@pytest.fixture
def resized(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The operation "resize" made cheap; the names of its outputs, in the order in which it was called."""
    done: list[str] = []

    def resize(lora: str, out: str, *, rank: int | None = None) -> Any:
        done.append(Path(out).stem)
        return types.SimpleNamespace(to_json=lambda: {"output": out})

    monkeypatch.setattr(operations, "resize", resize)
    yield done


def test_many_clients_at_once_and_every_job_is_done_exactly_once_in_order(
    client: Client, folder: Path, resized: list[str]
) -> None:
    clients, requests = 16, 200
    made: list[list[str]] = [[] for _ in range(clients)]
    failures: list[Any] = []
    start = threading.Barrier(clients)

    def call(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        start.wait()
        for i in range(number, requests, clients):
            body = {
                "lora": str(folder / "small.safetensors"),
                "out": f"out-{i}",
                "rank": 1,
                "title": f"out-{i}",
            }
            connection.request(
                "POST", f"{PREFIX}/tools/resize", json.dumps(body), {"content-type": "application/json"}
            )
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == 201:
                made[number].append(json.loads(content)["id"])
            else:
                failures.append(content)
        connection.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    last = max(id for ids in made for id in ids)
    client.ended(last)
    jobs = sorted(client.get("/jobs")["jobs"], key=lambda job: job["id"])
    assert len(jobs) == requests and {job["state"] for job in jobs} == {"done"}
    assert [int(job["id"].partition("-")[0]) for job in jobs] == list(range(1, requests + 1))
    assert resized == [job["title"] for job in jobs]
    assert sorted(resized) == sorted(f"out-{i}" for i in range(requests))
    for ids in made:
        assert ids == sorted(ids)
    began = [job["started"] for job in jobs]
    assert began == sorted(began)


def test_a_picture_is_scaled_where_that_is_asked_for(
    client: Client, folder: Path, doubles: ModuleType
) -> None:
    doubles.write_picture(folder / "odd.png", 100, 70)
    body = run_body(folder, doubles)
    odd = {"kind": "files", "paths": [sent(folder / "odd.png")]}
    refused = client.post("/plan", {**body, "pictures": {**body["pictures"], "a": odd}})
    assert refused.error[:2] == (422, "BadPicture")
    fitting = {**body["pictures"], "a": {**odd, "scale": True}}
    assert client.post("/plan", {**body, "pictures": fitting}).status == 200
