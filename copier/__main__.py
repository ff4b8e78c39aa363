"""``python -m copier``: puts the command line and the parts that it may not import together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from copier.cli.main import run_command
from copier.cli.session import Embedded


def _checkpoint() -> Path:
    from copier.pocket.checkpoint import checkpoint_path

    return checkpoint_path()


def _install(webui: Path) -> list[Path]:
    from copier.pocket.install import install

    return install(webui)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    return run_command(argv, Embedded(_checkpoint, _install))


if __name__ == "__main__":
    sys.exit(main())
