"""The tab connected with a host's page: pictures that arrive, A that leaves, the LoRA that is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: make test-ui runs these tests")

import gradio as gr

from copier.app.jobs import JobService
from copier.app.pair_preview import keep_picture
from copier.app.settings import Settings
from copier.codec import builtin_recipes, recipe_to_json
from copier.errors import BadPicture
from copier.ui import links as linking
from copier.ui.gradio_versions import listen_ordered
from copier.ui.link_values import A, Arrival, B, Links, Received
from copier.ui.parts import Parts
from copier.ui.recipe_form import first_stage
from copier.ui.request_form import OWN_EDIT
from copier.ui.tab import build_tab
from tests.ui.conftest import fresh

RECIPE = builtin_recipes()["copier-quick"]


class Wired:
    """A tab linked with a page of a gallery, its texts, two buttons, an inpaint picture and a prompt."""

    def __init__(self, parts: Parts, received: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[Any, tuple[Any, list[Any], Any, str]] = {}
        self.scripts: dict[Any, str] = {}

        def ordered(one: Any, event: str, handler: Any, inputs: Any, outputs: Any, *, script: str) -> None:
            self.calls[one] = handler, list(inputs), set(outputs), script

        def alone(one: Any, event: str, script: str) -> None:
            self.scripts[one] = script

        monkeypatch.setattr(linking, "listen_ordered", ordered)
        monkeypatch.setattr(linking, "listen_script", alone)
        wire = linking.wire_links
        monkeypatch.setattr("copier.ui.tab.wire_links", lambda tab, links: self.keep(tab, wire(tab, links)))
        with gr.Blocks():
            self.gallery, self.texts = gr.Gallery(), gr.Textbox()
            self.a, self.b = gr.Button("A"), gr.Button("B")
            self.inpaint, self.prompt = gr.Image(), gr.Textbox()
        buttons = ((self.a, A), (self.b, B))
        arrivals = [Arrival(button, self.gallery, self.texts, target) for button, target in buttons]
        build_tab(parts, links=Links(received, arrivals, self.inpaint, self.prompt))

    def keep(self, tab: Any, _: Any) -> None:
        self.tab = tab

    def click(self, button: Any, values: dict[Any, Any]) -> dict[Any, Any]:
        """What the handler answers; components without a value keep their first one."""
        handler, inputs, outputs, _ = self.calls[button]
        answer = dict(handler(*(values.get(one, fresh(one)) for one in inputs)))
        assert set(answer) <= outputs, "an answer for what is no output"
        return answer


@pytest.fixture
def parts(host: Any, settings: Settings) -> Parts:
    return Parts(host, JobService(settings), settings)


@pytest.fixture
def other(tmp_path: Path, settings: Settings) -> Path:
    Image.new("RGB", (128, 128), "gray").save(tmp_path / "b.png")
    return keep_picture(tmp_path / "b.png", settings)


@pytest.fixture
def kept(picture: Path, settings: Settings) -> Path:
    """The picture in the data folder: a page can name no other."""
    return keep_picture(picture, settings)


def test_a_picture_becomes_the_original_with_its_prompt_and_recipe(
    parts: Parts, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def received(gallery: Any, texts: Any, index: int) -> Received:
        asked.append((gallery, texts, index))
        recipe = json.dumps(recipe_to_json(RECIPE))
        return Received(kept, {"original.prompt": "a cat", "unknown.path": 1}, recipe)

    wired = Wired(parts, received, monkeypatch)
    tab = wired.tab
    answer = wired.click(wired.a, {wired.gallery: "pictures", wired.texts: "texts", wired.a: 2})
    assert asked == [("pictures", "texts", 2)]
    assert answer[tab.original.originals] == [str(kept)]
    assert answer[tab.form["original.prompt"]]["value"] == "a cat"
    assert answer[tab.recipe.state]["recipe"] == recipe_to_json(RECIPE)
    assert answer[tab.recipe.choose]["value"] == RECIPE.title
    assert "data:image" in answer[tab.edited.view], "the pair is shown"
    assert "selected_gallery_index()" in wired.calls[wired.a][3]
    assert "copierShow" in wired.scripts[wired.a]


def test_the_list_of_recipes_shows_no_other_one_than_that_which_came_along(
    parts: Parts, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {**recipe_to_json(RECIPE), "name": "theirs", "title": "A recipe of somebody else"}
    wired = Wired(parts, lambda *_: Received(kept, recipe=json.dumps(recipe)), monkeypatch)
    assert wired.click(wired.a, {})[wired.tab.recipe.choose]["value"] is None


def test_the_pair_is_shown_as_the_recipe_that_came_along_trains_on_it(
    parts: Parts, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the form has a recipe without pictures, which shows no pair."""
    received = Received(kept, recipe=json.dumps(recipe_to_json(RECIPE)))
    wired = Wired(parts, lambda *_: received, monkeypatch)
    erase = builtin_recipes()["erase"]
    assert not erase.changed
    state = {"recipe": recipe_to_json(erase), "stage": first_stage(erase)}
    answer = wired.click(wired.a, {wired.tab.recipe.state: state})
    assert answer[wired.tab.edited.view].count("data:image") >= 2


