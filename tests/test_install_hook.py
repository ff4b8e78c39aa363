"""The host's install hook, with local repositories in place of the one that the submodule names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("vendor") / "sd-scripts"
GIT = shutil.which("git") or ""

pytestmark = pytest.mark.skipif(not GIT, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run([GIT, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Extension:
    """An installed extension with the hook, whose remotes are ``upstream`` and ``scripts``."""

    folder: Path
    upstream: Path
    scripts: Path

    def start(self, **environment: str) -> str:
        """What the hook says at a start of the host, which it must not fail."""
        done = subprocess.run(
            [sys.executable, str(self.folder / "install.py")],
            capture_output=True, text=True, timeout=60, cwd=self.folder.parent,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def release(self, content: str) -> str:
        """A new version of the submodule, which the extension's next version names; its commit."""
        (self.scripts / "train_network.py").write_text(content, encoding="utf-8")
        git(self.scripts, "commit", "-qam", content)
        pin = git(self.scripts, "rev-parse", "HEAD")
        git(self.upstream, "update-index", "--cacheinfo", f"160000,{pin},{FOLDER.as_posix()}")
        git(self.upstream, "commit", "-qm", content)
        return pin

    @property
    def script(self) -> Path:
        return self.folder / FOLDER / "train_network.py"


