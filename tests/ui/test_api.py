"""`copier ui` serves the API beside the page, on whichever gradio is installed; both ask for an account."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import json
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.ui.running import Program, until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="gradio is not installed: make test-ui runs these"
    ),
]

API = "/copier/v1"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    accounts = tmp_path_factory.mktemp("accounts") / "accounts"
    accounts.write_text("me:secret\n")
    program = Program(tmp_path_factory.mktemp("program"), "--auth-file", str(accounts))
    program.start()
    # The routes are added when the page is served already.
    until(lambda: asked(program, f"{API}/")[0] == 401, "the API is served")
    yield program
    program.end()


def asked(
    program: Program, path: str, content: str | None = None, **headers: str
) -> tuple[int, str, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", program.port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if content is None else "POST", path, content, named)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer


def test_page_and_api_ask_for_the_same_account(program: Program) -> None:
    right = "Basic " + base64.b64encode(b"me:secret").decode()
    assert asked(program, "/config")[0] == 401
    assert asked(program, f"{API}/jobs")[0] == 401
    assert asked(program, f"{API}/jobs", authorization=right[:-2])[0] == 401
    status, text, _ = asked(program, f"{API}/", authorization=right)
    assert status == 200 and json.loads(text)["host"] == "standalone"
    status, text, _ = asked(program, f"{API}/docs", authorization=right)
    assert status == 200 and f"{API}/jobs" in text


def test_who_has_logged_in_at_the_page_may_call_but_not_through_a_page_of_another_origin(
    program: Program,
) -> None:
    form = urllib.parse.urlencode({"username": "me", "password": "secret"})
    kind = "application/x-www-form-urlencoded"
    status, _, answer = asked(program, "/login", form, content_type=kind)
    assert status == 200
    cookies = [one.partition(";")[0] for one in answer.headers.get_all("set-cookie") or ()]
    cookie = "; ".join(one for one in cookies if "unsecure" in one)
    assert cookie
    assert asked(program, f"{API}/jobs", cookie=cookie)[0] == 200
    # gradio's own middleware would tell the browser that every origin may read the answer.
    assert asked(program, f"{API}/jobs", cookie=cookie, origin="https://example.org")[0] == 403
    assert asked(program, f"{API}/jobs", cookie=cookie[:-4])[0] == 401
