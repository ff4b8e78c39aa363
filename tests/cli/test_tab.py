"""``copier ui``: what it hands on, and what it says without gradio."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from copier import __main__ as root
from copier.cli.session import Embedded


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sessions that would have been served."""
    sessions: list[Any] = []
    monkeypatch.setattr(root, "Embedded", lambda *parts: Embedded(*parts[:2], sessions.append))
    return sessions


def test_the_page_is_for_this_machine_unless_asked_otherwise(served: list[Any]) -> None:
    assert root.main(["ui"]) == 0
    assert root.main(["ui", "--port", "7999", "--listen"]) == 0
    first, second = (one.arguments for one in served)
    assert (first.port, first.listen, first.insecure) == (7861, False, False)
    assert (second.port, second.listen, second.insecure) == (7999, True, False)


def test_without_gradio_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert root.main(["ui"]) == 1
    assert "pip install gradio" in capsys.readouterr().err
