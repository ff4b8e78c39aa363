"""Where sd-scripts is found, and how its version is told."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from copier.errors import BadInput, NotInstalled
from copier.training.scripts_folder import (
    COMMIT,
    RELEASE,
    ScriptsFolder,
    fetch_sd_scripts,
    find_sd_scripts,
)

ROOT = Path(__file__).parents[2]
GIT = shutil.which("git") or ""

needs_git = pytest.mark.skipif(not GIT, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    command = [GIT, "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A project's folder for the submodule, with a script in it."""
    folder = tmp_path / "vendor" / "sd-scripts"
    folder.mkdir(parents=True)
    (folder / "train_network.py").touch()
    return folder


def test_the_submodule_is_found_in_the_project(scripts: Path, tmp_path: Path) -> None:
    assert find_sd_scripts(project=tmp_path) == ScriptsFolder(scripts, own=False, commit="")


def test_a_folder_of_the_users_own_goes_first(scripts: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(scripts, own)
    found = find_sd_scripts(own, project=tmp_path)
    assert (found.folder, found.own, found.version) == (own, True, "unknown")


def test_an_empty_submodule_is_missing_and_both_ways_out_are_named(scripts: Path, tmp_path: Path) -> None:
    (scripts / "train_network.py").unlink()
    with pytest.raises(NotInstalled) as failure:
        find_sd_scripts(project=tmp_path)
    for words in ("copier trainer install", f"--branch {RELEASE}", "COPIER_SD_SCRIPTS_DIR"):
        assert words in str(failure.value)


def test_a_folder_that_is_not_sd_scripts_is_refused(scripts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"COPIER_SD_SCRIPTS_DIR.*train_network\.py"):
        find_sd_scripts(scripts.parent, project=tmp_path)


@needs_git
def test_the_version_is_the_commit_of_the_folders_own_repository(scripts: Path, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "around it")
    assert find_sd_scripts(project=tmp_path).commit == ""
    git(scripts, "init", "-q")
    git(scripts, "add", ".")
    git(scripts, "commit", "-qm", "its own")
    found = find_sd_scripts(project=tmp_path)
    assert found.commit == git(scripts, "rev-parse", "HEAD")
    assert found.version == found.commit[:12]


def test_the_pinned_commit_is_shown_as_the_release(tmp_path: Path) -> None:
    assert ScriptsFolder(tmp_path, own=False, commit=COMMIT).version == RELEASE == "v0.10.1"


@needs_git
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a copy without a repository")
def test_the_program_names_the_commit_that_the_repository_pins() -> None:
    assert git(ROOT, "ls-files", "--stage", "vendor/sd-scripts").split()[:2] == ["160000", COMMIT]


def test_a_program_without_submodules_fetches_nothing(tmp_path: Path) -> None:
    assert fetch_sd_scripts(tmp_path) == ""
    (tmp_path / "install.py").write_text("print('somebody else\\'s')")
    assert fetch_sd_scripts(tmp_path) == ""
    (tmp_path / ".gitmodules").touch()
    assert fetch_sd_scripts(tmp_path) == "somebody else's"
