"""The program's name and version."""

from __future__ import annotations

import re
from pathlib import Path

_DISTRIBUTION = "sd-webui-copier"


def program_version() -> str:
    """The installed version; in a plain checkout that of its pyproject.toml."""
    # Only where it is asked for: the import takes a while, and every command imports this module.
    from importlib import metadata

    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        text = project.read_text(encoding="utf-8") if project.is_file() else ""
        found = re.search(r'^version = "([^"]+)"', text, re.MULTILINE)
        return found[1] if found else "unknown"


def program() -> str:
    """Name and version, as ``--version`` and reports show them."""
    return f"copier {program_version()}"
