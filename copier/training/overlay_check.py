"""Whether an overlay works with the Python, and the torch, that will use it: tried in a child."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from copier.errors import InstallFailed
from copier.progress import CancelToken
from copier.training.child_output import PIP_LINES, lines_of
from copier.training.interpreter import Interpreter
from copier.training.overlay import Contents, Overlay, Stamp, foreign_packages, missing_packages
from copier.training.process import Child, describe_exit, quoted

STAND_IN = Path(__file__).with_name("standin")
"""Goes first on the path where torchvision cannot be imported, or is missing."""
_PROBE = Path(__file__).with_name("overlay_probe.py")
_PROJECT = Path(__file__).resolve().parents[2]


def check_overlay(
    overlay: Overlay,
    interpreter: Interpreter,
    contents: Contents,
    *,
    behind: Sequence[Path] = (),
    cancel: CancelToken | None = None,
) -> Stamp:
    """What the overlay is worth, as a stamp: its modules imported, its tokenizers written and tried.

    ``behind`` are folders of packages that come after it on the path.

    Raises:
        InstallFailed: a package is missing or one too many, or a module cannot be imported.
        Cancelled: ``cancel`` was set.
    """
    if missing := missing_packages(overlay, contents):
        raise InstallFailed(f"the installation lacks {', '.join(missing)}: run it again")
    if foreign := foreign_packages(overlay, contents):
        # Whatever pip did: a second torch before the host's would not fit its drivers, or its models.
        raise InstallFailed(f"the installation has {', '.join(foreign)}, which no list names: run it again")
    answer = _asked(overlay, interpreter, contents, behind, cancel)
    if answer["failed"]:
        raise InstallFailed(
            f"the trainer's packages do not work with {interpreter.path} (torch "
            f"{interpreter.torch or 'none'}): {'; '.join(_listed(answer['failed']))}. Name another Python "
            "(--python), or repair its torch"
        )
    return Stamp(
        digest=contents.digest,
        python=interpreter.version,
        platform=interpreter.platform,
        torch=interpreter.torch,
        torchvision=interpreter.torchvision,
        stand_in=answer["stand_in"],
        unusable=tuple(_listed(answer["unusable"])),
    )


def _asked(
    overlay: Overlay,
    interpreter: Interpreter,
    contents: Contents,
    behind: Sequence[Path],
    cancel: CancelToken | None,
) -> dict[str, Any]:
    """The probe's answer."""
    job = {
        "packages": str(overlay.packages),
        "behind": [str(folder) for folder in behind],
        "project": str(_PROJECT),
        "stand_in": str(STAND_IN),
        "tokenizers": str(overlay.tokenizers),
        "modules": contents.modules,
        # Without a device there is nothing to try them on.
        "optional": contents.optional if interpreter.cuda else (),
        "for_training": contents.for_training,
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    try:
        child = Child([interpreter.path, str(_PROBE)], environment=environment, folder=overlay.folder)
    except OSError as error:
        raise InstallFailed(f"{interpreter.path} cannot be started ({error.strerror})") from error
    child.send(json.dumps(job))
    lines = list(lines_of(child, cancel))
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (ValueError, IndexError) as error:
        raise InstallFailed(
            f"the trainer's packages do not work with {interpreter.path}: importing them "
            f"{describe_exit(child.exit_code)}{quoted(child.tail, PIP_LINES)}"
        ) from error
    return answer


def _listed(reasons: dict[str, str]) -> list[str]:
    return [f"{name} ({why})" for name, why in reasons.items()]
