"""Temporary files beside their target: the output is whole or absent.

The name is ``.<target>.<random>.tmp`` in the target's folder, so that the final rename stays on one
file system. The writing process holds a lock on it; a leftover of a process that was killed has
none, and is removed when the same target is written again.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from copier.lock import flock
from copier.writepoints import write_point

log = logging.getLogger(__name__)

_COPIED_AT_ONCE = 1 << 22


def create_temporary(target: Path) -> tuple[BinaryIO, Path]:
    """Create and lock a temporary file for ``target``, open for writing; raises OSError."""
    while True:
        place = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        file = open(place, "xb", buffering=0)  # noqa: SIM115  # closed by the writer
        # Between creation and lock another writer may have taken it for a leftover.
        if _lock(file, unknown=True) and place.exists():
            return file, place
        file.close()


def remove_leftovers(target: Path) -> None:
    """Remove temporary files for ``target`` that no living process holds."""
    pattern = f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp"
    for place in target.parent.glob(pattern):
        with contextlib.suppress(OSError), open(place, "r+b") as file:
            if not _lock(file, unknown=False):
                continue
            if os.name != "nt":
                place.unlink()
                log.info("removed %s, left by a process that was killed", place.name)
        if os.name == "nt":
            # An open file cannot be removed there: that is the lock.
            with contextlib.suppress(OSError):
                place.unlink()


Move = Callable[[BinaryIO, Path, Path], bool]
"""Gives the temporary file its name: file, its path, target; false where it was left alone."""


def replace_file(target: Path, content: bytes, *, point: str = "") -> None:
    """Write ``content`` to ``target``, in place of what is there, in one step; raises OSError.

    ``point`` is the first part of the names of the write points that are passed, or "" for none.
    """
    _commit(target, lambda whole: whole.write(content), _replace, point)


def create_file(target: Path, content: bytes) -> bool:
    """Write ``content`` to ``target`` in one step; false where something is there already. Raises OSError."""
    return not os.path.lexists(target) and _commit(target, lambda whole: whole.write(content), move_if_absent)


def copy_file(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target``, in place of what is there, in one step; they may be on two disks.

    Raises:
        OSError: it cannot be read, or not be written there.
    """
    with open(source, "rb") as content:
        _commit(target, lambda whole: shutil.copyfileobj(content, whole, _COPIED_AT_ONCE), _replace)


def copy_if_absent(source: Path, target: Path, *, point: str = "") -> bool:
    """Copy ``source`` to ``target`` in one step; false where something is there already. Raises OSError.

    ``point`` as in ``replace_file``.
    """
    if os.path.lexists(target):
        return False
    with open(source, "rb") as content:
        return _commit(
            target, lambda whole: shutil.copyfileobj(content, whole, _COPIED_AT_ONCE), move_if_absent, point
        )


def _commit(target: Path, write: Callable[[BinaryIO], object], move: Move, point: str = "") -> bool:
    """Let ``write`` fill a temporary file, flush it to the disk and ``move`` it; what ``move`` says."""

    def pass_point(place: str) -> None:
        if point:
            write_point(f"{point}-{place}")

    remove_leftovers(target)
    file, place = create_temporary(target)
    try:
        with file:
            # Buffered: an unbuffered write may stop short without an error.
            with open(file.fileno(), "wb", closefd=False) as whole:
                write(whole)
            pass_point("temporary")
            os.fsync(file.fileno())
            pass_point("rename")
            if not move(file, place, target):
                return False
    finally:
        place.unlink(missing_ok=True)
    pass_point("done")
    return True


def _replace(file: BinaryIO, place: Path, target: Path) -> bool:
    move_into_place(file, place, target)
    return True


def move_if_absent(file: BinaryIO, place: Path, target: Path) -> bool:
    """Rename the temporary file to ``target``; false where something is there already. Raises OSError."""
    try:
        # Unlike a rename, a link never replaces a file that another process has just put there.
        os.link(place, target)
    except FileExistsError:
        return False
    except OSError:
        move_into_place(file, place, target)
    return True


def move_into_place(file: BinaryIO, place: Path, target: Path) -> None:
    """Rename the temporary file to ``target``, in place of what is there; raises OSError.

    While it is still locked: unlocked, another writer of the same target would take it for a leftover.
    """
    if os.name == "nt":
        file.close()  # an open file cannot be renamed there, nor can a leftover be told from it
    os.replace(place, target)


def _lock(file: BinaryIO, *, unknown: bool) -> bool:
    """Try to lock the file; ``unknown`` is the answer where the file system has no locks."""
    try:
        return flock(file.fileno())
    except ImportError:
        return True
    except OSError:
        return unknown
