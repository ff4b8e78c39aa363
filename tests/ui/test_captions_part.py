"""Captions of the originals in the tab: by what the host gives, into a folder that the run reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: make test-ui runs these tests")

from copier.app.jobs import JobService
from copier.app.pair_preview import keep_picture
from copier.app.ports import Security
from copier.codec import builtin_recipes
from copier.errors import BadInput, NotInstalled
from copier.recipe import CaptionPolicy
from copier.ui import words
from copier.ui.caption_rows import caption_rows
from copier.ui.gradio_versions import values_in
from copier.ui.parts import Parts
from copier.ui.picture_sets import FIRST, SECOND, caption_key
from copier.ui.recipe_form import with_caption_files
from copier.ui.tab import Tab
from tests.ui.conftest import fresh

Heard = list[tuple[Path, ...]]


@pytest.fixture
def heard(host: Any) -> Heard:
    """What the host's interrogator was asked about."""
    asked: Heard = []

    def says(pictures: Any, *, observer: Any, cancel: Any) -> list[str]:
        asked.append(tuple(pictures))
        return [f"1girl, {one.stem}, white background" for one in pictures]

    host.captioners = lambda: {"CLIP": says}
    return asked


@pytest.fixture
def tab(host: Any, settings: Any) -> Tab:
    import gradio as gr

    with gr.Blocks():
        return Tab(Parts(host, JobService(settings), settings))


def given(tab: Tab, pictures: tuple[Path, ...], **more: Any) -> dict[Any, Any]:
    """What a page sends: its fields as they are, those pictures, and more fields by their last name."""
    data = {one: fresh(one) for one in tab.whole_form | tab.form.under("captions")}
    kept = [str(keep_picture(one, tab.parts.settings)) for one in pictures]
    data[tab.original.originals] = kept
    return data | {tab.form[f"captions.{name}"]: value for name, value in more.items()}


def captioned(tab: Tab, data: Mapping[Any, Any]) -> Any:
    return tab.recipe.captioned(data, tab.pictures(data))


def told(tab: Tab, data: Mapping[Any, Any]) -> str:
    """What the page is given of what the trainings are told."""
    recipe, _, _ = tab.recipe.read(data)
    return str(tab.recipe.captions.heard(recipe, tab.pictures(data))[tab.recipe.captions.told])


def test_the_host_says_captions_and_the_run_reads_them(tab: Tab, heard: Heard, picture: Path) -> None:
    other = picture.with_name("b.png")
    Image.new("RGB", (128, 128), "blue").save(other)
    data = given(tab, (picture, other), by="CLIP")
    assert words.CAPTIONS_UNREAD in told(tab, data)
    answer = captioned(tab, data)
    assert [one.name for one in heard[0]] == ["a.png", "b.png"]
    after = data | values_in(answer)
    recipe, _, _ = tab.recipe.read(after)
    assert all(one.training.captions.policy is CaptionPolicy.FILES for one in recipe.trainings())
    assert words.CAPTIONS_READ in told(tab, after) and "1girl, b, white background" in told(tab, after)
    _, _, found = tab.read(after)
    folder = found.request.captions / "a"
    assert {one.name: one.read_text(encoding="utf-8") for one in folder.iterdir()} == {
        "a.txt": "1girl, a, white background\n",
        "b.txt": "1girl, b, white background\n",
    }


def test_what_was_typed_is_not_said_anew(tab: Tab, heard: Heard, picture: Path) -> None:
    data = given(tab, (picture,), by="CLIP")
    key = caption_key(FIRST, data[tab.original.originals][0])
    data[tab.recipe.captions.texts] = {key: "mine"}
    with pytest.raises(BadInput, match="every picture has a caption"):
        captioned(tab, data)
    assert heard == []


