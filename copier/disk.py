"""The disk of a place that need not exist yet."""

from __future__ import annotations

import shutil
from pathlib import Path


def existing_parent(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def free_disk(folder: Path) -> int:
    """Bytes that are free on the disk of ``folder``, which need not exist."""
    return shutil.disk_usage(existing_parent(folder)).free
