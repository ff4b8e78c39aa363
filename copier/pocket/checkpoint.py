"""Where the embedded checkpoint lies."""

from __future__ import annotations

from pathlib import Path

from copier.errors import CopierError

NAME = "copier-pocket"
TITLE = "Copier's pocket checkpoint"
"""Of its metadata: by it a file of another version is known."""
_DATA = Path(__file__).parent / "data"


def checkpoint_path() -> Path:
    """The pocket checkpoint's file. Raises ``CopierError`` where the installation lacks it."""
    path = _DATA / f"{NAME}.safetensors"
    if not path.is_file():
        raise CopierError(f"the pocket checkpoint {path} is missing: reinstall the program")
    return path
