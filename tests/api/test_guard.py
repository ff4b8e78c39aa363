"""Who may call: accounts of both lists, gradio's login, other origins, other names."""

from __future__ import annotations

import base64

import pytest

from copier.api.guard import Guard
from copier.app.accounts import own_accounts
from copier.app.ports import THIS_MACHINE, Security
from copier.errors import BadInput

HERE = {"host": "127.0.0.1:7861"}
LISTS = (("page", "one:two"), ("api", "zwölf"))
GUARD = Guard(LISTS)


def basic(text: str) -> dict[str, str]:
    return {**HERE, "authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def status(
    guard: Guard,
    headers: dict[str, str],
    *,
    method: str = "POST",
    tokens: dict[str, str] | None = None,
    security: Security = THIS_MACHINE,
) -> int:
    refused = guard.refusal(method, headers, tokens or {}, security)
    return 200 if refused is None else refused.status


@pytest.mark.parametrize("account", ["page:one:two", "api:zwölf"])
def test_an_account_of_either_list_will_do(account: str) -> None:
    assert status(GUARD, basic(account)) == 200


@pytest.mark.parametrize(
    "headers",
    [
        HERE,
        basic("page:zwölf"),
        basic("page:one:tw"),
        basic("page:one:two "),
        basic("PAGE:one:two"),
        basic(":"),
        basic(""),
        {**HERE, "authorization": "Basic !!!"},
        {**HERE, "authorization": "Bearer " + base64.b64encode(b"page:one:two").decode()},
        {**HERE, "authorization": "Basic"},
        {**HERE, "cookie": "access-token=; other=good"},
        {**HERE, "cookie": "access-token=bad"},
    ],
)
def test_everyone_else_is_asked(headers: dict[str, str]) -> None:
    assert status(GUARD, headers, tokens={"good": "page"}) == 401


@pytest.mark.parametrize("name", ["access-token", "access-token-unsecure", "access-token-unsecure-x7Yz"])
def test_who_is_logged_in_at_the_page_is_known(name: str) -> None:
    headers = {**HERE, "cookie": f"theme=dark; {name}=good"}
    assert status(GUARD, headers, tokens={"good": "page"}) == 200


FOREIGN = [
    {"origin": "https://example.org"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:7862"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
]


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("guard", [Guard(), GUARD])
def test_a_page_of_another_origin_may_not_call(guard: Guard, headers: dict[str, str]) -> None:
    with_password = {**basic("page:one:two"), **headers}
    assert status(guard, with_password, tokens={"good": "page"}) == 403


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", {"origin": "http://127.0.0.1:7861"}),
        ("POST", {"sec-fetch-site": "same-origin"}),
        ("POST", {"sec-fetch-site": "none"}),
        ("GET", {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),
        ("POST", {"origin": "https://friend.example"}),
    ],
)
def test_its_own_page_a_link_and_a_friend_may(method: str, headers: dict[str, str]) -> None:
    guard = Guard(origins=("https://friend.example",))
    assert status(guard, {**HERE, **headers}, method=method) == 200


@pytest.mark.parametrize("name", ["localhost:7861", "127.0.0.1", "127.3.2.1:80", "[::1]:7861", "a.localhost"])
def test_names_of_this_machine_are_answered(name: str) -> None:
    assert status(Guard(), {"host": name}) == 200


@pytest.mark.parametrize(
    "name", ["example.org", "", "10.0.0.1:7861", "localhost.example.org", "127.0.0.1.nip.io"]
)
def test_a_name_that_was_made_to_lead_here_is_not(name: str) -> None:
    """DNS rebinding: to the browser such a page is of the same origin."""
    headers = {"host": name, "origin": f"http://{name}"}
    assert status(Guard(), headers) == 403
    if name:
        assert status(Guard(), headers, security=Security(listening=True)) == 200
        assert status(GUARD, {**basic("api:zwölf"), **headers}) == 200


def test_accounts_come_from_options_a_file_and_the_environment(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COPIER_AUTH", raising=False)
    assert own_accounts() == ()
    file = tmp_path / "accounts"  # type: ignore[operator]
    file.write_text("\nc:d:e\n\na:b\n")
    monkeypatch.setenv("COPIER_AUTH", "x:y")
    assert own_accounts(["a:b"], file) == (("a", "b"), ("x", "y"), ("c", "d:e"))
    for text in ("", "secret", ":secret", "secret:"):
        with pytest.raises(BadInput) as refused:
            own_accounts([text])
        assert "secret" not in str(refused.value)
    file.write_text("")
    with pytest.raises(BadInput, match="empty"):
        own_accounts([], file)
