"""The tab as it is built, on whichever gradio is installed; no browser."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: make test-ui runs these tests")

from copier.app.jobs import JobKind, JobService
from copier.app.pair_preview import keep_picture
from copier.codec import builtin_recipes
from copier.errors import OutOfMemory
from copier.fields import FIELDS
from copier.ui import gradio_versions, words
from copier.ui.gradio_versions import values_in
from copier.ui.leaves import elem_id
from copier.ui.parts import Parts
from copier.ui.picture_sets import picture_sets
from copier.ui.recipe_form import LEAVES
from copier.ui.run_section import change_words
from copier.ui.tab import Tab, build_tab
from copier.ui.visible_texts import visible_texts
from tests.ui.conftest import fresh

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors")


@pytest.fixture
def parts(host: Any, settings: Any) -> Parts:
    return Parts(host, JobService(settings), settings)


@pytest.fixture
def components(parts: Parts) -> list[dict[str, Any]]:
    config: dict[str, Any] = build_tab(parts).get_config_file()
    return list(config["components"])


def test_building_the_tab_imports_nothing_heavy() -> None:
    probe = f"""
import json, sys
from pathlib import Path
import copier.ui.tab, copier.ui.standalone
from copier.app.jobs import JobKind, JobService
from copier.app.settings import Settings
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_every_field_of_the_table_has_a_component_with_its_help_and_unit(
    components: list[dict[str, Any]],
) -> None:
    shown = {one["props"].get("elem_id"): one["props"] for one in components}
    covered = set()
    for path, leaf in LEAVES.items():
        props = shown[elem_id(path)]
        assert props["label"] == leaf.field.label and leaf.field.help in props["info"], path
        assert leaf.field.unit in props["info"], path
        covered |= set(leaf.specs)
    everything = " ".join(str(one["props"].get("value")) for one in components if one["type"] == "html")
    for spec, known in FIELDS.items():
        for name, field in known.items():
            beneath = field.help in everything or any(
                field.help in str(one["props"].get("info")) for one in components
            )
            assert (spec, name) in covered or beneath, (spec, name)


def test_ids_are_unique_and_ours(components: list[dict[str, Any]]) -> None:
    ids = [one["props"]["elem_id"] for one in components if one["props"].get("elem_id")]
    assert len(ids) == len(set(ids)) > len(LEAVES)
    assert all(one.startswith("copier_") for one in ids)
    named = (
        "button",
        "textbox",
        "number",
        "dropdown",
        "radio",
        "checkbox",
        "slider",
        "file",
        "html",
        "gallery",
    )
    nameless = [one["type"] for one in components if one["type"] in named and not one["props"].get("elem_id")]
    assert nameless == []


def test_nothing_is_kept_in_the_hosts_ui_config(parts: Parts) -> None:
    assert all(block.do_not_save_to_config for block in build_tab(parts).blocks.values())


def test_a_page_keeps_its_values_itself_and_junk_counts_as_nothing(parts: Parts) -> None:
    import gradio as gr

    seen: list[Any] = []
    with gr.Blocks() as blocks:
        button, plain = gr.Button(), gr.Textbox()
        names = gradio_versions.kept(["a"], elem_id="copier_names")

        def handler(data: dict[Any, Any]) -> dict[Any, Any]:
            seen.append((data[names], data[plain]))
            return {names: [*data[names], "ü"], plain: "x"}

        gradio_versions.listen(button, "click", handler, {names, plain}, {names, plain})
        gradio_versions.listen_ordered(
            button, "click", lambda first, second: handler({names: first, plain: second}),
            [names, plain], {names, plain}, script="",
        )  # fmt: skip
    functions = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
    by_dict, in_order = [one.fn for one in functions if one.fn is not None]
    for answer in (by_dict({names: '["x"]', plain: "[]"}), in_order('["x"]', "[]")):
        assert json.loads(answer[names]) == ["x", "ü"] and answer[plain] == "x"
    for junk in (None, "", "{", '"text"', "[" * 100_000):
        by_dict({names: junk, plain: ""})
    assert seen == [(["x"], "[]")] * 2 + [(["a"], "")] * 5
    assert not [one for one in build_tab(parts).blocks.values() if isinstance(one, gr.State)]


