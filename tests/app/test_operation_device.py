"""Operations on a card whose memory a WebUI may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from copier.app import operations


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices on which an operation was tried; there is a card, and its memory is full."""
    devices: list[str] = []
    monkeypatch.setattr(operations, "chosen_device", lambda device: "cuda" if device == "auto" else device)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: devices.append("emptied"))
    return devices


def operation(devices: list[str]) -> Any:
    def full(*, out: Path, device: str = "cpu") -> str:
        devices.append(device)
        if device == "cuda":
            raise torch.cuda.OutOfMemoryError
        return "done"

    return operations._served(full)


def test_where_the_cards_memory_is_short_the_processor_does_it(tried: list[str], tmp_path: Path) -> None:
    assert operation(tried)(out=tmp_path / "x.safetensors") == "done"
    assert tried == ["cuda", "emptied", "cpu"]


def test_a_card_that_was_asked_for_is_not_replaced(tried: list[str], tmp_path: Path) -> None:
    with pytest.raises(torch.cuda.OutOfMemoryError):
        operation(tried)(out=tmp_path / "x.safetensors", device="cuda")
    assert tried == ["cuda"]
