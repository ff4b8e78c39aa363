"""Installing an overlay with the real pip, from local wheels, for a throw-away Python; what goes wrong."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from copier.errors import Cancelled, InstallFailed
from copier.progress import CancelToken, ProgressEvent
from copier.temporary import create_temporary
from copier.training import overlay_install
from copier.training.interpreter import Interpreter, ask_interpreter
from copier.training.overlay import Pin, State, overlay_for, overlays, read_pins, state_of
from copier.training.overlay_install import (
    CAUSES,
    explained,
    install_overlay,
    pip_program,
    remove_folder,
    remove_unfinished,
)

ROOT = Path(__file__).parents[2]


def _local() -> ModuleType:
    path = Path(__file__).with_name("local_packages.py")
    spec = importlib.util.spec_from_file_location("local_packages", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


local = _local()
CONTENTS = local.CONTENTS


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    interpreter: Interpreter = local.throw_away_python(tmp_path_factory.mktemp("python") / "v env")
    return interpreter


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place from where pip takes anything."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder: Path = local.write_wheels(tmp_path / "wheels")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dàta dir" / "trainer"


def everything(folder: Path) -> dict[str, bytes]:
    """All files below the folder but Python's caches, with their content."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def value_in(interpreter: Interpreter, packages: Path, code: str) -> str:
    """What an expression gives in that Python with the packages first on its path."""
    code = f"import sys; sys.path.insert(0, {str(packages)!r}); import alpha; print({code})"
    command = [interpreter.path, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_packages_are_installed_checked_and_stamped(python: Interpreter, root: Path) -> None:
    assert state_of(root, python, CONTENTS) is State.ABSENT
    overlay = install_overlay(root, python, CONTENTS)
    assert state_of(root, python, CONTENTS) is State.CURRENT
    assert value_in(python, overlay.packages, "alpha.VERSION") == "1.0"
    assert value_in(python, root, "alpha.VERSION") == "0.1"
    stamp = overlay.stamp()
    assert stamp is not None
    assert (stamp.digest, stamp.python, stamp.platform) == (CONTENTS.digest, python.version, python.platform)
    assert overlay.folder.name.startswith(f"cp{python.minor.replace('.', '')}-{python.platform}-")
    assert [path.name for path in root.iterdir()] == [overlay.folder.name]


def test_the_environment_of_the_python_is_not_touched(python: Interpreter, root: Path) -> None:
    environment = Path(python.path).parents[1]
    before = everything(environment), local.freeze(python)
    install_overlay(root, python, CONTENTS)
    assert (everything(environment), local.freeze(python)) == before
    assert before[1] == "alpha==0.1\n"


def test_what_the_packages_depend_on_is_not_pulled_in(
    python: Interpreter, root: Path, wheels: Path
) -> None:
    """Both wheels require torch, and one is to be had."""
    local.write_wheel(wheels, "torch", "9.9")
    overlay = install_overlay(root, python, CONTENTS)
    assert not (overlay.packages / "torch.py").exists()


def test_progress_counts_the_packages(python: Interpreter, root: Path) -> None:
    events: list[ProgressEvent] = []
    install_overlay(root, python, CONTENTS, observer=events.append)
    assert [(one.step, one.steps) for one in events if one.stage == "download"] == [(1, 2), (2, 2)]
    assert {one.steps for one in events if one.stage == "unpack"} == {2}
    assert events[-1].stage == "check"


def test_an_observer_that_fails_stops_nothing(python: Interpreter, root: Path) -> None:
    def broken(event: ProgressEvent) -> None:
        raise RuntimeError("gone")

    install_overlay(root, python, CONTENTS, observer=broken)
    assert state_of(root, python, CONTENTS) is State.CURRENT


def test_a_package_for_another_platform_is_left_out_and_not_missed(python: Interpreter, root: Path) -> None:
    other = Pin("gamma", "3.0", 'platform_system == "Elsewhere"')
    contents = replace(CONTENTS, pins=(*CONTENTS.pins, other))
    events: list[ProgressEvent] = []
    install_overlay(root, python, contents, observer=events.append)
    assert state_of(root, python, contents) is State.CURRENT
    assert [(one.step, one.steps) for one in events if one.stage == "download"][-1] == (2, 2)


def test_settings_that_would_send_the_packages_elsewhere_do_not_count(
    python: Interpreter, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_PREFIX", str(elsewhere))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    install_overlay(root, python, CONTENTS)
    assert state_of(root, python, CONTENTS) is State.CURRENT
    assert not elsewhere.exists()


def test_another_list_is_another_overlay_and_makes_the_old_one_stale(python: Interpreter, root: Path) -> None:
    overlay = install_overlay(root, python, CONTENTS)
    changed = replace(CONTENTS, pins=(Pin("alpha", "1.0"),), modules=("alpha",))
    assert changed.digest != CONTENTS.digest
    assert state_of(root, python, changed) is State.STALE
    assert install_overlay(root, python, changed) != overlay
    assert state_of(root, python, changed) is State.CURRENT


def test_an_overlay_of_another_python_does_not_count(python: Interpreter, root: Path) -> None:
    install_overlay(root, python, CONTENTS)
    other = replace(python, version="3.99.1")
    assert state_of(root, other, CONTENTS) is State.ABSENT
    assert state_of(root, replace(python, version=f"{python.minor}.99"), CONTENTS) is State.CURRENT


@pytest.mark.parametrize("gone", ["packages/alpha-1.0.dist-info/RECORD", "stamp.json"])
def test_a_damaged_overlay_is_seen_and_repaired(python: Interpreter, root: Path, gone: str) -> None:
    overlay = install_overlay(root, python, CONTENTS)
    (overlay.folder / gone).unlink()
    assert state_of(root, python, CONTENTS) is State.DAMAGED
    install_overlay(root, python, CONTENTS)
    assert state_of(root, python, CONTENTS) is State.CURRENT
    assert [path.name for path in root.iterdir()] == [overlay.folder.name]


@pytest.mark.parametrize("content", ["", "[]", '{"digest": "1"}', "\udcff"])
def test_a_stamp_that_is_none_is_none(python: Interpreter, root: Path, content: str) -> None:
    overlay = overlay_for(root, python, CONTENTS)
    overlay.folder.mkdir(parents=True)
    (overlay.folder / "stamp.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert overlay.stamp() is None


KILLED_IN_PIP = "package('alpha', '1.0'); os.kill(os.getppid(), signal.SIGKILL)"
KILLED_IN_CHECK = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n"
INSTALL = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from local_packages import CONTENTS
from dataclasses import replace
from copier.training import overlay_install
from copier.training.interpreter import ask_interpreter
interpreter = ask_interpreter(sys.argv[2])
interpreter = replace(interpreter, pip=sys.argv[4])
if sys.argv[5]:
    overlay_install.os.rename = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
overlay_install.install_overlay(Path(sys.argv[3]), interpreter, CONTENTS)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("where", ["pip", "check", "rename"])
def test_a_killed_installation_leaves_nothing_that_counts(
    where: str, python: Interpreter, root: Path, tmp_path: Path, wheels: Path
) -> None:
    pip = local.write_pip(tmp_path / "pip", KILLED_IN_PIP) if where == "pip" else ""
    if where == "check":
        local.write_wheel(wheels, "alpha", "1.0", KILLED_IN_CHECK)
    arguments = [str(Path(__file__).parent), python.path, str(root), pip, "x" * (where == "rename")]
    done = subprocess.run([sys.executable, "-c", INSTALL, *arguments], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert state_of(root, python, CONTENTS) is State.ABSENT
    assert list(root.glob(".install.*.folder")), "it was at work"
    local.write_wheels(wheels)
    overlay = install_overlay(root, python, CONTENTS)
    assert state_of(root, python, CONTENTS) is State.CURRENT
    assert [path.name for path in root.iterdir()] == [overlay.folder.name]


def test_cancelling_ends_pip_and_leaves_nothing(python: Interpreter, root: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\nprint('Collecting alpha', flush=True)\n"
    pip = local.write_pip(tmp_path / "pip", code + "time.sleep(60)")
    token = CancelToken()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        install_overlay(
            root, replace(python, pip=pip), CONTENTS, observer=lambda event: token.cancel(), cancel=token
        )
    assert time.monotonic() - began < 10
    assert not list(root.iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_an_installation_at_work_is_left_alone(root: Path) -> None:
    root.mkdir(parents=True)
    file, lock = create_temporary(root / "install")
    at_work = lock.with_name(lock.name + ".folder")
    dead = root / ".install.00000000.tmp.folder"
    for folder in (at_work, dead):
        folder.mkdir()
    remove_unfinished(root)
    assert at_work.exists() and not dead.exists()
    file.close()
    remove_unfinished(root)
    assert not at_work.exists()


def test_an_installation_that_another_one_overtook_leaves_the_other_in_place(
    python: Interpreter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training may use it already."""
    check = overlay_install.check_overlay

    def overtaken(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(overlay_install, "check_overlay", check)
        first = install_overlay(root, python, CONTENTS)
        (first.folder / "mark").touch()
        return check(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(overlay_install, "check_overlay", overtaken)
    overlay = install_overlay(root, python, CONTENTS)
    assert (overlay.folder / "mark").exists()
    assert [path.name for path in root.iterdir()] == [overlay.folder.name]


def test_a_second_torch_is_refused(python: Interpreter, root: Path, tmp_path: Path) -> None:
    code = "package('alpha', '1.0'); package('be_ta', '2.0'); package('torch', '9.9')"
    with pytest.raises(InstallFailed, match="torch, which no list names"):
        install_overlay(root, replace(python, pip=local.write_pip(tmp_path / "pip", code)), CONTENTS)
    assert not list(root.iterdir())


def test_a_package_that_pip_left_out_is_named(python: Interpreter, root: Path, tmp_path: Path) -> None:
    pip = local.write_pip(tmp_path / "pip", "package('alpha', '1.0')")
    with pytest.raises(InstallFailed, match="lacks be-ta"):
        install_overlay(root, replace(python, pip=pip), CONTENTS)


def test_a_module_that_cannot_be_imported_is_named_with_the_reason(
    python: Interpreter, root: Path, wheels: Path
) -> None:
    local.write_wheel(wheels, "alpha", "1.0", "import no_such_module\n")
    with pytest.raises(InstallFailed, match=r"alpha .ModuleNotFoundError: No module named 'no_such_module'"):
        install_overlay(root, python, CONTENTS)
    assert not list(root.iterdir())


def test_a_module_that_ends_python_is_a_failure_with_its_last_words(
    python: Interpreter, root: Path, wheels: Path
) -> None:
    code = "import os, sys\nprint('no such instruction', file=sys.stderr, flush=True)\nos._exit(7)\n"
    local.write_wheel(wheels, "alpha", "1.0", code)
    with pytest.raises(InstallFailed, match="exit code 7\n    no such instruction"):
        install_overlay(root, python, CONTENTS)


def test_a_module_from_elsewhere_does_not_pass_for_the_overlays(python: Interpreter, root: Path) -> None:
    with pytest.raises(InstallFailed, match=r"json .found in .* instead"):
        install_overlay(root, python, replace(CONTENTS, modules=("json",)))


def test_a_module_that_may_fail_is_only_noted(python: Interpreter, root: Path, wheels: Path) -> None:
    local.write_wheel(wheels, "be-ta", "2.0", "raise OSError('no CUDA library')\n")
    contents = replace(CONTENTS, modules=("alpha",), optional=("be_ta",))
    stamp = install_overlay(root, replace(python, cuda="12.1"), contents).stamp()
    assert stamp is not None and stamp.unusable == ("be_ta (OSError: no CUDA library)",)


def test_a_nearly_full_disk_is_said_before_anything_is_downloaded(
    python: Interpreter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = CONTENTS.room - 1
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(overlay_install.shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(overlay_install, "_run_pip", lambda *arguments: pytest.fail("pip was started"))
    with pytest.raises(InstallFailed, match=r"599 MB free.* need 600 MB.*--data"):
        install_overlay(root, python, CONTENTS)


def test_a_folder_that_cannot_be_made_is_named(python: Interpreter, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InstallFailed, match="file"):
        install_overlay(tmp_path / "file" / "trainer", python, CONTENTS)


def test_a_wheel_that_is_not_to_be_had_fails_with_what_pip_said(
    python: Interpreter, root: Path, wheels: Path
) -> None:
    for wheel in wheels.glob("be_ta*"):
        wheel.unlink()
    with pytest.raises(InstallFailed) as failure:
        install_overlay(root, python, CONTENTS)
    assert "PIP_FIND_LINKS" in str(failure.value) and "be-ta==2.0" in str(failure.value)
    assert not list(root.iterdir())


_BROKEN = (
    "WARNING: Retrying (Retry(total=1, connect=None, read=None, redirect=None, status=None)) after "
    "connection broken by "
)
_NOT_FOUND = "ERROR: Could not find a version that satisfies the requirement "
SAID = {
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "disk is full",
    f"{_BROKEN}'SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify "
    "failed: self-signed certificate in certificate chain (_ssl.c:1006)'))': /simple/einops/": "PIP_CERT",
    f"{_BROKEN}'ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407 Proxy "
    "Authentication Required'))': /simple/einops/": "HTTPS_PROXY",
    f"{_BROKEN}'NewConnectionError('<pip._vendor.urllib3.connection.HTTPConnection object at 0x7fec0>: "
    "Failed to establish a new connection: [Errno 111] Connection refused')': /simple/einops/": "network",
    f"{_NOT_FOUND}einops==0.7.0 (from versions: none)": "index cannot be reached",
    f"{_NOT_FOUND}numpy==1.26.4 (from versions: 2.3.0, 2.3.1)\n"
    "ERROR: No matching distribution found for numpy==1.26.4": "another Python",
    "ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\\\c'": "virus",
    "no such option: --no-user": "too old",
}
"""What pip 23 really says, and a word of what it is explained by."""


@pytest.mark.parametrize(("said", "word"), SAID.items(), ids=SAID.values())
def test_what_pip_says_becomes_a_cause_and_a_remedy(said: str, word: str) -> None:
    assert word in explained(["Collecting einops==0.7.0", *said.splitlines()])


def test_every_cause_has_an_example_and_nothing_is_made_up() -> None:
    first = {explained(said.splitlines()) for said in SAID}
    assert first == {remedy for _, remedy in CAUSES}
    assert explained(["Collecting einops==0.7.0", "ERROR: something new"]) == ""
    assert all(re.compile(pattern) for pattern, _ in CAUSES)


def test_a_python_without_pip_uses_the_wheel_that_came_with_it_or_ours(
    python: Interpreter, root: Path
) -> None:
    program = pip_program(python)
    assert program[0] == python.path and Path(program[1], "__main__.py").is_file()
    bundled = ask_interpreter(python.path)
    assert bundled.pip.endswith(".whl"), "the venv has no pip of its own"
    install_overlay(root, bundled, CONTENTS)
    assert state_of(root, python, CONTENTS) is State.CURRENT


def test_without_any_pip_the_way_out_is_named(python: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_install.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InstallFailed, match=r"get-pip\.py"):
        pip_program(replace(python, pip=""))


def test_removing_a_folder_twice_is_harmless(python: Interpreter, root: Path) -> None:
    overlay = install_overlay(root, python, CONTENTS)
    assert remove_folder(overlay.folder)
    assert remove_folder(overlay.folder)
    assert overlays(root) == [] and not list(root.iterdir())


def test_pins_are_read_with_their_markers_and_nothing_else_is() -> None:
    text = '# a\n\nA_b==1.0\nc==2.0+cu121 ; platform_system == "Windows"\n'
    assert read_pins(text) == (Pin("A_b", "1.0"), Pin("c", "2.0+cu121", 'platform_system == "Windows"'))
    assert read_pins("\n".join(map(str, read_pins(text)))) == read_pins(text)
    for bad in ("a>=1", "-r other.txt", "a", "git+https://example.org/a"):
        with pytest.raises(ValueError, match="no pin"):
            read_pins(bad)
