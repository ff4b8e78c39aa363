"""The packages that only the tagger needs: a small overlay that completes the trainer's.

In a folder of its own, so that neither installing nor removing it touches the packages that training uses,
and no training ever sees it. It is used, and checked, with the trainer's overlay on the path: where the
list of that one changes, this one is stale.
"""

from __future__ import annotations

from pathlib import Path

from copier.errors import NotInstalled
from copier.progress import CancelToken, Observer, ignore
from copier.training.environment import (
    INSTALL_COMMAND,
    Found,
    contents_for,
    found_overlay,
    install_found,
    pins_of,
    require_environment,
)
from copier.training.interpreter import Interpreter
from copier.training.overlay import Contents, State

INSTALL_TAGGER = f"{INSTALL_COMMAND} --tagger"
MODULES = ("flatbuffers", "google.protobuf", "ml_dtypes", "onnx", "onnxruntime")
ROOM = 200 << 20
"""Bytes that must be free: 108 MB of packages and 32 MB of wheels (Python 3.11, Linux)."""


def tagger_contents(interpreter: Interpreter) -> Contents:
    """The tagger's packages for that Python; raises as ``environment.contents_for``."""
    contents_for(interpreter)
    return Contents(
        pins_of("tagger", interpreter.minor),
        MODULES,
        for_training=False,
        beside=pins_of("trainer", interpreter.minor),
        room=ROOM,
    )


def find_tagger(root: Path, interpreter: Interpreter) -> Found:
    """What is there for that Python in ``root``, which holds nothing else; raises as ``tagger_contents``."""
    return found_overlay(root, interpreter, tagger_contents(interpreter))


def require_tagger(root: Path, interpreter: Interpreter) -> Path:
    """The folder of the tagger's packages, which goes on a child's path behind the trainer's.

    Raises:
        NotInstalled: there are none for it, or stale or damaged ones.
        BadInput: the Python cannot be used.
    """
    found = find_tagger(root, interpreter)
    if found.state is not State.CURRENT:
        raise NotInstalled(
            f"the tagger's packages are {found.state.value} for {interpreter.path}: install them with "
            f"'{INSTALL_TAGGER}' (about 35 MB to download, into a folder of their own)"
        )
    return found.overlay.packages


def install_tagger(
    root: Path,
    interpreter: Interpreter,
    *,
    trainer: Path,
    again: bool = False,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    log_path: Path | None = None,
) -> bool:
    """Install the tagger's packages for that Python, or repair them; whether anything was done.

    Args:
        root: holds the overlays of taggers.
        trainer: holds those of the trainer; that Python's is current.

    Raises:
        NotInstalled: the trainer's packages are not there.
        BadInput, InstallFailed, Cancelled: as ``install_environment``.
    """
    found = find_tagger(root, interpreter)
    behind = require_environment(trainer, interpreter).packages
    return install_found(
        root,
        interpreter,
        found,
        again=again,
        behind=(behind,),
        observer=observer,
        cancel=cancel,
        log_path=log_path,
    )
