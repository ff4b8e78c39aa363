"""Presets of one's own, and recipes that come in with LoRAs and pictures; what is local stays outside."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image, PngImagePlugin

from copier.app.own_recipes import (
    delete_preset,
    find_recipe,
    imported,
    own_presets,
    recipe_of_lora,
    recipe_of_picture,
    rename_preset,
    save_preset,
)
from copier.app.settings import Settings
from copier.codec import RECIPE_KEY, builtin_recipes, recipe_to_json
from copier.errors import BadInput, UnknownName

QUICK = builtin_recipes()["copier-quick-pocket"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "data")


def picture(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_itxt(key, value)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_a_preset_is_saved_renamed_and_deleted(settings: Settings) -> None:
    assert own_presets(settings) == {}
    path = save_preset(QUICK, "Mein Rezept 灰", settings)
    ((name, recipe),) = own_presets(settings).items()
    assert (name, recipe.title, recipe.stages) == ("Mein Rezept 灰", "Mein Rezept 灰", QUICK.stages)
    assert path.parent == settings.presets
    with pytest.raises(BadInput, match="such as 'Mein Rezept 灰-2'"):
        save_preset(QUICK, "Mein Rezept 灰", settings)
    save_preset(QUICK, "Mein Rezept 灰", settings, overwrite=True)
    rename_preset("Mein Rezept 灰", "zwei", settings)
    assert list(own_presets(settings)) == ["zwei"]
    assert own_presets(settings)["zwei"].title == "zwei"
    save_preset(QUICK, "drei", settings)
    with pytest.raises(BadInput, match="'zwei' already"):
        rename_preset("drei", "zwei", settings)
    delete_preset("zwei", settings)
    assert list(own_presets(settings)) == ["drei"]
    for act in (lambda: delete_preset("zwei", settings), lambda: rename_preset("../x", "y", settings)):
        with pytest.raises(UnknownName):
            act()


def test_a_recipe_is_found_among_ones_own_the_built_in_ones_and_files(
    settings: Settings, tmp_path: Path
) -> None:
    save_preset(QUICK, "mine", settings)
    (tmp_path / "file.json").write_text(json.dumps(recipe_to_json(QUICK)), encoding="utf-8")
    assert find_recipe("mine", settings).stages == QUICK.stages
    assert find_recipe(QUICK.name, settings) == QUICK == find_recipe(str(tmp_path / "file.json"), settings)
    with pytest.raises(UnknownName, match="did you mean 'mine'"):
        find_recipe("mime", settings)


@pytest.mark.parametrize("name", ["copier-quick", "COPIER-QUICK", QUICK.title, "../x", "a/b", "", "NUL"])
def test_names_of_built_in_recipes_and_names_that_are_none_are_refused(settings: Settings, name: str) -> None:
    with pytest.raises(BadInput):
        save_preset(QUICK, name, settings)
    assert not settings.presets.exists()


def test_a_preset_that_cannot_be_read_is_left_out(settings: Settings) -> None:
    save_preset(QUICK, "good", settings)
    (settings.presets / "bad.json").write_bytes(b"\xff{")
    (settings.presets / "worse.json").write_text("[]")
    assert list(own_presets(settings)) == ["good"]


def test_what_is_local_is_left_out_with_a_note_and_mistakes_are_still_mistakes() -> None:
    data = recipe_to_json(QUICK)
    data["checkpoint"] = "/models/x.safetensors"
    data["stages"][0]["path"] = "/a.png"
    data["stages"][0]["training"]["extra"] = "--network_module evil"
    found = imported(json.dumps(data), "it")
    assert found.recipe == QUICK
    assert [note.partition(" ")[0] for note in found.notes] == ["'checkpoint'", "'path'", "'extra'"]
    request = {"recipe": recipe_to_json(QUICK), "out": "/tmp", "scripts": {"extra": ["--x"]}, "version": 1}
    whole = imported(json.dumps(request), "it")
    assert whole.recipe == QUICK
    assert len(whole.notes) == 2
    data["stages"][0]["training"]["stepz"] = 5
    with pytest.raises(UnknownName, match="stepz"):
        imported(json.dumps(data), "it")
    for text in ("", "[]", "5", '{"recipe": 5}', "[" * 10_000):
        with pytest.raises(BadInput):
            imported(text, "it")


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_nothing_is_left_out_of_a_recipe_of_our_own(name: str) -> None:
    recipe = builtin_recipes()[name]
    found = imported(json.dumps(recipe_to_json(recipe)), "it")
    assert (found.recipe, found.notes) == (recipe, ())


def test_a_recipe_comes_in_with_a_lora(doubles: ModuleType, tmp_path: Path) -> None:
    text = json.dumps(recipe_to_json(QUICK))
    carrying = doubles.write_small_lora(tmp_path / "with.safetensors", **{RECIPE_KEY: text})
    assert recipe_of_lora(carrying).recipe == QUICK
    with pytest.raises(BadInput, match="carries no recipe"):
        recipe_of_lora(doubles.write_small_lora(tmp_path / "without.safetensors"))


def test_a_recipe_comes_in_with_a_picture_or_with_the_lora_of_its_prompt(
    doubles: ModuleType, tmp_path: Path
) -> None:
    text = json.dumps(recipe_to_json(QUICK))
    assert recipe_of_picture(picture(tmp_path / "own.png", **{RECIPE_KEY: text})).recipe == QUICK
    lora = doubles.write_small_lora(
        tmp_path / "file.safetensors", **{RECIPE_KEY: text, "ss_output_name": "alias"}
    )
    for name in ("file", "alias"):
        prompt = f"a cat <lora:other:1> <lora:{name}:0.8>\nSteps: 20"
        drawn = picture(tmp_path / "drawn.png", parameters=prompt)
        assert recipe_of_picture(drawn, [lora]).recipe == QUICK
    with pytest.raises(BadInput, match="'other' is not in the LoRA folder"):
        recipe_of_picture(drawn)
    with pytest.raises(BadInput, match="names no LoRA"):
        recipe_of_picture(picture(tmp_path / "plain.png"))
    (tmp_path / "no.png").write_bytes(b"x")
    with pytest.raises(BadInput):
        recipe_of_picture(tmp_path / "no.png")
