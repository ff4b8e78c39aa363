"""What is added to the host's own page: buttons, plot axes, the recipe in pictures' text, settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from copier.app.own_recipes import recipe_of_picture
from copier.app.settings import Settings
from copier.codec import RECIPE_KEY, builtin_recipes, recipe_to_json
from copier.errors import BadPicture
from copier.host.webui import axes, infotext, options
from copier.host.webui.axes import LORA, WEIGHT, tagged
from copier.host.webui.page import HostPage, received

from .fake_webui import A1111, FakeWebUi

RECIPE = builtin_recipes()["copier-quick-pocket"]


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWebUi:
    monkeypatch.setenv("COPIER_DATA", str(tmp_path / "data"))
    return FakeWebUi(A1111, tmp_path).install(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "data")


def plot(webui: FakeWebUi) -> Any:
    """The host's plot script, as it is loaded."""

    class AxisOption:
        def __init__(self, label: str, type: Any, apply: Any, **more: Any) -> None:
            self.label, self.type, self.apply, self.more = label, type, apply, more

    module = SimpleNamespace(AxisOption=AxisOption, axis_options=[AxisOption("Seed", int, None)])
    for name in ("xyz_grid.py", "xyz_grid.py", "other.py"):
        webui.scripts.scripts_data.append(SimpleNamespace(path=f"/webui/scripts/{name}", module=module))
    return module


def test_the_axes_are_added_once_however_often_the_page_is_built(webui: FakeWebUi) -> None:
    module = plot(webui)
    axes.add_axes()
    axes.add_axes()
    assert [one.label for one in module.axis_options] == ["Seed", LORA, WEIGHT]


def test_without_the_plot_nothing_is_added(webui: FakeWebUi) -> None:
    axes.add_axes()


def test_a_plot_of_loras_and_weights_draws_each_with_each(webui: FakeWebUi, doubles: ModuleType) -> None:
    for name in ("gray", "outline"):
        doubles.write_small_lora(webui.loras / f"{name}.safetensors")
    module = plot(webui)
    axes.add_axes()
    lora, weight = module.axis_options[1:]
    assert lora.more["choices"]() == ["None", "gray", "outline"]
    values = ["gray", "outline", "None"]
    lora.more["confirm"](None, values)
    with pytest.raises(RuntimeError, match="'grey'"):
        lora.more["confirm"](None, ["grey"])
    found = []
    for order in ((lora, weight), (weight, lora)):
        for name in values:
            for amount in (-1.0, 1.0):
                work = copy.copy(SimpleNamespace(prompt="a cat <lora:style:0.8>"))
                for axis in order:
                    axis.apply(work, *((name, values) if axis is lora else (amount, [-1.0, 1.0])))
                found.append(work.prompt)
    assert found[:6] == found[6:]
    assert found[:3] == [
        "a cat <lora:style:0.8> <lora:gray:-1>",
        "a cat <lora:style:0.8> <lora:gray:1>",
        "a cat <lora:style:0.8> <lora:outline:-1>",
    ]
    assert found[4] == "a cat <lora:style:0.8>"


@pytest.mark.parametrize(
    ("prompt", "name", "weight", "others", "expected"),
    [
        ("a <lora:x:1> <lora:y:0.5>", None, 2.0, set(), "a <lora:x:2> <lora:y:2>"),
        ("a <lora:x:1>", "x", None, {"x", "y"}, "a <lora:x:1>"),
        ("a <lora:x:1>", "y", 0.5, {"x", "y"}, "a <lora:y:0.5>"),
        ("a <lora:x:1:2>", "x", 0.25, {"x"}, "a <lora:x:0.25>"),
        ("a", None, 2.0, set(), "a"),
    ],
)
def test_a_prompt_is_tagged(
    prompt: str, name: str | None, weight: float | None, others: set[str], expected: str
) -> None:
    assert tagged(prompt, name=name, weight=weight, others=others).split() == expected.split()


def recipe_lora(webui: FakeWebUi, doubles: ModuleType, name: str = "gray") -> str:
    text = json.dumps(recipe_to_json(RECIPE))
    doubles.write_small_lora(webui.loras / f"{name}.safetensors", **{RECIPE_KEY: text})
    return text


def test_the_recipe_of_a_lora_in_the_prompt_goes_into_the_text_and_comes_back(
    webui: FakeWebUi, doubles: ModuleType, tmp_path: Path
) -> None:
    doubles.write_small_lora(webui.loras / "plain.safetensors")
    recipe_lora(webui, doubles)
    work = SimpleNamespace(
        prompt="", all_prompts=["a <lora:none:1> <lora:plain:1> <lora:gray:0.7>"], extra_generation_params={}
    )
    infotext.add_recipe(work)
    written = work.extra_generation_params["Copier recipe"]
    assert "\n" not in written
    assert json.loads(written) == recipe_to_json(RECIPE)
    # The host writes a value that has commas as a JSON string.
    text = f"a cat\nSteps: 2, Seed: 1, Copier recipe: {json.dumps(written)}, Version: v1.10.1"
    picture = tmp_path / "drawn.png"
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", text)
    Image.new("RGB", (64, 64)).save(picture, pnginfo=info)
    assert recipe_of_picture(picture, []).recipe == RECIPE


def test_no_recipe_is_written_without_such_a_lora_or_where_it_is_switched_off(
    webui: FakeWebUi, doubles: ModuleType
) -> None:
    recipe_lora(webui, doubles)
    for prompt, value in (("a cat", None), ("a <lora:gray:1>", False)):
        if value is not None:
            webui.options.data[options.IN_INFOTEXT] = value
        work = SimpleNamespace(prompt=prompt, all_prompts=None, extra_generation_params={})
        infotext.add_recipe(work)
        assert work.extra_generation_params == {}


