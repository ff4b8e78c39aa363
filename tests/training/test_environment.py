"""The trainer's environment: what a Python is asked, which packages it gets, what a child is started with."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from copier.errors import BadInput, NotInstalled
from copier.training import environment
from copier.training.environment import (
    MODULES,
    SUPPORTED,
    contents_for,
    find_overlay,
    install_environment,
    remove_environments,
    require_environment,
)
from copier.training.interpreter import Interpreter, ask_interpreter
from copier.training.overlay import (
    Contents,
    Overlay,
    Stamp,
    State,
    folder_size,
    installed_packages,
    normal,
    overlay_for,
    overlays,
)
from copier.training.overlay_check import STAND_IN, check_overlay
from copier.training.overlay_probe import TOKENIZERS
from copier.training.tagger_packages import install_tagger, require_tagger, tagger_contents

ROOT = Path(__file__).parents[2]
HOST = Interpreter(
    path="/webui/venv/bin/python",
    version="3.10.13",
    platform="linux-x86_64",
    torch="2.1.2+cu121",
    torchvision="0.16.2+cu121",
    cuda="",
    pip="pip",
)
"""A1111's, on a machine without a device."""


def test_a_python_says_what_it_is() -> None:
    asked = ask_interpreter(sys.executable)
    assert asked.version == ".".join(map(str, sys.version_info[:3]))
    assert asked.torch == torch.__version__
    assert bool(asked.cuda) == torch.cuda.is_available()
    assert asked.tag.startswith(f"cp{sys.version_info[0]}{sys.version_info[1]}-")


def test_asking_imports_no_torch_and_no_file_of_ours() -> None:
    """Modules beside the probe have common names."""
    probe = ROOT / "copier/training/interpreter_probe.py"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(probe)], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ctypes" in imported and not imported & {"torch", "numpy", "copier", "protocol", "process"}
    assert json.loads(done.stdout)["torch"] == torch.__version__


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "talker", "broken"])
def test_what_is_no_python_is_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "python"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        talk = {"text": "hello", "talker": "#!/bin/sh\necho hello\n", "broken": "#!/bin/sh\nexit 3\n"}
        path.write_text(talk[kind])
        path.chmod(0o644 if kind == "text" else 0o755)
    with pytest.raises(BadInput, match="COPIER_PYTHON"):
        ask_interpreter(path)


