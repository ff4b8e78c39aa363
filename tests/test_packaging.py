"""What is promised about installing: pins that are pins, and a wheel that has everything."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TRAINER_FILES = sorted((ROOT / "copier" / "training" / "data").glob("*.txt"))
PIN_FILES = [*sorted((ROOT / "requirements").glob("*.txt")), *TRAINER_FILES]


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def pins(*names: str) -> dict[str, Requirement]:
    return {normal(one.name): one for name in names for one in requirements(ROOT / "requirements" / name)}


def requirements(path: Path) -> list[Requirement]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", PIN_FILES, ids=lambda path: path.name)
def test_requirement_files_pin_exactly_and_name_each_package_once(path: Path) -> None:
    names = [normal(one.name) for one in requirements(path)]
    assert names and len(names) == len(set(names))
    assert [str(one) for one in requirements(path) if not re.fullmatch(r"==[\w.]+", str(one.specifier))] == []


def test_every_declared_dependency_is_pinned_within_its_range() -> None:
    declared = [*project()["dependencies"], *project()["optional-dependencies"]["standalone"]]
    declared += project()["optional-dependencies"]["test"]
    pinned = pins("torch.txt", "standalone.txt", "test.txt")
    assert declared
    for requirement in map(Requirement, declared):
        version = next(iter(pinned[normal(requirement.name)].specifier)).version
        assert requirement.specifier.contains(version), f"{requirement} does not allow the pin {version}"


def test_the_hosts_oldest_packages_are_allowed() -> None:
    oldest = pins("host.txt")
    for requirement in map(Requirement, project()["dependencies"]):
        if requirement.name == "torch":  # A1111's; not pinned in host.txt, tests/host310/run.sh says why
            assert requirement.specifier.contains("2.1.2")
        else:
            version = next(iter(oldest[normal(requirement.name)].specifier)).version
            assert requirement.specifier.contains(version)


def test_the_trainers_lists_have_the_versions_of_this_project_but_for_numpy() -> None:
    """What the builtin trainer is tested with is what it gets in a host, whose torch wants numpy 1."""
    ours = pins("standalone.txt", "vocabulary.txt")
    lists = [path for path in TRAINER_FILES if path.name.startswith("trainer-")]
    assert [path.stem.removeprefix("trainer-") for path in lists] == ["3.10", "3.11", "3.12"]
    for path in lists:
        theirs = {normal(one.name): one for one in requirements(path)}
        same = [name for name in theirs if name in ours and name != "numpy"]
        assert len(same) > 20
        assert [name for name in same if theirs[name].specifier != ours[name].specifier] == []
        assert theirs["numpy"].specifier.contains("1.26.4")


def test_the_trainers_lists_leave_torch_to_the_host() -> None:
    for path in TRAINER_FILES:
        names = {normal(one.name) for one in requirements(path)}
        assert not names & {"torch", "torchvision", "triton"}
        assert [name for name in names if name.startswith(("nvidia", "cuda"))] == []


def test_the_trainers_lists_are_complete_but_for_torch() -> None:
    """By the metadata of those packages that are installed here."""
    for path in TRAINER_FILES:
        listed = {normal(one.name) for one in requirements(path)}
        installed = {normal(one.metadata["Name"]): one for one in metadata.distributions()}
        looked_at = sorted((listed - {"open-clip-torch"}) & installed.keys())
        needed = {
            normal(one.name)
            for name in looked_at
            for one in map(Requirement, installed[name].requires or ())
            if not one.marker or one.marker.evaluate({"extra": ""})
        }
        assert needed - listed <= {"torch"}
        assert len(looked_at) > 15 or not path.name.startswith("trainer")


def test_nothing_names_a_place_to_install_from() -> None:
    for path in [*PIN_FILES, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://|file://|--(extra-)?index-url|--find-links", text), path.name


def test_the_wheel_holds_every_file_of_the_package_and_the_command(tmp_path: Path) -> None:
    """Built from a copy, because setuptools writes beside the sources."""
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "copier", source / "copier", ignore=ignore)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    if (ROOT / "README.md").exists():
        shutil.copy(ROOT / "README.md", source / "README.md")
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(source)], check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "copier = copier.__main__:main" in archive.read(entry).decode()
    files = {path.relative_to(source).as_posix() for path in (source / "copier").rglob("*") if path.is_file()}
    assert packed == files
