"""``copier trainer``: with wheels of a few lines in place of the real lists, and a throw-away Python."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from copier.errors import BadInput
from copier.training.interpreter import Interpreter, ask_interpreter
from copier.training.overlay import Contents, Pin, overlays

_spec = importlib.util.spec_from_file_location(
    "local_packages", Path(__file__).parents[1] / "training" / "local_packages.py"
)
assert _spec and _spec.loader
local = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(local)


TAGGER = Contents((Pin("gamma", "3.0"),), ("gamma",), for_training=False, beside=local.CONTENTS.pins)
"""Its one module needs one of the trainer's, which the Python itself has in another version."""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    interpreter: Interpreter = local.throw_away_python(tmp_path_factory.mktemp("python"))
    return interpreter


@pytest.fixture(autouse=True)
def surroundings(folder: Path, python: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny packages, their wheels, a folder with sd-scripts, and the throw-away Python."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(local.write_wheels(folder / "wheels")))
    monkeypatch.setattr("copier.training.environment.contents_for", lambda interpreter: local.CONTENTS)
    monkeypatch.setattr("copier.training.environment._with_cuda", lambda contents, interpreter: contents)
    local.write_wheel(folder / "wheels", "gamma", "3.0", "import alpha\nassert alpha.VERSION == '1.0'\n")
    monkeypatch.setattr("copier.training.tagger_packages.tagger_contents", lambda interpreter: TAGGER)
    monkeypatch.setattr(
        "copier.app.trainer.ask_interpreter", lambda path: replace(ask_interpreter(path), pip="")
    )
    own = folder / "sd-scripts"
    own.mkdir()
    (own / "train_network.py").touch()
    monkeypatch.setenv("COPIER_SD_SCRIPTS_DIR", str(own))
    monkeypatch.setenv("COPIER_PYTHON", python.path)


def test_status_before_and_after_says_what_is_there(copier: Any, folder: Path, python: Interpreter) -> None:
    before = copier("trainer", "status", "--json")
    assert (before.code, before.json["ready"], before.json["state"]) == (0, False, "absent")
    assert "copier trainer install" in before.json["problems"][0]
    done = copier("trainer", "install", "--json")
    assert done.code == 0 and done.json["installed"] is True
    after = copier("trainer", "status", "--json").json
    assert (after["ready"], after["state"], after["problems"]) == (True, "current", [])
    assert after["python"]["path"] == python.path and after["python"]["torch"] is None
    assert after["sd_scripts"] == {
        "folder": str(folder / "sd-scripts"), "own": True, "version": "unknown", "commit": None
    }  # fmt: skip
    (one,) = after["overlays"]
    assert one["packages"] == 2 and one["bytes"] > 0 and one["used"] and one["folder"] == after["folder"]
    assert Path(after["folder"]).parent == folder / "data" / "trainer"


def test_the_text_has_python_packages_and_scripts(copier: Any, folder: Path, python: Interpreter) -> None:
    copier("trainer", "install")
    out = copier("trainer", "status").out
    for words in (python.path, python.version, "current", "2 packages", "your own"):
        assert words in out
    assert str(folder / "sd-scripts") in out


def test_install_shows_progress_on_standard_error_and_does_nothing_twice(copier: Any) -> None:
    first = copier("trainer", "install")
    assert "download" in first.err and "unpack" in first.err and "check" in first.err
    second = copier("trainer", "install")
    assert "already current" in second.out and "download" not in second.err
    assert "download" in copier("trainer", "install", "--again").err


def test_the_taggers_packages_come_on_request_into_a_folder_of_their_own(copier: Any, folder: Path) -> None:
    copier("trainer", "install")
    plain = copier("trainer", "status", "--json").json
    assert plain["tagger"] == {
        "state": "absent", "folder": plain["tagger"]["folder"], "bytes": 0, "model": None
    }  # fmt: skip
    assert copier("trainer", "install", "--tagger", "--json").json["installed"] is True
    status = copier("trainer", "status", "--json").json
    assert (status["tagger"]["state"], status["problems"]) == ("current", [])
    assert Path(status["tagger"]["folder"]).parent == folder / "data" / "tagger" / "packages"
    assert [one["folder"] for one in status["overlays"]] == [plain["folder"]]
    assert copier("trainer", "install", "--tagger", "--json").json["installed"] is False
    assert len(copier("trainer", "remove", "--json").json["removed"]) == 2
    assert not list((folder / "data" / "tagger" / "packages").iterdir())


@pytest.mark.parametrize("how", ["stale", "damaged"])
def test_every_installation_repairs_the_taggers_packages(
    copier: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    copier("trainer", "install", "--tagger")
    first = Path(copier("trainer", "status", "--json").json["tagger"]["folder"])
    if how == "damaged":
        (first / "stamp.json").unlink()
    else:
        newer = replace(TAGGER, beside=(Pin("alpha", "1.1"),))
        monkeypatch.setattr("copier.training.tagger_packages.tagger_contents", lambda interpreter: newer)
    status = copier("trainer", "status", "--json").json
    assert status["tagger"]["state"] == how and "install --tagger" in status["problems"][0]
    assert copier("trainer", "install", "--json").json["installed"] is True
    (only,) = overlays(folder / "data" / "tagger" / "packages")
    assert (only.folder == first) is (how == "damaged")
    assert copier("trainer", "status", "--json").json["tagger"]["state"] == "current"


def test_remove_deletes_the_folder_and_says_how_much(copier: Any, folder: Path) -> None:
    assert "none" in copier("trainer", "remove").out
    copier("trainer", "install")
    done = copier("trainer", "remove", "--json")
    assert done.code == 0 and len(done.json["removed"]) == 1 and done.json["bytes"] > 0
    assert overlays(folder / "data" / "trainer") == []


def test_a_failure_has_exit_code_1_and_the_remedy(copier: Any, folder: Path) -> None:
    for wheel in (folder / "wheels").iterdir():
        wheel.unlink()
    done = copier("trainer", "install")
    assert done.code == 1 and done.out == "" and "PIP_FIND_LINKS" in done.err
    assert (folder / "data" / "logs" / "install.log").is_file()


def test_a_python_that_is_none_has_exit_code_2(copier: Any, folder: Path) -> None:
    for command in ("install", "status"):
        done = copier("trainer", command, "--python", folder / "nowhere")
        assert done.code == 2 and "COPIER_PYTHON" in done.err
    assert not (folder / "data" / "trainer").exists()


def test_status_tells_of_a_python_without_a_list_and_goes_on(
    copier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(interpreter: Interpreter) -> Contents:
        raise BadInput("no list for it")

    monkeypatch.setattr("copier.training.environment.contents_for", refuse)
    done = copier("trainer", "status", "--json")
    assert done.code == 0 and done.json["state"] is None and done.json["problems"] == ["no list for it"]
    assert copier("trainer", "install").code == 2


def test_a_submodule_that_could_not_be_fetched_is_said_and_the_packages_are_installed(
    copier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COPIER_SD_SCRIPTS_DIR")
    monkeypatch.setattr("copier.app.trainer.fetch_sd_scripts", lambda: "Copier: offline")
    monkeypatch.setattr("copier.app.trainer.find_sd_scripts", _missing)
    done = copier("trainer", "install")
    assert done.code == 0 and "Copier: offline" in done.err
    assert "sd-scripts  none" in done.out and "note: not there" in done.out


def _missing(own: Path | None) -> None:
    raise BadInput("not there")


def test_another_python_leaves_the_packages_of_the_first(
    copier: Any, folder: Path, python: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier("trainer", "install")
    other = replace(python, version="3.99.0")
    monkeypatch.setattr("copier.app.trainer.ask_interpreter", lambda path: other)
    status = copier("trainer", "status", "--json").json
    assert status["state"] == "absent"
    assert [one["used"] for one in status["overlays"]] == [False]
    assert "others" in copier("trainer", "status").out
