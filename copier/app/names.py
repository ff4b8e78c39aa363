"""Names that people give to files: checked, never changed."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Callable

from copier.errors import BadInput
from copier.fields import check_text

LONGEST = 200
"""Bytes of a name without its ending: file systems take 255, and a temporary file has 14 more."""
_FORBIDDEN = '<>:"/\\|?*'
"""Windows takes none of them in a name, and a prompt neither < nor : nor >."""
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)
"""Devices on Windows, with any ending (Microsoft, "Naming Files, Paths, and Namespaces")."""


def check_name(name: str, what: str = "the name") -> str:
    """``name`` as it is, where every system takes it for the name of a file, without ending.

    Letters of every script are kept as they were typed.

    Raises:
        BadInput: it is empty or too long, names a folder, has a character that some system refuses, or is
            reserved on Windows.
    """
    check_text(what, name)
    if not name.strip():
        raise BadInput(f"{what} is empty: give one")
    if found := sorted({one for one in name if one in _FORBIDDEN}):
        raise BadInput(f"{what} {name!r} has {' '.join(found)} in it: leave out {' '.join(_FORBIDDEN)}")
    if any(unicodedata.category(one) in ("Cc", "Zl", "Zp") for one in name):
        raise BadInput(f"{what} {name!r} has a control character in it: leave it out")
    if name != name.strip() or name.startswith(".") or name.endswith("."):
        raise BadInput(f"{what} {name!r} begins or ends with a space or a dot: leave that out")
    if _RESERVED.match(name):
        raise BadInput(f"{what} {name!r} is the name of a device on Windows: choose another")
    if len(name.encode()) > LONGEST:
        raise BadInput(f"{what} has {len(name.encode())} bytes in UTF-8: the largest number is {LONGEST}")
    return name


def free_name(wanted: str, taken: Callable[[str], bool]) -> str:
    """``wanted``, or with -2, -3, ... behind it, whichever is the first that is not ``taken``."""
    name, number = wanted, 1
    while taken(name):
        number += 1
        name = f"{wanted}-{number}"
    return name


def folder_name(title: str) -> str:
    """A folder of its own for every run: by the time, and what it is about."""
    when = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    about = re.sub(r"[^\w+-]+", "-", title).strip("-")[:40]
    return f"copier-{when}-{about}" if about else f"copier-{when}"
