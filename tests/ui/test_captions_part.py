"""Captions of the originals in the tab: by what the host gives, into a folder that the run reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: make test-ui runs these tests")

from copier.app.jobs import JobService
from copier.app.pair_preview import keep_picture
from copier.app.ports import Security
from copier.codec import builtin_recipes
from copier.errors import BadInput, NotInstalled
from copier.recipe import CaptionPolicy
from copier.ui import words
from copier.ui.parts import Parts
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
    return tab.recipe.captioned(data, tab.original.originals)


def test_the_host_says_captions_and_the_run_reads_them(tab: Tab, heard: Heard, picture: Path) -> None:
    other = picture.with_name("b.png")
    other.write_bytes(picture.read_bytes()[:-12] + b"\0" * 4 + picture.read_bytes()[-12:])
    data = given(tab, (picture, other), by="CLIP", policy="What differs between the pictures")
    answer = captioned(tab, data)
    assert [one.name for one in heard[0]] == ["a.png", "b.png"]
    folder = Path(answer[tab.form["run.captions"]]["value"])
    assert {one.name: one.read_text(encoding="utf-8") for one in folder.iterdir()} == {
        "a.txt": "a\n",
        "b.txt": "b\n",
    }
    assert "a.png" in answer[tab.recipe.captions.found]
    policies = {
        stage["training"]["captions"]["policy"]
        for stage in answer[tab.recipe.state]["recipe"]["stages"]
        if stage["kind"] == "train"
    }
    assert policies == {"files"}


def test_without_an_original_or_a_model_nothing_is_written(tab: Tab, heard: Heard, picture: Path) -> None:
    with pytest.raises(BadInput, match="no original to caption"):
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