def test_a_page_cannot_name_pictures_that_it_was_never_given(parts: Parts, picture: Path) -> None:
    inside = parts.settings.data / "pictures" / "a.png"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(picture.read_bytes())
    link = inside.with_name("link.png")
    link.symlink_to(picture)
    given = [str(inside), str(picture), f"{inside.parent}/../../../a.png", str(link), "x\0", 7, "/nowhere"]
    assert parts.pictures(given) == (inside,)


def test_a_tab_is_built_without_a_look_at_the_hosts_files(parts: Parts, host: Any) -> None:
    """A WebUI builds it while it starts: with many checkpoints that would take long."""

    def asked() -> Any:
        raise AssertionError("the host was asked for its files")

    current = host.current_checkpoint()
    host.current_checkpoint = lambda: current
    host.checkpoints = host.vaes = host.loras = asked
    assert build_tab(parts).blocks


def test_a_page_that_was_opened_gets_every_list_of_the_host(parts: Parts) -> None:
    import gradio as gr

    with gr.Blocks():
        tab = Tab(parts)
        for part in (tab.original, tab.tools):
            assert set(part.lists()) == part.listed()
        opened = tab.opened({})
    paths = ("tools.merge.checkpoint", "tools.combine.lora4", "run.lora3", "result.checkpoint", "run.vae")
    assert {tab.form[path] for path in paths} <= set(opened)


def test_every_handler_takes_a_dict_and_may_give_only_what_it_names(parts: Parts) -> None:
    """The handlers of a fresh page, called with what its components hold."""
    import gradio as gr

    with gr.Blocks():
        tab = Tab(parts)
        form = {one: fresh(one) for one in {*tab.whole_form, *tab.form.every()}}
        checked = tab.checked(form)
        assert "no original" in str(checked[tab.run.problems])
        seen = tab.observe({tab.run.watched: "", tab.run.sent: {}, tab.tools.job: "", tab.setup.job: ""})
        outputs = tab.run.outputs() | tab.tools.outputs() | tab.setup.outputs()
        assert set(seen) <= outputs | {tab.original.line}
        again = tab.observe(
            {tab.run.watched: "", tab.run.sent: seen[tab.run.sent], tab.tools.job: "", tab.setup.job: ""}
        )
        assert set(again) == {tab.run.sent, tab.run.pulse}


def test_a_page_of_an_earlier_process_understands_the_answers() -> None:
    """Places of inputs and outputs are the same in every process, whatever the order of its sets."""
    probe = """
import json
from pathlib import Path
from copier.app.jobs import JobKind, JobService
from copier.app.settings import Settings
from copier.ui.parts import Parts
from copier.ui.tab import build_tab
from tests.ui.conftest import PlainHost
settings = Settings(Path("nowhere"))
config = build_tab(Parts(PlainHost(Path("nowhere")), JobService(settings), settings)).get_config_file()
print(json.dumps([[one["inputs"], one["outputs"]] for one in config["dependencies"]]))
"""
    runs = [
        subprocess.run([sys.executable, "-c", f"{pad}{probe}"], cwd=ROOT, capture_output=True, check=True)
        for pad in ("", "waste = [object() for _ in range(12345)]")
    ]
    first, second = (json.loads(run.stdout.splitlines()[-1]) for run in runs)
    assert first == second and len(first) > 30


def test_the_hosts_keyboard_handler_finds_its_buttons(components: list[dict[str, Any]]) -> None:
    """A1111 presses buttons of the open tab by the ends of their ids, and fails where there is none."""
    ids = [one["props"]["elem_id"] for one in components if one["type"] == "button"]
    first = {
        end: next(one for one in ids if one.endswith(end)) for end in ("_generate", "_interrupt", "_skip")
    }
    assert first["_generate"] == "copier_original__generate"
    assert first["_interrupt"] == "copier_original__interrupt"


