"""Commands from file to file: sums, differences, truncation, merging, inspection."""

from __future__ import annotations

from copier.cli.parser import Commands


def register(commands: Commands) -> None:
    """Add the commands."""
