"""The embedded checkpoint: SD 1.5's keys, key for key, and what stands on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import read_header
from copier.errors import BadInput
from copier.pocket.checkpoint import checkpoint_path

DATA = Path(__file__).parents[1] / "checkpoint" / "data" / "sd15.json"


def test_its_keys_are_those_of_sd15_and_its_tensors_have_as_many_sides() -> None:
    known = json.loads(DATA.read_text(encoding="utf-8"))["checkpoint"]
    header = read_header(checkpoint_path())
    assert set(header.tensors) == set(known)
    for key, info in header.tensors.items():
        assert info.dtype == known[key][0]
        assert len(info.shape) == len(known[key][1])


def test_it_has_at_most_32_megabytes() -> None:
    assert checkpoint_path().stat().st_size <= 32_000_000


def test_it_is_taken_for_what_it_is() -> None:
    identity = detect(read_header(checkpoint_path()))
    assert identity.family is Family.SD1
    assert identity.kind is Kind.CHECKPOINT


def test_installing_writes_checkpoint_yaml_and_text_encoder_and_twice_changes_nothing(
    tmp_path: Path,
) -> None:
    pytest.importorskip("diffusers")
    from copier.pocket.install import install

    (tmp_path / "models" / "Stable-diffusion").mkdir(parents=True)
    files = install(tmp_path)
    names = {path.name for path in files}
    assert {"copier-pocket.safetensors", "copier-pocket.yaml"} <= names
    assert {"config.json", "vocab.json", "merges.txt"} <= names
    text = (tmp_path / "models" / "Stable-diffusion" / "copier-pocket.yaml").read_text()
    assert str((tmp_path / "models" / "copier-pocket-text-encoder").resolve().as_posix()) in text
    before = {path: path.stat().st_mtime_ns for path in files}
    assert {path: path.stat().st_mtime_ns for path in install(tmp_path)} == before


def test_installing_into_another_folder_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from copier.pocket.install import install

    with pytest.raises(BadInput, match="webui"):
        install(tmp_path)
    assert not list(tmp_path.iterdir())


def test_installing_replaces_an_earlier_pocket_checkpoint_and_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    import torch

    from copier.checkpoint.writer import write_tensors
    from copier.pocket.checkpoint import TITLE
    from copier.pocket.install import install

    models = tmp_path / "models" / "Stable-diffusion"
    models.mkdir(parents=True)
    target = models / checkpoint_path().name
    write_tensors(target, {"x": torch.zeros(1)}, {"modelspec.title": "Somebody's model"})
    with pytest.raises(BadInput, match="another file"):
        install(tmp_path)
    write_tensors(target, {"x": torch.zeros(1)}, {"modelspec.title": TITLE}, overwrite=True)
    install(tmp_path)
    assert target.read_bytes() == checkpoint_path().read_bytes()
