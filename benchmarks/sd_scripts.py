"""sd-scripts' LoRA tools as child processes, for the benchmarks and the tests that compare with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from copier.app.settings import own_sd_scripts
from copier.errors import CopierError
from copier.training.scripts_folder import find_sd_scripts

Tool = Sequence[str | Path]
"""A file of its folder networks/, or the path of another one, and the arguments."""


def checkout() -> tuple[Path | None, str]:
    """The checkout of sd-scripts, or why there is none."""
    own = own_sd_scripts()
    try:
        return find_sd_scripts(own).folder.resolve(), ""
    except CopierError:
        return None, f"no checkout of sd-scripts at {own or 'vendor/sd-scripts'}"


def command(folder: Path, *tools: Tool, widths: Mapping[str, object] | None = None) -> tuple[str, ...]:
    """What runs ``tools`` of the checkout ``folder`` one after the other in one process.

    ``widths``: those of a narrower Stable Diffusion 1.x, as the arguments of ``narrow``.
    """
    python = os.environ.get("COPIER_SD_SCRIPTS_PYTHON", sys.executable)
    job = {
        "checkout": str(folder),
        "tools": [[str(argument) for argument in tool] for tool in tools],
        "widths": widths,
    }
    return (python, str(Path(__file__).with_name("sd_scripts_child.py")), json.dumps(job))