def test_a_python_is_found_by_its_name_and_kept_by_its_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started in other folders; a link is not followed: a venv would become the Python behind it."""
    python = Path(sys.executable)
    monkeypatch.setenv("PATH", str(python.parent), prepend=os.pathsep)
    assert ask_interpreter(python.name).path == str(python)


@pytest.mark.parametrize("minor", SUPPORTED)
def test_bitsandbytes_is_listed_only_where_cuda_is(minor: str) -> None:
    plain = contents_for(replace(HOST, version=f"{minor}.1"))
    cuda = contents_for(replace(HOST, version=f"{minor}.1", cuda="12.1"))
    assert {pin.name for pin in cuda.pins} - {pin.name for pin in plain.pins} == {"bitsandbytes"}
    assert (plain.optional, cuda.optional) == ((), ("bitsandbytes",))
    assert plain.modules == MODULES and plain.digest != cuda.digest


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"version": "3.13.0"}, "3.10, 3.11, 3.12"), ({"torch": ""}, "no torch")],
    ids=["version", "torch"],
)
def test_a_python_that_cannot_train_is_refused(changed: dict[str, str], words: str, tmp_path: Path) -> None:
    for function in (find_overlay, require_environment, install_environment):
        with pytest.raises(BadInput, match=words):
            function(tmp_path, replace(HOST, **changed))


def stamped(
    root: Path, interpreter: Interpreter, *, stand_in: bool = False, contents: Contents | None = None
) -> Overlay:
    """An overlay that looks installed."""
    contents = contents or contents_for(interpreter)
    overlay = overlay_for(root, interpreter, contents)
    for pin in contents.pins:
        info = overlay.packages / f"{pin.name}-{pin.version}.dist-info"
        info.mkdir(parents=True)
        (info / "RECORD").touch()
    overlay.write_stamp(
        Stamp(
            contents.digest, interpreter.version, interpreter.platform, interpreter.torch,
            interpreter.torchvision, stand_in,
        )
    )  # fmt: skip
    return overlay


def test_a_training_without_packages_is_told_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(NotInstalled, match=r"absent.*copier trainer install"):
        require_environment(tmp_path, HOST)


@pytest.mark.parametrize("stand_in", [False, True])
def test_a_childs_path_begins_with_the_stand_in_where_it_is_needed(tmp_path: Path, stand_in: bool) -> None:
    overlay = stamped(tmp_path, HOST, stand_in=stand_in)
    found = require_environment(tmp_path, HOST)
    expected = (STAND_IN, overlay.packages) if stand_in else (overlay.packages,)
    assert found.search_path == expected
    assert (found.tokenizers, found.eight_bit) == (overlay.tokenizers, False)


def test_another_torch_means_another_check_and_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = stamped(tmp_path, HOST)
    checked = []

    def check(place: Overlay, interpreter: Interpreter, contents: Contents) -> Stamp:
        checked.append(interpreter.torch)
        stamp = place.stamp()
        assert stamp is not None
        return replace(stamp, torch=interpreter.torch, stand_in=True)

    monkeypatch.setattr(environment, "check_overlay", check)
    require_environment(tmp_path, HOST)
    assert checked == []
    newer = replace(HOST, torch="2.3.1+cu121")
    for _ in range(2):
        assert require_environment(tmp_path, newer).stand_in == STAND_IN
    assert checked == ["2.3.1+cu121"]
    stamp = overlay.stamp()
    assert stamp is not None and stamp.torch == "2.3.1+cu121"


@pytest.mark.parametrize("minor", SUPPORTED)
def test_the_tagger_completes_the_trainers_packages_and_repeats_none(minor: str) -> None:
    host = replace(HOST, version=f"{minor}.1")
    contents, trainer = tagger_contents(host), contents_for(host)
    assert contents.beside == trainer.pins and {"onnx", "onnxruntime"} < {pin.name for pin in contents.pins}
    assert not {normal(pin.name) for pin in contents.pins} & {normal(pin.name) for pin in trainer.pins}
    assert tagger_contents(replace(host, cuda="12.1")) == contents
    assert replace(contents, beside=contents.beside[1:]).digest != contents.digest


def test_the_taggers_packages_are_required_for_the_tagger_alone(tmp_path: Path) -> None:
    stamped(tmp_path / "trainer", HOST)
    with pytest.raises(NotInstalled, match=r"tagger's packages are absent.*install --tagger"):
        require_tagger(tmp_path / "tagger", HOST)
    with pytest.raises(NotInstalled, match="trainer's own packages are absent"):
        install_tagger(tmp_path / "tagger", HOST, trainer=tmp_path / "nothing")
    overlay = stamped(tmp_path / "tagger", HOST, contents=tagger_contents(HOST))
    assert require_tagger(tmp_path / "tagger", HOST) == overlay.packages
    assert not install_tagger(tmp_path / "tagger", HOST, trainer=tmp_path / "trainer")


def test_packages_with_bitsandbytes_serve_while_no_device_is_to_be_seen(tmp_path: Path) -> None:
    with_device = replace(HOST, cuda="12.1")
    overlay = stamped(tmp_path, with_device)
    assert require_environment(tmp_path, with_device).eight_bit
    found = find_overlay(tmp_path, HOST)
    assert (found.overlay, found.state) == (overlay, State.CURRENT)
    assert not require_environment(tmp_path, HOST).eight_bit
    assert not install_environment(tmp_path, HOST)


def test_a_new_installation_removes_the_stale_one_of_that_python_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(HOST, version="3.11.7")
    stale, kept = stamped(tmp_path, HOST), stamped(tmp_path, other)
    with_device = replace(HOST, cuda="12.1")
    assert find_overlay(tmp_path, with_device).state is State.STALE
    monkeypatch.setattr(environment, "install_overlay", lambda root, python, *_, **__: stamped(root, python))
    assert install_environment(tmp_path, with_device)
    assert not stale.folder.exists()
    assert kept in overlays(tmp_path) and len(overlays(tmp_path)) == 2


def test_removing_gives_back_the_room_and_says_how_much(tmp_path: Path) -> None:
    root = tmp_path / "trainer"
    overlay = stamped(root, HOST)
    (overlay.packages / "big.bin").write_bytes(bytes(1000))
    size = folder_size(overlay.folder)
    assert size == sum(path.stat().st_size for path in overlay.folder.rglob("*") if path.is_file()) > 1000
    assert remove_environments(root) == [(overlay, size)]
    assert not list(root.iterdir())
    assert remove_environments(root) == []
    assert remove_environments(tmp_path / "never") == []


@pytest.fixture
def stand_in() -> Iterator[ModuleType]:
    path = STAND_IN / "torchvision" / "transforms" / "__init__.py"
    spec = importlib.util.spec_from_file_location("stand_in_transforms", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_stand_in_makes_a_picture_what_torchvision_makes_it(stand_in: ModuleType, mode: str) -> None:
    picture = Image.fromarray(np.random.randint(0, 256, (5, 7, 4), np.uint8)).convert(mode)
    transform = stand_in.Compose([stand_in.ToTensor(), stand_in.Normalize([0.5], [0.5])])
    array = np.asarray(picture, np.float32).reshape(5, 7, -1)
    expected = torch.from_numpy((array / np.float32(255)).transpose(2, 0, 1).copy()) * 2 - 1
    assert transform(picture).shape == (len(mode), 5, 7)
    torch.testing.assert_close(transform(picture), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(transform(np.asarray(picture)), expected, rtol=0, atol=1e-6)


def test_the_stand_in_leaves_floats_as_they_are(stand_in: ModuleType) -> None:
    array = np.random.rand(3, 4, 3).astype(np.float32)
    torch.testing.assert_close(stand_in.ToTensor()(array), torch.from_numpy(array).permute(2, 0, 1))
    mean, std = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    normalised = stand_in.Normalize(mean, std)(torch.from_numpy(array).permute(2, 0, 1))
    np.testing.assert_allclose(normalised[2].numpy(), (array[..., 2] - 0.3) / 4, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_transformers_and_diffusers_work_with_the_stand_in(broken: bool, tmp_path: Path) -> None:
    """transformers imports more of a torchvision whose metadata it finds, working or not."""
    if broken:
        (tmp_path / "torchvision").mkdir()
        fails = "raise RuntimeError('built for another torch')\n"
        (tmp_path / "torchvision" / "__init__.py").write_text(fails)
        info = tmp_path / "torchvision-0.24.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.24.1\n")
    spec = importlib.util.find_spec("transformers")
    assert spec and spec.origin
    job = {
        "packages": str(Path(spec.origin).parents[1]),
        "project": str(ROOT),
        "stand_in": str(STAND_IN),
        "tokenizers": str(tmp_path / "tokenizers"),
        "modules": [name for name in MODULES if name.startswith(("transformers", "diffusers"))],
        "optional": [],
        "for_training": True,
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "copier/training/overlay_probe.py")],
        input=json.dumps(job) + "\n", capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"stand_in": True, "failed": {}, "unusable": {}}


@pytest.mark.slow
def test_the_check_writes_the_tokenizers_and_stands_in_for_a_torchvision_that_fails(tmp_path: Path) -> None:
    """With this project's own packages; the torchvision is one that was built for another torch."""
    overlay = Overlay(tmp_path / "overlay")
    broken = overlay.packages / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    stamp = check_overlay(overlay, ask_interpreter(), Contents((), ()))
    assert stamp.stand_in and stamp.unusable == ()
    from transformers import CLIPTokenizer

    for name, padding in TOKENIZERS.items():
        assert {path.name for path in (overlay.tokenizers / name).iterdir()} == {
            *("vocab.json", "merges.txt", "tokenizer_config.json")
        }
        tokenizer = CLIPTokenizer.from_pretrained(str(overlay.tokenizers / name))
        ids = tokenizer("a cat", padding="max_length").input_ids
        assert len(ids) == 77 and ids[4:] == [0 if padding == "!" else 49407] * 73


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("COPIER_TEST_INSTALL"), reason="downloads 110 MB: set COPIER_TEST_INSTALL=1"
)
def test_the_real_packages_install_and_the_environment_stays_as_it_is(tmp_path: Path) -> None:
    """COPIER_TEST_INSTALL may also be the path of a host's Python."""
    chosen = os.environ["COPIER_TEST_INSTALL"]
    interpreter = ask_interpreter(sys.executable if chosen == "1" else chosen)
    freeze = [interpreter.path, "-m", "pip", "freeze", "--all"]
    before = subprocess.run(freeze, capture_output=True, check=True).stdout
    assert install_environment(tmp_path, interpreter)
    assert subprocess.run(freeze, capture_output=True, check=True).stdout == before != b""
    (overlay,) = overlays(tmp_path)
    found = require_environment(tmp_path, interpreter)
    names = set(installed_packages(overlay.packages))
    assert not {name for name in names if name.startswith(("torch", "nvidia", "triton"))}
    needed = {
        normal(requirement.name)
        for one in metadata.distributions(path=[str(overlay.packages)])
        for requirement in map(Requirement, one.requires or ())
        if one.metadata["Name"] != "open_clip_torch"  # there for a data file
        and (not requirement.marker or requirement.marker.evaluate({"extra": ""}))
    }
    assert len(needed) > 20 and needed - names == {"torch"}
    assert found.packages == overlay.packages
    assert folder_size(overlay.folder) < 450e6
    assert not install_environment(tmp_path, interpreter)
