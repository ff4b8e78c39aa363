"""Who may call: names and passwords as the host has them, and no page of another origin.

A browser sends what any page tells it to the services of its own machine, and a host's own switches do not
cover the routes of an extension. So every request passes here first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from copier.app.ports import Security

Headers = Mapping[str, str]
"""Of a request, by names in small letters."""

REALM = "Copier"
_COOKIE = "access-token"
"""What the names of gradio's login cookies begin with, in 3.41 and 4.40."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: the HTTP status, a kind for scripts, and what to do."""

    status: int
    kind: str
    message: str


@dataclass(frozen=True)
class Guard:
    """The rule for every request.

    Attributes:
        accounts: (name, password) pairs of all lists that the host was started with (``--gradio-auth`` and
            ``--api-auth``); one of them is enough. Empty: nobody is asked.
        origins: origins beside its own whose pages may call, as in "https://example.org" (A1111's
            ``--cors-allow-origins``); their names also count as names of this machine.
    """

    accounts: tuple[tuple[str, str], ...] = ()
    origins: tuple[str, ...] = ()

    def refusal(
        self, method: str, headers: Headers, tokens: Mapping[str, str], security: Security
    ) -> Refusal | None:
        """Why the request is refused, or None.

        Args:
            tokens: who is logged in at the host's page, by the token in gradio's cookie (``app.tokens``).
        """
        return (
            self._foreign_name(headers, security)
            or self._foreign_page(method, headers)
            or self._stranger(headers, tokens)
        )

    def _foreign_name(self, headers: Headers, security: Security) -> Refusal | None:
        """A page whose own name was made to lead here (DNS rebinding) is of the same origin.

        With accounts it has no password, and a host that others can reach has names that nobody here knows.
        """
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        known = {urlsplit(origin).hostname for origin in self.origins}
        if self.accounts or security.shared or security.listening or _is_here(name) or name in known:
            return None
        return Refusal(
            403,
            "ForeignHost",
            f"the request is for {name!r}, but this service is for this machine alone: call it by 127.0.0.1, "
            "or set a name and password for it",
        )

    def _foreign_page(self, method: str, headers: Headers) -> Refusal | None:
        origin = headers.get("origin")
        if origin is not None:
            own = urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
            welcome = own or origin in self.origins
        else:
            followed = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
            welcome = followed or headers.get("sec-fetch-site") not in ("cross-site", "same-site")
        if welcome:
            return None
        return Refusal(
            403,
            "ForeignOrigin",
            f"a page of {origin or 'another site'} may not call this service: call it from a script, or from "
            "a page of its own origin",
        )

    def _stranger(self, headers: Headers, tokens: Mapping[str, str]) -> Refusal | None:
        if not self.accounts or self._knows(headers.get("authorization", "")):
            return None
        if any(tokens.get(value) for value in _login_cookies(headers.get("cookie", ""))):
            return None
        return Refusal(
            401, "Unauthorized", "a name and a password are needed: send those of the WebUI as HTTP basic"
        )

    def _knows(self, authorization: str) -> bool:
        """Whether one of the accounts is given. Takes as long whichever is, and however much is right."""
        scheme, _, coded = authorization.partition(" ")
        try:
            given = base64.b64decode(coded.strip(), validate=True) if scheme.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        digest = hashlib.sha256(given).digest()
        found = False
        for name, password in self.accounts:
            wanted = hashlib.sha256(f"{name}:{password}".encode()).digest()
            found |= hmac.compare_digest(digest, wanted)
        return found


def _is_here(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _login_cookies(text: str) -> list[str]:
    found = []
    for one in text.split(";"):
        name, _, value = one.strip().partition("=")
        if name.startswith(_COOKIE) and value:
            found.append(value)
    return found
