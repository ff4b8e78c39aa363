"""Makes an overlay: pip installs pinned lists into an unfinished folder, which is checked and then renamed.

Nothing counts before the rename, so an installation may be killed at any time. What pip writes, downloads
included, goes below the unfinished folder: one disk, and nothing of it stays behind (pip's cache apart). The
environment of the Python is not touched: for ``--target`` pip takes what is installed there for absent.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from copier.errors import InstallFailed
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore
from copier.temporary import create_temporary, remove_leftovers
from copier.training.child_output import PIP_LINES, lines_of
from copier.training.interpreter import Interpreter
from copier.training.overlay import Contents, Overlay, overlay_for
from copier.training.overlay_check import check_overlay
from copier.training.process import Child, quoted

ROOM_FOR_CUDA = 400 << 20
_KEPT_LINES = 60
_UNFINISHED = "install"
_FOLDER = ".folder"
_COLLECTING = re.compile(r"(Collecting|Processing) \S")  # from an index, from a folder
_IGNORING = re.compile(r"Ignoring \S+: markers ")
_UNPACKING = "Installing collected packages"
_FAILED = "the trainer's packages could not be installed"

_SETTINGS = (
    *("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIREMENT", "PIP_CONSTRAINT"),
    *("PIP_DRY_RUN", "PIP_REQUIRE_VIRTUALENV", "PIP_NO_BINARY", "PIP_QUIET", "PYTHONPATH"),
)
"""Variables of the user's, or the host's, that would send the packages elsewhere. Those that say where they
come from (index, proxy, certificates) stay."""

CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|\[Errno 28\]|\[WinError 112\]|[Nn]ot enough space",
        "the disk is full: free some room, or choose another data directory (--data, or COPIER_DATA)",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
        "the certificate of the package index is not accepted: behind a proxy that has its own, name its "
        "file in the environment variable PIP_CERT",
    ),
    (
        r"ProxyError|407 Proxy|Cannot connect to proxy",
        "the proxy refuses: check the environment variables HTTPS_PROXY and NO_PROXY",
    ),
    (
        r"Failed to establish a new connection|NewConnectionError|NameResolutionError|name resolution"
        r"|getaddrinfo failed|Network is unreachable|TimeoutError|timed out"
        r"|Connection (?:reset|refused|broken)|\(from versions: none\)",
        "the package index cannot be reached: check the network and run it again. Without a network, name a "
        "folder that has the wheels in the environment variables PIP_FIND_LINKS and PIP_NO_INDEX=1",
    ),
    (
        r"No matching distribution found for",
        "there is no build of a package for this Python and system: name another Python (--python)",
    ),
    (
        r"Permission denied|PermissionError|\[WinError (?:5|32)\]",
        "a file cannot be written: allow writing in the data directory, or choose another one (--data); a "
        "virus scanner may hold files, then run it again",
    ),
    (r"no such option", "the pip of this Python is too old: it must be 22.2 or newer"),
)
"""Patterns in what pip says, and the cause with its remedy; the first that is found counts."""


def install_overlay(
    root: Path,
    interpreter: Interpreter,
    contents: Contents,
    *,
    behind: Sequence[Path] = (),
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    log_path: Path | None = None,
) -> Overlay:
    """Install the contents for that Python into its folder in ``root``, in place of what is there.

    Args:
        behind: folders of packages that it is used with.
        observer: gets the stages ``download``, ``unpack`` (packages, of how many) and ``check``.
        log_path: a file to which pip's errors are appended.

    Raises:
        InstallFailed: what stands in the way, with the remedy; what was there is as it was.
        Cancelled: ``cancel`` was set; likewise.
    """
    observer = guarded(observer)
    overlay = overlay_for(root, interpreter, contents)
    before = overlay.stamped()
    program = pip_program(interpreter)
    try:
        root.mkdir(parents=True, exist_ok=True)
        remove_unfinished(root)
        _check_room(root, contents)
        with _unfinished(root) as work:
            made = Overlay(work / "overlay")
            made.packages.mkdir(parents=True)
            _run_pip(program, contents, made.packages, work, observer, cancel, log_path)
            observer(ProgressEvent("check", message="importing each of them"))
            made.write_stamp(check_overlay(made, interpreter, contents, behind=behind, cancel=cancel))
            if overlay.stamped() == before:  # else another installation was quicker, and it may be in use
                _put_in_place(made, overlay)
    except OSError as error:
        cause = f"{error.strerror} ({error.filename or root}). {explained([str(error)])}".rstrip(". ")
        raise InstallFailed(f"{_FAILED}: {cause}") from error
    return overlay


def pip_program(interpreter: Interpreter) -> list[str]:
    """The command that is pip for that Python: its own, the wheel that comes with it, or ours.

    Raises:
        InstallFailed: there is none, as in an embeddable Python as it is downloaded.
    """
    if interpreter.pip == "pip":
        return [interpreter.path, "-m", "pip"]
    if interpreter.pip:
        return [interpreter.path, os.path.join(interpreter.pip, "pip")]  # a wheel is a zip file that runs
    ours = importlib.util.find_spec("pip")
    if ours is None or not ours.submodule_search_locations:
        raise InstallFailed(
            f"the Python {interpreter.path} has no pip: install it there (python -m ensurepip, or get-pip.py "
            "for an embeddable Python), or name another Python (--python)"
        )
    return [interpreter.path, next(iter(ours.submodule_search_locations))]


def explained(lines: Sequence[str]) -> str:
    """What a failure of pip means and what helps, by what it said; "" where that is not known."""
    text = "\n".join(lines)
    return next((remedy for pattern, remedy in CAUSES if re.search(pattern, text)), "")


def remove_folder(folder: Path) -> bool:
    """Delete it, and in one step make it count no more; False where it is in use or write-protected."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_FOLDER}")
    try:
        os.rename(folder, doomed)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def remove_unfinished(root: Path) -> None:
    """Delete what installations and removals that were killed have left; those at work are left alone."""
    if not root.is_dir():
        return
    remove_leftovers(root / _UNFINISHED)
    for folder in root.glob(f".*{_FOLDER}"):
        if not folder.with_name(folder.name.removesuffix(_FOLDER)).exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _unfinished(root: Path) -> Iterator[Path]:
    """A folder in ``root`` for the block; a locked file beside it shows that somebody is at work in it."""
    file, lock = create_temporary(root / _UNFINISHED)
    folder = lock.with_name(lock.name + _FOLDER)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        file.close()
        lock.unlink(missing_ok=True)


