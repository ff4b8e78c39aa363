"""What a host runs when it loads the extension, and again at "Reload UI": the file in ``scripts/``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

HOST = """
import json, runpy, sys, types
calls = []
modules = types.ModuleType("modules"); modules.__path__ = []
callbacks = types.ModuleType("modules.script_callbacks")
looked, files = [], []
callbacks.callback_map = {}
for kind in ("ui_settings", "before_ui", "after_component", "app_started", "ui_tabs"):
    def asked(callback, kind=kind):
        looked.append(kind)  # through all modules, for the file that asks
        calls.append((kind, callback))
    setattr(callbacks, "on_" + kind, asked)
    callbacks.callback_map["callbacks_" + kind] = calls
def add_callback(callbacks, fun, *, name=None, category="unknown", filename=None):
    files.append(filename)
    callbacks.append((category, fun))
def add_callback_of_an_early_host(callbacks, fun):
    raise AssertionError("it finds out by itself which file asks: only the host's own functions call it")
callbacks.add_callback = add_callback_of_an_early_host if EARLY else add_callback
scripts = types.ModuleType("modules.scripts")
scripts.Script, scripts.AlwaysVisible = type("Script", (), {}), object()
gradio = types.ModuleType("gradio")
class Blocks:
    def __init__(self, **options): self.texts = []
    def __enter__(self): gradio.now = self; return self
    def __exit__(self, *error): pass
gradio.Blocks, gradio.HTML = Blocks, lambda text: gradio.now.texts.append(text)
for name, module in (("script_callbacks", callbacks), ("scripts", scripts)):
    setattr(modules, name, module)
    sys.modules["modules." + name] = module
sys.modules["modules"], sys.modules["gradio"] = modules, gradio
script, *folders = sys.argv[1:]
sys.path[:0] = folders
def load():
    for one in (calls, looked, files):
        one.clear()
    made = runpy.run_path(script)
    types = {name: one for name, one in made.items() if isinstance(one, type)}
    classes = [name for name, one in types.items() if issubclass(one, scripts.Script)]
    tabs = [callback for kind, callback in calls if kind == "ui_tabs"]
    registered = {"calls": [kind for kind, _ in calls], "looked": looked[:], "files": files[:]}
    return {**registered, "scripts": classes, "tabs": tabs}
"""

REPORT = """
first = load()
heavy = [name for name in ("torch", "numpy", "PIL", "copier.app", "copier.ui") if name in sys.modules]
CHANGE
again = load()
def told(found): return [tab[0].texts for call in found["tabs"] for tab in call()] if TELL else []
kept = [{**{name: one[name] for name in one if name != "tabs"}, "told": told(one)} for one in (first, again)]
print(json.dumps(kept))
print(json.dumps(heavy))
"""


def loaded(
    *folders: Path, change: str = "", tell: bool = False, early: bool = False
) -> tuple[list[Any], list[str], str]:
    """What the script does in a host, the first time and the second; what it imported; what it printed."""
    code = HOST.replace("EARLY", str(early)) + REPORT.replace("CHANGE", change).replace("TELL", str(tell))
    script = folders[-1] / "scripts" / "copier_webui.py"
    done = subprocess.run(
        # Without site-packages: where this project is installed there, it would be found twice.
        [sys.executable, "-S", "-c", code, str(script), *map(str, folders)],
        capture_output=True, text=True, check=True, cwd=folders[0], env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    *said, report, heavy = done.stdout.splitlines()
    return json.loads(report), json.loads(heavy), "\n".join(said)


@pytest.mark.parametrize("early", [False, True])
def test_loading_registers_everything_once_and_imports_nothing_heavy(*, early: bool) -> None:
    found, heavy, said = loaded(ROOT, early=early)
    kinds = ["ui_settings", "before_ui", "after_component", "app_started", "ui_tabs"]
    file = str(ROOT / "copier" / "host" / "webui" / "registration.py")
    for one in found:
        assert sorted(one["calls"]) == sorted(kinds)
        # Which file asks is told to a host that would else look for it among all modules.
        assert one["looked"] == (one["calls"] if early else [])
        assert one["files"] == ([] if early else [file] * len(kinds))
        assert one["scripts"] == ["CopierRecipe"]
    assert heavy == []
    assert said == ""


def test_another_package_of_the_name_is_named_with_the_remedy(tmp_path: Path) -> None:
    other = tmp_path / "copier"
    other.mkdir()
    (other / "__init__.py").touch()
    found, _, said = loaded(tmp_path, ROOT, tell=True)
    assert str(other) in said and "pip uninstall copier" in said
    assert found[0]["calls"] == ["ui_tabs"]
    assert "pip uninstall copier" in found[0]["told"][0][0]


def test_a_failure_of_ours_becomes_a_tab_that_shows_it(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "copier").mkdir()
    (tmp_path / "copier" / "__init__.py").touch()
    (tmp_path / "scripts" / "copier_webui.py").write_bytes(
        (ROOT / "scripts" / "copier_webui.py").read_bytes()
    )
    found, _, said = loaded(tmp_path, tell=True)
    assert found[0]["calls"] == ["ui_tabs"]
    assert "ModuleNotFoundError" in found[0]["told"][0][0]
    assert "Copier could not start" in said


def test_after_an_update_a_reload_asks_for_a_restart() -> None:
    change = "import copier.host.webui.registration as one; one._stamp = -1"
    found, _, said = loaded(ROOT, change=change)
    assert found[1]["calls"] == ["ui_tabs"]
    assert "was updated while the WebUI ran" in said
