"""Where sd-scripts is, and which version: the extension's submodule, or a folder of the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput, NotInstalled

RELEASE = "v0.10.1"
COMMIT = "ae72efb92babe89ff8e70f057e42db68440e8d61"
"""What the submodule is pinned to, and what this program was tried with."""
OWN_FOLDER = "COPIER_SD_SCRIPTS_DIR"
SCRIPT = "train_network.py"
_PROJECT = Path(__file__).resolve().parents[2]
_SUBMODULE = Path("vendor") / "sd-scripts"
_GIT_SECONDS = 10.0
_FETCH_SECONDS = 300.0
_ADDRESS = "https://github.com/kohya-ss/sd-scripts.git"


@dataclass(frozen=True)
class ScriptsFolder:
    """A folder with sd-scripts.

    Attributes:
        own: whether the user named it, so that its version is the user's business.
        commit: what is checked out; "" where git cannot tell, as for files from an archive.
    """

    folder: Path
    own: bool
    commit: str

    @property
    def version(self) -> str:
        """The release, the commit's first digits, or ``unknown``."""
        return RELEASE if self.commit == COMMIT else self.commit[:12] or "unknown"


def find_sd_scripts(own: Path | None = None, *, project: Path = _PROJECT) -> ScriptsFolder:
    """The folder that the user named (``own``), else the submodule in ``project``.

    Raises:
        BadInput: the user's folder has no sd-scripts.
        NotInstalled: nor has the submodule's; the message says how to get it.
    """
    if own is not None:
        if not (own / SCRIPT).is_file():
            raise BadInput(
                f"the folder {own}, which {OWN_FOLDER} names, has no {SCRIPT}: name the folder of sd-scripts "
                "itself, or remove the variable"
            )
        return ScriptsFolder(own, own=True, commit=_commit(own))
    folder = project / _SUBMODULE
    if not (folder / SCRIPT).is_file():
        raise NotInstalled(
            f"sd-scripts is not in {folder}: fetch it with 'copier trainer install' (it needs git and a "
            f"network), or by hand: git clone --branch {RELEASE} {_ADDRESS} FOLDER, and name that folder in "
            f"the environment variable {OWN_FOLDER}"
        )
    return ScriptsFolder(folder, own=False, commit=_commit(folder))


def fetch_sd_scripts(project: Path = _PROJECT) -> str:
    """Bring the submodule to its pin, as the WebUI does at every start; what the hook said, or ""."""
    hook = project / "install.py"
    # A program that was installed as a wheel has no submodule.
    if not (hook.is_file() and (project / ".gitmodules").is_file()):
        return ""
    try:
        done = subprocess.run(
            [sys.executable, str(hook)],
            capture_output=True,
            timeout=_FETCH_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"sd-scripts could not be fetched: {error}"
    return done.stdout.decode("utf-8", "replace").strip()


def _commit(folder: Path) -> str:
    """The commit of the repository whose root is the folder; "" where there is none, or no git."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"],
            env=kept,
            capture_output=True,
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        top, commit = done.stdout.decode("utf-8", "replace").splitlines()
        # Unpacked files inside another repository, such as the extension's own, have none of their own.
        return commit if os.path.samefile(top, folder) else ""
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