@pytest.fixture(autouse=True)
def git_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own settings; submodules may come from a folder, which git forbids otherwise."""
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[user]\n name = t\n email = t@example.org\n[init]\n defaultBranch = main\n"
        "[protocol \"file\"]\n allow = always\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("COPIER_SD_SCRIPTS_DIR", raising=False)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def extension(tmp_path: Path) -> Extension:
    scripts, upstream, folder = tmp_path / "scripts", tmp_path / "upstream", tmp_path / "web ui" / "copiér"
    for one in (scripts, upstream):
        one.mkdir()
        git(one, "init", "-q")
    (scripts / "train_network.py").write_text("v1", encoding="utf-8")
    git(scripts, "add", ".")
    git(scripts, "commit", "-qm", "v1")
    shutil.copy(ROOT / "install.py", upstream)
    git(upstream, "add", "install.py")
    git(upstream, "submodule", "--quiet", "add", "-b", "main", scripts.as_uri(), FOLDER.as_posix())
    git(upstream, "commit", "-qm", "v1")
    # A later version is there, which is not the one that the extension wants.
    (scripts / "train_network.py").write_text("later", encoding="utf-8")
    git(scripts, "commit", "-qam", "later")
    folder.parent.mkdir()
    git(tmp_path, "clone", "-q", upstream.as_uri(), str(folder))
    return Extension(folder, upstream, scripts)


def update(extension: Extension) -> None:
    """What a host does to update an extension: it leaves submodules as they are."""
    git(extension.folder, "fetch", "-q")
    git(extension.folder, "reset", "-q", "--hard", "origin/main")


def test_a_missing_submodule_is_fetched_at_its_pin_and_said_so_in_one_line(extension: Extension) -> None:
    assert not extension.script.exists()
    said = extension.start()
    assert extension.script.read_text(encoding="utf-8") == "v1"
    assert said.startswith("Copier: sd-scripts fetched") and said.count("\n") == 1
    assert git(extension.folder, "status", "--porcelain") == ""


def test_the_next_start_does_nothing_and_says_nothing(extension: Extension) -> None:
    extension.start()
    before = extension.script.stat().st_mtime_ns
    assert extension.start() == ""
    assert extension.script.stat().st_mtime_ns == before


def test_after_an_update_of_the_extension_the_stale_submodule_follows(extension: Extension) -> None:
    extension.start()
    pin = extension.release("v2")
    update(extension)
    assert extension.script.read_text(encoding="utf-8") == "v1"
    assert pin[:12] in extension.start()
    assert extension.script.read_text(encoding="utf-8") == "v2"
    assert extension.start() == ""


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
def test_a_branch_checked_out_by_the_host_at_the_pin_counts_as_current(
    extension: Extension, packed: bool
) -> None:
    extension.start()
    git(extension.folder / FOLDER, "checkout", "-qB", "main")
    if packed:
        git(extension.folder / FOLDER, "pack-refs", "--all")
    assert extension.start() == ""


def test_a_folder_that_the_host_left_without_files_is_filled(extension: Extension) -> None:
    extension.start()
    extension.script.unlink()
    assert "fetched" in extension.start()
    assert extension.script.read_text(encoding="utf-8") == "v1"


def test_offline_the_host_starts_and_the_way_out_is_named(extension: Extension) -> None:
    shutil.rmtree(extension.scripts)
    said = extension.start()
    assert said.count("\n") == 1
    for words in ("git submodule failed", "submodule update --init", "COPIER_SD_SCRIPTS_DIR"):
        assert words in said


def test_offline_with_a_current_submodule_nothing_is_said(extension: Extension) -> None:
    extension.start()
    shutil.rmtree(extension.scripts)
    assert extension.start() == ""


def test_without_git_the_host_starts_and_is_told(extension: Extension, tmp_path: Path) -> None:
    said = extension.start(PATH=str(tmp_path / "nowhere"))
    assert "git is not installed" in said and said.count("\n") == 1


def test_a_copy_without_a_repository_never_asks_the_one_around_it(extension: Extension) -> None:
    git(extension.folder.parent, "init", "-q")
    shutil.rmtree(extension.folder / ".git")
    said = extension.start()
    assert "copy without .git" in said and "COPIER_SD_SCRIPTS_DIR" in said
    assert not (extension.folder.parent / ".gitmodules").exists()


@pytest.mark.parametrize("kind", ["clone", "files", "link"])
def test_a_folder_of_the_users_own_is_left_alone(extension: Extension, kind: str, tmp_path: Path) -> None:
    folder, own = extension.folder / FOLDER, tmp_path / "own"
    if folder.exists():
        folder.rmdir()
    folder.parent.mkdir(exist_ok=True)
    own.mkdir()
    if kind == "link":
        folder.symlink_to(own, target_is_directory=True)
    elif kind == "clone":
        git(tmp_path, "clone", "-q", extension.scripts.as_uri(), str(folder))
    else:
        folder.mkdir()
    (folder / "train_network.py").write_text("mine", encoding="utf-8")
    assert extension.start() == ""
    assert extension.script.read_text(encoding="utf-8") == "mine"


def test_with_a_folder_named_by_the_setting_nothing_is_fetched(extension: Extension, tmp_path: Path) -> None:
    assert extension.start(COPIER_SD_SCRIPTS_DIR=str(tmp_path)) == ""
    assert not extension.script.exists()


def test_a_change_of_the_users_in_the_submodule_is_not_thrown_away(extension: Extension) -> None:
    extension.start()
    extension.script.write_text("mine", encoding="utf-8")
    extension.release("v2")
    update(extension)
    said = extension.start()
    assert extension.script.read_text(encoding="utf-8") == "mine"
    assert "sd-scripts is missing or not the right version" in said


def test_a_start_with_nothing_to_do_takes_well_under_a_fifth_of_a_second(extension: Extension) -> None:
    extension.start()

    def seconds(*command: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return time.perf_counter() - began

    bare = min(seconds("-c", "") for _ in range(5))
    hook = min(seconds(str(extension.folder / "install.py")) for _ in range(5))
    assert hook - bare < 0.1


def test_the_repository_pins_the_release_from_a_branch_that_hosts_can_fill() -> None:
    """Without ``branch`` hosts assume ``master``, which is not there, and leave the folder empty."""
    settings = git(ROOT, "config", "-f", ".gitmodules", "--list").splitlines()
    assert "submodule.vendor/sd-scripts.branch=main" in settings
    assert "submodule.vendor/sd-scripts.url=https://github.com/kohya-ss/sd-scripts.git" in settings