def _check_room(root: Path, contents: Contents) -> None:
    needed = contents.room + (ROOM_FOR_CUDA if contents.optional else 0)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise InstallFailed(
            f"the disk of {root} has {free >> 20} MB free, and the trainer's packages need {needed >> 20} MB "
            "while they are installed: free some room, or choose another data directory (--data, or "
            "COPIER_DATA)"
        )


def _run_pip(
    program: Sequence[str],
    contents: Contents,
    packages: Path,
    work: Path,
    observer: Observer,
    cancel: CancelToken | None,
    log_path: Path | None,
) -> None:
    requirements, scratch = work / "requirements.txt", work / "scratch"
    requirements.write_text("".join(f"{pin}\n" for pin in contents.pins), encoding="utf-8")
    scratch.mkdir()
    # --no-deps: the lists are complete, and torch must not come in. Wheels only: nothing is compiled, or run.
    command = [*program, "install", "--no-deps", "--only-binary", ":all:", "--target", str(packages)]
    command += ["--requirement", str(requirements), "--no-user", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--no-warn-conflicts", "--progress-bar", "off"]
    kept = {name: value for name, value in os.environ.items() if name not in _SETTINGS}
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    environment = {**kept, **places, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    if log_path is not None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
    child = Child(command, environment=environment, folder=work, log_path=log_path)
    said: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    progress = _Progress(len(contents.pins), scratch, observer)
    for line in lines_of(child, cancel, waiting=progress.wait):
        said.append(line)
        progress.read(line)
    if child.exit_code != 0:
        lines = [*said, *child.tail]
        errors = [line for line in child.tail if line.startswith("ERROR")] or lines
        cause = explained(lines) or f"pip ended with exit code {child.exit_code}"
        raise InstallFailed(f"{_FAILED}: {cause}{quoted(errors, PIP_LINES)}")
    progress.end()


class _Progress:
    """Turns what pip says, and what appears in its scratch folder, into events."""

    def __init__(self, packages: int, scratch: Path, observer: Observer) -> None:
        self._packages, self._scratch, self._observer = packages, scratch, observer
        self._collected = 0
        self._unpacking = False

    def read(self, line: str) -> None:
        """One line of pip's standard output."""
        if _IGNORING.match(line):
            self._packages -= 1
        elif _COLLECTING.match(line):
            self._collected += 1
            self._tell("download", self._collected)
        elif line.startswith(_UNPACKING):
            self._unpacking = True
            self._tell("unpack", 0)

    def wait(self) -> None:
        """Called now and then while pip says nothing, as it does for all of the unpacking."""
        if self._unpacking:
            # Where pip unpacks for --target (its scheme "home"), before it moves all of it at once.
            unpacked = self._scratch.glob("pip-target-*/lib/python/*.dist-info")
            self._tell("unpack", sum(1 for _ in unpacked))

    def end(self) -> None:
        """Pip has ended well."""
        self._tell("unpack", self._packages)

    def _tell(self, stage: str, done: int) -> None:
        self._observer(ProgressEvent(stage, step=min(done, self._packages), steps=self._packages))


def _put_in_place(made: Overlay, overlay: Overlay) -> None:
    """Rename the finished overlay, in place of a damaged or unwanted one."""
    if overlay.folder.exists() and not remove_folder(overlay.folder):
        raise InstallFailed(
            f"{overlay.folder} is in use or write-protected: end the training that uses it, and run this "
            "again"
        )
    os.rename(made.folder, overlay.folder)
