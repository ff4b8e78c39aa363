"""The folder and the fake worker of tests/app."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "app_conftest", Path(__file__).parents[1] / "app" / "conftest.py"
)
assert _spec and _spec.loader
_app = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_app)
doubles, folder, worker = _app.doubles, _app.folder, _app.worker