def test_a_failure_while_the_recipe_is_written_does_not_stop_the_host(
    webui: FakeWebUi, caplog: pytest.LogCaptureFixture
) -> None:
    infotext.add_recipe(None)
    assert "could not be written" in caplog.text


def built_page(webui: FakeWebUi) -> Any:
    """A page of the host, built as A1111 does: gallery and buttons first, then the texts."""
    page = HostPage()
    for tab in ("txt2img", "img2img", "extras"):
        for name in ("{}_gallery", "{}_send_to_extras", "generation_info_{}", "{}_prompt"):
            page.component(f"<{name.format(tab)}>", elem_id=name.format(tab))
    page.component("no id")
    return page


def test_each_gallery_has_two_buttons_and_they_are_linked(webui: FakeWebUi, settings: Settings) -> None:
    links = built_page(webui).links(settings)
    found = [(one.button.elem_id, one.gallery, one.infotexts, one.target) for one in links.arrivals]
    assert found == [
        (f"copier_{tab}_to_{target}", f"<{tab}_gallery>", f"<generation_info_{tab}>", target)
        for tab in ("txt2img", "img2img")
        for target in ("a", "b")
    ]
    assert (links.inpaint, links.prompt) == ("the inpaint picture", "<txt2img_prompt>")


def test_a_host_that_calls_its_parts_otherwise_gets_no_buttons(webui: FakeWebUi, settings: Settings) -> None:
    webui.modules["modules.infotext_utils"].paste_fields.clear()
    page = HostPage()
    page.component("<x>", elem_id="txt2img_send_to_extras")
    links = page.links(settings)
    assert (list(links.arrivals), links.inpaint, links.prompt) == ([], None, None)


def test_a_picture_of_the_gallery_comes_with_its_values_and_recipe(
    webui: FakeWebUi, settings: Settings
) -> None:
    webui.parsed = {
        "Prompt": "a cat", "Negative prompt": "", "Seed": "7", "Steps": "20", "CFG scale": "6.5",
        "Size-1": "128", "Size-2": "130", "Copier recipe": "{}",
    }  # fmt: skip
    gallery = [Image.new("RGB", (64, 64), colour) for colour in ("black", "red", "blue")]
    texts = json.dumps({"index_of_first_image": 1, "infotexts": ["grid", "first", "second"]})
    red, blue = (255, 0, 0), (0, 0, 255)
    wanted = ((-1, red, "first"), (0, red, "first"), (2, blue, "second"), (9, red, "first"))
    for index, colour, text in wanted:
        found = received(gallery, texts, index, settings)
        with Image.open(found.picture) as image:
            assert image.getpixel((0, 0)) == colour
            assert image.text["parameters"] == text
    assert settings.pictures in found.picture.parents
    assert found.recipe == "{}"
    assert found.values == {
        "original.prompt": "a cat", "original.negative": "", "original.seed": 7, "original.steps": 20,
        "original.guidance": 6.5, "original.width": 0, "original.height": 0,
    }  # fmt: skip


@pytest.mark.parametrize("gallery", [[], None, ["elsewhere"], [None]])
def test_what_the_host_did_not_draw_is_not_taken(
    webui: FakeWebUi, settings: Settings, gallery: Any
) -> None:
    with pytest.raises(BadPicture):
        received(gallery, "not json", 0, settings)
    assert not settings.pictures.exists()


def test_settings_come_from_the_hosts_page_then_the_environment(webui: FakeWebUi, tmp_path: Path) -> None:
    options.add_options()
    assert set(webui.options.labels) == {*options.FOLDERS, options.IN_INFOTEXT}
    assert webui.options.restricted_opts == set(options.FOLDERS)
    assert options.settings_of_host().data == tmp_path / "data"
    assert options.output_folder() == tmp_path / "outputs" / "copier"
    webui.options.data |= {options.DATA: str(tmp_path / "mine"), options.OUTPUT: str(tmp_path / "out")}
    assert options.settings_of_host().data == tmp_path / "mine"
    assert options.output_folder() == tmp_path / "out"


def test_code_is_run_from_folders_of_the_hosts_page_where_no_stranger_names_them(
    webui: FakeWebUi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options.add_options()
    mine, machines = tmp_path / "sd-scripts", tmp_path / "machines.yaml"
    webui.options.data |= {options.SD_SCRIPTS: str(mine), options.ACCELERATE: str(machines)}
    found = options.settings_of_host()
    assert (found.sd_scripts_dir, found.accelerate) == (mine, machines)
    webui.cmd_opts.listen = True
    monkeypatch.setenv("COPIER_SD_SCRIPTS_DIR", str(tmp_path / "theirs"))
    found = options.settings_of_host()
    assert (found.sd_scripts_dir, found.accelerate) == (tmp_path / "theirs", None)
    webui.cmd_opts.enable_insecure_extension_access = True
    assert options.settings_of_host().sd_scripts_dir == mine


def test_accounts_of_the_host_are_those_of_the_api(webui: FakeWebUi) -> None:
    pytest.importorskip("starlette", reason="starlette is not installed: make test-ui runs these tests")
    from copier.host.webui.accounts import guard_of_host

    webui.cmd_opts.api_auth = "bob:word, eve:p:q"
    webui.cmd_opts.cors_allow_origins = "https://a.example, https://b.example"
    guard = guard_of_host()
    assert guard.accounts == (("ann", "secret"), ("bob", "word"), ("eve", "p:q"))
    assert guard.origins == ("https://a.example", "https://b.example")