def test_both_sets_of_a_character_have_their_captions_in_the_table(tab: Tab, picture: Path) -> None:
    hero = picture.with_name("hero.png")
    Image.new("RGB", (128, 128), "green").save(hero)
    data = given(tab, (picture,))
    data[tab.edited.edited] = [str(keep_picture(hero, tab.parts.settings))]
    data |= values_in(tab.recipe.show(builtin_recipes()["character-pocket"]))
    first, second = data[tab.original.originals][0], data[tab.edited.edited][0]
    data[tab.recipe.captions.texts] = {
        caption_key(FIRST, first): "smile, full body",
        caption_key(SECOND, second): "smile, arms at sides",
    }
    recipe, _, _ = tab.recipe.read(data)
    rows = caption_rows(recipe, tab.pictures(data))
    assert [(one.set_name, one.text, one.told) for one in rows] == [
        ("base", "smile, full body", "full body"),
        ("character", "smile, arms at sides", "arms at sides"),
    ]
    table = str(tab.look(data)[tab.recipe.captions.table])
    assert words.set_words("base").title in table and "hero.png" in table


def test_caption_files_that_are_dropped_in_with_pictures_are_theirs(tab: Tab, picture: Path) -> None:
    note, stray = picture.with_suffix(".txt"), picture.with_name("stray.txt")
    note.write_text("a square\n", encoding="utf-8")
    stray.write_text("nobody's", encoding="utf-8")
    data = given(tab, ())
    data[tab.original.files] = [str(picture), str(note), str(stray)]
    answer = tab.dropped(FIRST, data)
    (kept,) = answer[tab.original.originals]
    assert answer[tab.recipe.captions.texts] == {caption_key(FIRST, kept): "a square"}
    later = data | values_in(answer)
    note.write_text("a red square", encoding="utf-8")
    later[tab.original.files] = [str(note)]
    again = tab.dropped(FIRST, later)
    assert tab.original.originals not in again
    assert again[tab.recipe.captions.texts] == {caption_key(FIRST, kept): "a red square"}


def test_the_table_is_saved_as_files_of_each_set(tab: Tab, host: Any, picture: Path) -> None:
    data = given(tab, (picture,))
    data[tab.recipe.captions.texts] = {caption_key(FIRST, data[tab.original.originals][0]): "a square"}
    recipe, _, _ = tab.recipe.read(data)
    tab.recipe.captions.saved(recipe, tab.pictures(data))
    (file,) = host.folders().output.rglob("*.txt")
    assert (file.parent.name, file.name, file.read_text(encoding="utf-8")) == ("a", "a.txt", "a square\n")


def test_without_a_picture_or_a_model_nothing_is_written(tab: Tab, heard: Heard, picture: Path) -> None:
    with pytest.raises(BadInput, match="no picture to caption"):
        captioned(tab, given(tab, (), by="CLIP"))
    with pytest.raises(BadInput, match="not there any more"):
        captioned(tab, given(tab, (picture,), by="BLIP"))
    with pytest.raises(BadInput, match="Threshold is 2"):
        captioned(tab, given(tab, (picture,), by=words.WD14, threshold=2))
    with pytest.raises(NotInstalled, match="the tagger's model is not there"):
        captioned(tab, given(tab, (picture,), by=words.WD14))
    assert heard == [] and not tab.parts.host.folders().output.exists()


def test_strangers_can_neither_download_nor_name_folders(tab: Tab, host: Any, picture: Path) -> None:
    host.guarded = Security(listening=True)
    with pytest.raises(BadInput, match="downloads nothing"):
        captioned(tab, given(tab, (picture,), download=True))
    with pytest.raises(BadInput, match="outside the folders"):
        captioned(tab, given(tab, (picture,), model="/usr"))


def test_a_recipe_that_reads_caption_files_stays_as_it_is() -> None:
    plain = builtin_recipes()["copier-quick-pocket"]
    reading = with_caption_files(plain)
    assert all(one.training.captions.policy is CaptionPolicy.FILES for one in reading.trainings())
    assert reading != plain and with_caption_files(reading) is reading
