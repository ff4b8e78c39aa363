"""``copier cache`` and ``copier pocket``."""

from __future__ import annotations

from copier.cli.parser import Commands


def register(commands: Commands) -> None:
    """Add the commands."""