def test_a_picture_becomes_the_edited_one_beside_the_original(
    parts: Parts, kept: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = Wired(parts, lambda *_: Received(other, {"original.prompt": "not taken"}), monkeypatch)
    tab = wired.tab
    answer = wired.click(wired.b, {wired.b: "🅱️", tab.original.originals: [str(kept)]})
    assert answer[tab.edited.edited] == [str(other)]
    assert answer[tab.edited.edit]["value"] == OWN_EDIT
    assert answer[tab.edited.view].count("data:image") >= 2
    assert tab.original.originals not in answer
    assert tab.form["original.prompt"] not in answer


@pytest.mark.parametrize("target", ["a", "b"])
def test_what_cannot_be_taken_is_said_where_it_would_have_come(
    parts: Parts, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def received(*_: Any) -> Received:
        raise BadPicture("there is no picture in the gallery yet")

    wired = Wired(parts, received, monkeypatch)
    place = wired.tab.original.said if target == "a" else wired.tab.edited.said
    answer = wired.click(getattr(wired, target), {})
    assert list(answer) == [place]
    assert "no picture in the gallery" in answer[place]


def test_a_goes_to_inpainting(parts: Parts, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(parts, None, monkeypatch)
    original = wired.tab.original
    assert original.to_inpaint.visible
    answer = wired.click(original.to_inpaint, {original.originals: [str(kept)]})
    assert answer[wired.inpaint].size == (128, 128)
    assert "switch_to_inpaint" in wired.calls[original.to_inpaint][3]
    assert "no original yet" in wired.click(original.to_inpaint, {})[original.said]


@pytest.mark.parametrize(
    ("name", "weight", "prompt", "expected"),
    [
        ("gray", 0.7, "a cat ", "a cat <lora:gray:0.7>"),
        ("gray", None, "", "<lora:gray:1>"),
        ("gray", 99, None, "<lora:gray:1>"),
    ],
)
def test_an_installed_lora_goes_into_the_prompt(
    parts: Parts, name: str, weight: Any, prompt: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wired = Wired(parts, None, monkeypatch)
    result = wired.tab.run.result
    values = {wired.prompt: prompt, result.installed_as: name, wired.tab.form["result.weight"]: weight}
    assert wired.click(result.use, values) == {wired.prompt: expected}


def test_without_a_host_there_are_no_such_buttons(parts: Parts) -> None:
    found = {one.elem_id: one for one in build_tab(parts).blocks.values() if getattr(one, "elem_id", None)}
    assert not found["copier_original__to_inpaint"].visible
    assert not found["copier_result__use"].visible


def test_a_handler_gets_as_many_values_as_it_has_inputs() -> None:
    with gr.Blocks() as blocks:
        button, state, text, outcome = gr.Button("x"), gr.State(1), gr.Textbox(), gr.HTML()
        inputs = [button, state, text]
        listen_ordered(button, "click", lambda *_: {}, inputs, {outcome, text}, script="one();")
    found = [one["js"] for one in blocks.get_config_file()["dependencies"] if one.get("js")]
    assert len(found) == 1
    assert "one();" in found[0] and "given.slice(0, 3)" in found[0]
