"""The same folder and fake worker as in tests/app, and ``copier``: the command line in this process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from copier.cli.main import run_command
from copier.cli.session import Embedded

_spec = importlib.util.spec_from_file_location(
    "app_conftest", Path(__file__).parents[1] / "app" / "conftest.py"
)
assert _spec and _spec.loader
_app = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_app)
doubles, folder, worker = _app.doubles, _app.folder, _app.worker


@dataclass(frozen=True)
class Run:
    """What one call gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON object."""
        return json.loads(self.out)


@pytest.fixture
def copier(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Run]:
    """Run a command in ``folder``; its data directory is ``folder``/data."""
    monkeypatch.setenv("COPIER_DATA", str(folder / "data"))
    monkeypatch.setattr("copier.cli.main.logging.basicConfig", lambda **_: None)
    embedded = Embedded(
        lambda: folder / "base.safetensors", lambda webui: [webui / "installed"], lambda session: None
    )

    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        try:
            code = run_command([str(argument) for argument in arguments], embedded)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return Run(code, out, err)

    return run
