"""Who may call the API: whoever the host lets in. Its own switches do not cover an extension's routes."""

from __future__ import annotations

from copier.api import Guard


def guard_of_host() -> Guard:
    """By ``--gradio-auth``, ``--gradio-auth-path``, ``--api-auth`` and ``--cors-allow-origins``."""
    from modules import initialize_util, shared

    options = shared.cmd_opts
    accounts = [(str(name), str(password)) for name, password in initialize_util.get_gradio_auth_creds()]
    for one in (getattr(options, "api_auth", None) or "").split(","):
        name, _, password = one.strip().partition(":")
        if name and password:
            accounts.append((name, password))
    origins = getattr(options, "cors_allow_origins", None) or ""
    return Guard(tuple(accounts), tuple(one.strip() for one in origins.split(",") if one.strip()))
