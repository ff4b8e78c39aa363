"""Puts this folder on the path, for ``pipeline_fake``; one finished run that tests may look at."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(data folder, request, run) of a finished run; for tests that change nothing of it."""
    from pipeline_fake import FakeWorker, execute, make_request

    folder = tmp_path_factory.mktemp("finished")
    request = make_request(folder)
    return folder / "data", request, execute(request, folder / "data", FakeWorker())
