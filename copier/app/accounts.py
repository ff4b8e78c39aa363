"""Who may use a service that this program serves itself: names and passwords from the command line's options.

A WebUI has lists of its own; this is for where there is none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from copier.errors import BadInput

Account = tuple[str, str]
"""Name and password."""

VARIABLE = "COPIER_AUTH"
"""Environment variable with one account: what is on a command line, everyone on the machine can read."""


def own_accounts(given: Sequence[str] = (), file: Path | None = None) -> tuple[Account, ...]:
    """The accounts in ``given`` (name:password each), in ``file`` (one a line) and in ``COPIER_AUTH``.

    Raises:
        BadInput: one of them is none, or the file cannot be read, or holds none; no message repeats one.
    """
    found = [account(text, "--auth") for text in given]
    if os.environ.get(VARIABLE):
        found.append(account(os.environ[VARIABLE], VARIABLE))
    if file is not None:
        found += _in_file(file)
    return tuple(dict.fromkeys(found))


def account(text: str, source: str) -> Account:
    """Name and password in ``name:password``; ``source`` names in errors where it was given.

    Raises:
        BadInput: it has no colon, or nothing before or behind it; the message does not repeat it.
    """
    name, _, password = text.strip().partition(":")
    if not name or not password:
        raise BadInput(f"{source} holds no account: write it as name:password")
    return name, password


def _in_file(file: Path) -> list[Account]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the file of accounts {file} cannot be read: {error}") from error
    found = [account(line, f"a line of {file}") for line in lines if line.strip()]
    if not found:
        raise BadInput(f"the file of accounts {file} is empty: write one name:password a line")
    return found
