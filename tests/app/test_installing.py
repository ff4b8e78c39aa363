"""Installing a LoRA: names, the card as hosts read it, and nothing that is ever replaced."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from copier.app import installing
from copier.app.installing import Card, install_lora
from copier.app.names import LONGEST, check_name, free_name
from copier.checkpoint.header import read_header
from copier.checkpoint.reader import TensorReader
from copier.codec import RECIPE_KEY
from copier.errors import BadInput, BadPicture

RECIPE_TEXT = '{"format": "copier-recipe", "title": "Grau für ü"}'


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    return tmp_path / "models" / "Lora"


@pytest.fixture
def source(doubles: ModuleType, tmp_path: Path) -> Path:
    return doubles.write_small_lora(tmp_path / "grayscale.safetensors", **{RECIPE_KEY: RECIPE_TEXT})


@pytest.mark.parametrize("name", ["grau", "灰度 1.5", "größe (2)", "a.b", "CONsole", "com10", "x" * LONGEST])
def test_names_in_every_script_are_kept(name: str) -> None:
    assert check_name(name) is name


@pytest.mark.parametrize(
    "name",
    [
        *("", "  ", ".", "..", "../x", "a/b", "a\\b", "C:x", "a:b", "<lora>", "a|b", "a?", "a*", 'a"b'),
        *("CON", "con", "nul.txt", "COM1", "lpt9.x", "com²", "a\nb", "a\0b", "a\x7fb", "a\u2028b"),
        *("x.", "x ", " x", ".hidden", "x" * (LONGEST + 1), "灰" * 67, "\ud800"),
    ],
)
def test_names_that_some_system_refuses_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"the LoRA's name .*"):
        check_name(name, "the LoRA's name")


def test_the_next_free_name_counts_up() -> None:
    assert free_name("x", lambda name: name in ("x", "x-2")) == "x-3"
    assert free_name("y", lambda name: False) == "y"


def test_a_lora_is_installed_with_its_card_and_its_preview(
    source: Path, loras: Path, doubles: ModuleType, tmp_path: Path
) -> None:
    picture = doubles.write_picture(tmp_path / "p.png", 64, 128)
    card = Card(activation="graustufen", weight=0.8, notes="made from A and B", description="灰度")
    done = install_lora(source, loras, "灰度 v1", card=card, preview=picture)
    assert [done.lora, done.card, done.preview] == [
        loras / f"灰度 v1.{ending}" for ending in ("safetensors", "json", "png")
    ]
    assert json.loads(done.card.read_text(encoding="utf-8")) == {
        "description": "灰度",
        "sd version": "SD1",
        "activation text": "graustufen",
        "preferred weight": 0.8,
        "negative text": "",
        "notes": "made from A and B",
    }
    before, after = read_header(source), read_header(done.lora)
    assert after.metadata == {**before.metadata, "ss_output_name": "灰度 v1", "modelspec.title": "灰度 v1"}
    assert after.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora", "Forge's badge needs it"
    with TensorReader(source) as first, TensorReader(done.lora) as second:
        assert first.keys() == second.keys()
        assert all(b"".join(first.raw(key)) == b"".join(second.raw(key)) for key in before.tensors)
    assert done.preview is not None
    with Image.open(done.preview) as preview:
        assert preview.size == (64, 128)
        assert preview.text[RECIPE_KEY] == RECIPE_TEXT
    assert len(list(loras.iterdir())) == 3


@pytest.mark.parametrize(
    "taken", ["other.safetensors", "OTHER.safetensors", "deep/other.safetensors", "other.json"]
)
def test_nothing_is_replaced_and_a_free_name_is_offered(
    source: Path, loras: Path, taken: str, doubles: ModuleType
) -> None:
    place = loras / taken
    place.parent.mkdir(parents=True)
    place.write_bytes(b"the user's")
    before = doubles.tree(loras)
    with pytest.raises(BadInput, match="such as 'other-2'"):
        install_lora(source, loras, "other", card=Card())
    assert doubles.tree(loras) == before
    install_lora(source, loras, "other-2", card=Card())


def test_what_cannot_be_installed_leaves_nothing(
    source: Path, loras: Path, tmp_path: Path, doubles: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="no LoRA: give the file of one"):
        install_lora(doubles.write_checkpoint(tmp_path / "base.safetensors"), loras, "x", card=Card())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadPicture):
        install_lora(source, loras, "x", card=Card(), preview=tmp_path / "bad.png")
    assert not loras.exists()

    def full(place: Path, content: bytes) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installing, "create_file", full)
    with pytest.raises(BadInput, match="No space left"):
        install_lora(source, loras, "x", card=Card())
    assert list(loras.iterdir()) == []


def test_a_card_has_texts_and_a_finite_weight() -> None:
    with pytest.raises(BadInput, match="preferred weight is inf"):
        Card(weight=float("inf"))
    with pytest.raises(BadInput, match="notes"):
        Card(notes="\ud800")
