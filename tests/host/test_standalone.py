"""The host without a WebUI: its lists, its pictures, and a child that is there only while it is needed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from copier.app.ports import GenerateRequest, HostServices, Security, allowed_path
from copier.app.settings import Settings
from copier.checkpoint.writer import write_tensors
from copier.errors import BadInput, Cancelled, UnknownName
from copier.host.standalone import StandaloneHost
from copier.progress import CancelToken, ignore

PATIENCE = 20.0


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(
        folder / "data",
        checkpoints=(folder / "models",),
        own_loras=folder / "loras",
        own_output=folder / "out",
    )


@pytest.fixture
def host(folder: Path, settings: Settings, worker: Any) -> Iterator[StandaloneHost]:
    made = StandaloneHost(settings, folder / "base.safetensors", device="cpu", threads=1)
    yield made
    made.close()
    assert worker.alive == 0


def draw(host: StandaloneHost, **values: Any) -> list[Any]:
    request = GenerateRequest(**{"prompt": "a star", "steps": 2, "width": 64, "height": 64, **values})
    return list(host.generate(request, ignore, CancelToken()))


def test_it_offers_what_the_ports_ask_for(host: StandaloneHost) -> None:
    ports: HostServices = host
    wanted = {name for name in vars(HostServices) if not name.startswith("_")}
    assert all(hasattr(ports, name) for name in wanted)
    assert len(wanted) > 10


def test_checkpoints_are_the_embedded_one_and_those_in_the_folders_with_their_family(
    host: StandaloneHost, folder: Path, doubles: ModuleType
) -> None:
    assert [one.path for one in host.checkpoints()] == [folder / "base.safetensors"]
    deep = folder / "models" / "deep"
    deep.mkdir(parents=True)
    doubles.write_checkpoint(deep / "Zebra.safetensors")
    (folder / "models" / "broken.safetensors").write_bytes(b"x")
    write_tensors(folder / "models" / "vae.safetensors", {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3)})
    found = host.checkpoints()
    assert [(one.name, one.family, one.embedded) for one in found] == [
        ("base", "sd1", True),
        ("broken", "unknown", False),
        ("Zebra", "sd1", False),
    ]
    assert [one.name for one in host.vaes()] == ["vae"]
    host.choose_checkpoint(found[2].path)
    current = host.current_checkpoint()
    assert current is not None
    assert current.name == "Zebra"
    with pytest.raises(UnknownName):
        host.choose_checkpoint(folder / "none.safetensors")
    found[2].path.unlink()
    current = host.current_checkpoint()
    assert current is not None
    assert current.embedded


def test_pictures_carry_what_they_were_drawn_from_and_the_child_stays(
    host: StandaloneHost, folder: Path, worker: Any
) -> None:
    first = draw(host, count=2, seed=5, negative="blur", loras=((folder / "small.safetensors", 0.5),))
    assert [one.seed for one in first] == [5, 6]
    assert worker.alive == 1
    with Image.open(first[1].path) as image:
        text = image.text["parameters"]
        assert image.size == (64, 64)
    assert text == first[1].infotext
    assert text == (
        "a star <lora:small:0.5>\nNegative prompt: blur\n"
        "Steps: 2, Sampler: DDIM, CFG scale: 7, Seed: 6, Size: 64x64, Model: base"
    )
    assert allowed_path(first[0].path, host) == first[0].path
    again = draw(host, seed=5)
    assert again[0].path != first[0].path
    assert first[0].path.is_file(), "pictures stay"
    assert worker.alive == 1
    assert not list((folder / "data" / "stages").glob(".tmp*"))


def test_there_is_no_child_while_someone_else_has_the_memory(host: StandaloneHost, worker: Any) -> None:
    draw(host)
    with host.released():
        assert worker.alive == 0
        with host.released(), pytest.raises(BadInput, match="a job is running and has the memory"):
            draw(host)
        with pytest.raises(BadInput, match="a job is running"):
            draw(host)
    assert worker.alive == 0
    assert draw(host)
    assert worker.alive == 1


def test_a_child_that_draws_nothing_for_a_while_is_ended(
    settings: Settings, folder: Path, worker: Any
) -> None:
    host = StandaloneHost(settings, folder / "base.safetensors", device="cpu", threads=1, idle_seconds=0.1)
    draw(host)
    limit = time.monotonic() + PATIENCE
    while worker.alive:
        assert time.monotonic() < limit
        time.sleep(0.01)
    draw(host)
    assert worker.alive == 1
    host.close()
    host.close()


def test_drawing_is_interrupted_and_its_child_is_not_used_again(
    host: StandaloneHost, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def slow(self: Any, request: Any, *, observer: Any, cancel: CancelToken) -> Any:
        begun.set()
        limit = time.monotonic() + PATIENCE
        while not cancel.cancelled:
            assert time.monotonic() < limit
            time.sleep(0.005)
        cancel.check()

    plain = worker.sample
    monkeypatch.setattr(worker, "sample", slow)
    threading.Thread(target=lambda: (begun.wait(PATIENCE), host.interrupt())).start()
    with pytest.raises(Cancelled):
        draw(host)
    assert (worker.alive, host.busy()) == (0, "")
    monkeypatch.setattr(worker, "sample", plain)
    assert draw(host)


def test_bad_wishes_are_refused_before_a_child_is_started(
    host: StandaloneHost, folder: Path, worker: Any
) -> None:
    with pytest.raises(UnknownName, match="Euler"):
        draw(host, sampler="Euler a")
    with pytest.raises(BadInput, match="none"):
        draw(host, checkpoint=folder / "none.safetensors")
    with pytest.raises(BadInput):
        draw(host, loras=((folder / "base.safetensors", 1.0),))
    assert worker.alive == 0


def test_without_settings_everything_is_in_the_data_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COPIER_CHECKPOINTS", "COPIER_LORAS", "COPIER_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    security = Security(shared=True)
    host = StandaloneHost(Settings(folder / "data"), folder / "base.safetensors", security=security)
    assert host.folders().loras == folder / "data" / "loras"
    assert host.folders().output == folder / "data" / "output"
    assert host.loras() == []
    assert host.security().restricted
    monkeypatch.setenv("COPIER_CHECKPOINTS", os.pathsep.join(("/a", "", "/b")))
    monkeypatch.setenv("COPIER_LORAS", "/loras")
    settings = Settings(folder / "data")
    assert settings.checkpoints == (Path("/a"), Path("/b"))
    assert (settings.loras, settings.output) == (Path("/loras"), folder / "data" / "output")
