"""The host's install hook: runs at every start of the WebUI, with the host's Python.

It installs nothing into the host: what the extension needs in the host's process every host has already, and
the trainer's own packages go into a folder of their own, on first use. It only brings the submodule
``vendor/sd-scripts`` to the commit that this version of the extension names: A1111 leaves the folder of a new
submodule empty or stale when an extension is updated, because it fetches and resets, and no more.

Nothing here may hold up or fail the start of the WebUI. Where there is nothing to do it says nothing; the
host shows what goes to standard output once the hook has ended.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SUBMODULE = "vendor/sd-scripts"
SCRIPT = "train_network.py"
OWN_FOLDER = "COPIER_SD_SCRIPTS_DIR"
FETCH_SECONDS = 120.0
ASK_SECONDS = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Unable(Exception):
    """The submodule could not be brought to its pin; the message says why."""


def bring_to_pin(root: Path) -> str:
    """Fetch the submodule of the extension in ``root`` where it is missing or stale.

    Returns what was done, or "" where nothing was. A folder that is not git's submodule (a link, a clone of
    the user's, unpacked files) is left alone, and with ``COPIER_SD_SCRIPTS_DIR`` none is needed.

    Raises:
        Unable: it is missing or stale, and stays so.
        OSError: a folder cannot be read.
    """
    folder = root / SUBMODULE
    if os.environ.get(OWN_FOLDER) or _belongs_to_the_user(folder):
        return ""
    if not (root / ".git").exists():
        # Not asked of git: extensions lie inside the WebUI's own repository, which would answer instead.
        raise Unable("the extension is a copy without .git, so git cannot tell which version belongs here")
    pin, before = _pin(root), _head(folder)
    if before == pin and (folder / SCRIPT).is_file():
        return ""
    # An empty folder at the right commit, as an interrupted checkout leaves it, needs --force.
    force = () if (folder / SCRIPT).is_file() else ("--force",)
    # Shallow: a tenth of the whole history, and servers give single commits.
    _git(root, "submodule", "update", "--init", "--checkout", *force, "--depth", "1", "--", SUBMODULE)
    if not (folder / SCRIPT).is_file():
        raise Unable(f"git fetched it, but it has no {SCRIPT}")
    if before in ("", pin):
        return f"sd-scripts fetched: {pin[:12]}"
    return f"sd-scripts updated: {before[:12]} to {pin[:12]}"


def _belongs_to_the_user(folder: Path) -> bool:
    """Whether the folder holds something else than git's submodule, whose ``.git`` is a file."""
    if folder.is_symlink():
        return True
    return folder.is_dir() and any(folder.iterdir()) and not (folder / ".git").is_file()


def _pin(root: Path) -> str:
    """The commit that the extension's own commit names for the submodule."""
    found = _COMMIT.search(_git(root, "ls-tree", "HEAD", SUBMODULE, seconds=ASK_SECONDS))
    if not found:
        raise Unable(f"the extension's commit has no {SUBMODULE}")
    return found[0]


def _head(folder: Path) -> str:
    """The commit that is checked out, read without starting git; "" where there is none."""
    try:
        pointer = (folder / ".git").read_text(encoding="utf-8").strip()
        repository = folder / pointer.removeprefix("gitdir:").strip()
        head = (repository / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        # GitPython, with which hosts install extensions, checks out a branch.
        name = head.removeprefix("ref:").strip()
        if (repository / name).is_file():
            return (repository / name).read_text(encoding="utf-8").strip()
        packed = (repository / "packed-refs").read_text(encoding="utf-8")
        return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), "")
    except OSError:
        return ""


def _git(root: Path, *arguments: str, seconds: float = FETCH_SECONDS) -> str:
    """Standard output of a git command that cannot ask for anything; raises ``Unable``."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    environment = {**kept, "GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "never", "LC_ALL": "C"}
    # A stalled connection ends by itself.
    patience = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=20")
    command = ["git", *patience, "-C", str(root), *arguments]
    # Files instead of pipes: a helper of a git that was ended would keep a pipe open, and us waiting.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            code = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=seconds,
            ).returncode
        except FileNotFoundError:
            raise Unable("git is not installed, or not on the path") from None
        except subprocess.TimeoutExpired:
            raise Unable(f"git did not finish within {seconds:.0f} s") from None
        if code:
            errors.seek(0)
            raise Unable(f"git {arguments[0]} failed: {_reason(errors.read().decode('utf-8', 'replace'))}")
        output.seek(0)
        return output.read().decode("utf-8", "replace")


def _reason(said: str) -> str:
    """Of what git said the line that tells why it failed."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(("fatal:", "error:"))]
    return (reasons or lines or ["it gave no reason"])[0]


def main() -> None:
    """Bring the submodule to its pin, and say in one line what was done or what stands in the way."""
    try:
        done = bring_to_pin(ROOT)
    except Exception as error:
        # Whatever it is: the WebUI starts, and so does the tab.
        print(
            f"Copier: sd-scripts is missing or not the right version ({error}). To put it there: "
            f'git -C "{ROOT}" submodule update --init; or name a folder of your own that has it in '
            f"the environment variable {OWN_FOLDER}. Everything else works without it"
        )
        return
    if done:
        print(f"Copier: {done}")


if __name__ == "__main__":
    main()