def test_a_failed_job_offers_what_would_help_in_words(host: Any, settings: Any) -> None:
    import gradio as gr

    def fails(*_: Any) -> Any:
        raise OutOfMemory(
            "too little memory", ["training.batch_size=1", "training.gradient_checkpointing=true"]
        )

    jobs = JobService(settings, kinds=[JobKind("fails", fails)])
    jobs.submit_work("fails", {})
    jobs.work()
    with gr.Blocks():
        tab = Tab(Parts(host, jobs, settings))
        seen = tab.observe({tab.run.watched: "", tab.run.sent: {}, tab.tools.job: "", tab.setup.job: ""})
    shown = [seen[one] for one in tab.run.offers]
    assert [one["value"] for one in shown if one["visible"]] == [
        "Again", "Again with batch size 1", "Again with gradient checkpointing",
    ]  # fmt: skip
    assert "too little memory" in seen[tab.run.status]
    assert change_words("training.unheard_of=1") == "training.unheard_of=1"


def test_a_page_that_watches_a_job_that_ended_says_which_one_runs(host: Any, settings: Any) -> None:
    import gradio as gr

    goes_on, began = threading.Event(), threading.Event()

    def waits(*_: Any) -> Any:
        began.set()
        goes_on.wait(60)
        return {}

    jobs = JobService(settings, kinds=[JobKind("ends", lambda *_: {}), JobKind("waits", waits)])
    ended = jobs.submit_work("ends", {}, title="First")
    jobs.work()
    with gr.Blocks():
        tab = Tab(Parts(host, jobs, settings))
    asked = {tab.run.watched: ended.id, tab.run.sent: {}, tab.tools.job: "", tab.setup.job: ""}
    assert "at work" not in tab.observe(asked)[tab.run.status]
    jobs.submit_work("waits", {}, title="Second")
    jobs.start()
    try:
        assert began.wait(60)
        assert "Second is at work now" in tab.observe(asked)[tab.run.status]
    finally:
        goes_on.set()
        jobs.close()


def test_every_recipe_has_the_places_for_what_it_is_given_and_may_start_then(
    parts: Parts, picture: Path
) -> None:
    import gradio as gr

    other = picture.with_name("other.png")
    Image.new("RGB", (128, 128), "green").save(other)
    kept = [str(keep_picture(one, parts.settings)) for one in (picture, other)]
    with gr.Blocks():
        tab = Tab(parts)
    page = {one: fresh(one) for one in tab.whole_form}
    for recipe in builtin_recipes().values():
        if not recipe.name.endswith("-pocket"):
            continue
        sets = picture_sets(recipe)
        answer = tab.with_recipe(tab.recipe.load)(page | {tab.recipe.choose: recipe.title})
        assert set(answer) <= tab.recipe.outputs() | tab.placed()
        shown = [answer[one]["visible"] for one in (tab.original.place, tab.edited.place, tab.edited.change)]
        assert shown == [bool(sets.first), bool(sets.second or sets.changed), bool(sets.changed)]
        given = page | values_in(answer)
        assert (words.READY in str(tab.checked(given)[tab.run.problems])) is (not sets.first), recipe.name
        given |= {tab.original.originals: kept[:1] if sets.first else []}
        given |= {tab.edited.edited: kept[1:] if sets.second else []}
        assert words.READY in str(tab.checked(given)[tab.run.problems]), recipe.name
        looks = tab.look(given)
        assert set(looks) == tab.looked_at()
        assert (words.VIEWS in str(looks[tab.edited.views])) is (sets.views is not None)
        assert ("other.png" in str(looks[tab.edited.view])) is bool(sets.second)


@pytest.mark.parametrize("language", ["ja_JP", "zh_TW", "zh_CN"])
def test_every_text_of_the_tab_is_translated(parts: Parts, language: str) -> None:
    blocks = build_tab(parts)
    texts = visible_texts(blocks.get_config_file())
    table = json.loads((ROOT / "localizations" / f"{language}.json").read_text(encoding="utf-8"))
    assert sorted(texts - set(table)) == []
    assert sorted(set(table) - texts) == []
    foreign = [text for text in table.values() if any(ord(letter) > 0x2E80 for letter in text)]
    assert len(foreign) > 0.93 * len(table)
