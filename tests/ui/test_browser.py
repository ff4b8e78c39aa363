"""The tab in a real browser, trained for real on the pocket checkpoint; on whichever gradio is installed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.ui.running import Open, Program, until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STOPS = int(os.environ.get("COPIER_TEST_STOPS", "2"))
KILLS = int(os.environ.get("COPIER_TEST_KILLS", "1"))


@pytest.fixture(scope="module")
def lora(program: Program, browser: Any) -> Path:
    """The LoRA that the newcomer's path installed, for the tests of the tools."""
    place = program.loras / "Grau für alle.safetensors"
    if not place.is_file():
        pytest.skip("the newcomer's path installed none")
    return place


def children_gone(program: Program) -> None:
    until(lambda: program.children() == [], "the children of a stopped job are gone")


def test_a_newcomer_gets_a_lora(program: Program, opened: Open) -> None:
    tab = opened()
    for step in ("Original", "Edited", "Start"):
        assert step in tab.text("intro")
    tab.waits_for("#copier_run__start[disabled]")
    assert "no original yet" in tab.text("run__problems")

    tab.draws(count=2)
    tab.page.locator("#copier_original__gallery img").nth(1).click()
    tab.says("original__view", "seed2")
    tab.pick("edited__edit", "Grayscale")
    tab.says("edited__view", "changed")
    tab.short_recipe(2000)

    tab.press("run__start")
    tab.state("running")
    tab.waits_for("#copier_run__status .copier-progress")
    tab.page.reload()
    tab.state("running")
    tab.waits_for("#copier_run__curve svg polyline")
    tab.press("run__interrupt")
    tab.state("stopped")
    assert [job["state"] for job in program.jobs()] == ["stopped"]
    children_gone(program)

    tab.draws()
    tab.short_recipe()
    tab.state("done", tab.starts(program))
    tab.says("result__figures", "Gate: is it A every time?")
    tab.waits_for("#copier_result__report iframe")
    tab.fill("result__name", "../outside")
    tab.press("result__install")
    tab.says("result__said", "leave out")
    assert not list(program.folder.rglob("outside*"))
    tab.fill("result__name", "Grau für alle")
    tab.fill("result__activation", "grey")
    tab.press("result__install")
    tab.says("result__said", "Installed")
    card = json.loads((program.loras / "Grau für alle.json").read_text(encoding="utf-8"))
    assert card["activation text"] == "grey" and card["sd version"] == "SD1"
    assert (program.loras / "Grau für alle.safetensors").is_file()
    assert Image.open(program.loras / "Grau für alle.png").size == (128, 128)
    tab.press("result__install")
    tab.says("result__said", "choose another name")
    assert program.partial_files() == []


def test_what_is_drawn_anew_is_chosen_by_a_click_where_the_one_before_was(opened: Open) -> None:
    tab = opened()
    tab.draws(count=2)
    second = tab.page.locator("#copier_original__gallery button img").nth(1)
    second.click()
    tab.says("original__view", "seed2")
    tab.fill("original__seed", "5")
    tab.press("original__generate")
    tab.says("original__view", "seed5")
    second.click()
    tab.says("original__view", "seed6")


def test_two_pages_see_the_same_job_and_closing_one_stops_nothing(
    program: Program, opened: Open, picture: Path
) -> None:
    first = opened()
    first.given(picture)
    first.short_recipe(3000)
    first.press("run__start")
    first.state("running")
    second = opened()
    second.state("running")
    first.page.context.close()
    before = program.jobs()[-1]["id"]
    second.waits_for("#copier_run__curve svg polyline")
    assert program.jobs()[-1]["id"] == before and program.jobs()[-1]["state"] == "running"
    second.press("run__interrupt")
    second.state("stopped")
    second.waits_for("#copier_run__offer1:visible")
    assert second.text("run__offer1") == "Go on"
    children_gone(program)


def test_own_pictures_are_compared_before_anything_is_trained(opened: Open, tmp_path: Path) -> None:
    a, b = tmp_path / "scene.png", tmp_path / "scene-b.png"
    image = Image.radial_gradient("L").resize((192, 128)).convert("RGB")
    image.save(a)
    ImageOps.mirror(image.crop((64, 32, 128, 96))).save(tmp_path / "part.png")
    changed = image.copy()
    changed.paste((200, 30, 30), (64, 32, 128, 96))
    changed.save(b)
    tab = opened()
    tab.section("Drop one in")
    tab.drop("original__files", a)
    tab.says("original__view", "scene.png")
    tab.pick("edited__edit", "A picture of my own")
    tab.says("run__problems", "no edited picture yet")
    tab.drop("edited__files", b)
    tab.waits_for("#copier_edited__view .copier-swipe")
    share = 100 * (64 * 64) / (192 * 128)
    tab.says("edited__view", f"{share:.1f} %")
    handle = tab.page.locator("#copier_edited__view .copier-swipe input")
    handle.fill("25")
    assert "25%" in (tab.page.locator("#copier_edited__view .copier-swipe").get_attribute("style") or "")
    tab.is_ready()


def test_a_file_that_takes_long_to_send_arrives_though_the_page_asks_meanwhile(
    opened: Open, tmp_path: Path
) -> None:
    """On gradio 3 an answer that came meanwhile made it forget the file."""
    noise = random.Random(1).randbytes(640 * 640 * 3)
    Image.frombytes("RGB", (640, 640), noise).save(tmp_path / "large.png")
    tab = opened()
    tab.section("Drop one in")
    line = tab.page.context.new_cdp_session(tab.page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 600_000}
    line.send("Network.emulateNetworkConditions", slow)
    tab.fill("train__training__steps", "123")  # which has the form checked in half a second
    tab.drop("original__files", tmp_path / "large.png")
    tab.says("original__view", "large.png")


def test_a_wrong_value_is_said_beside_its_field_and_nothing_starts(
    program: Program, opened: Open, picture: Path
) -> None:
    count = len(program.jobs())
    tab = opened()
    tab.unfold("Captions")
    tab.press("captions__write")
    tab.says("captions__said", "no picture to caption")
    tab.fill("original__count", "99")
    tab.press("original__generate")
    tab.says("original__said", "give a whole number from 1 to 16")
    tab.given(picture)
    tab.is_ready()
    for name, value, what in (
        ("train__training__steps", "0", "smallest allowed value is 1"),
        ("train__training__rank", "", "give a number"),
        ("train__training__alpha", "99999", "largest allowed value is 4096"),
    ):
        before = tab.page.input_value(f"#copier_{name} input")
        tab.fill(name, value)
        tab.says(name, what)
        tab.says("run__problems", what)
        tab.waits_for("#copier_run__start[disabled]")
        tab.waits_for("#copier_run__queue[disabled]")
        tab.fill(name, before)
        tab.is_ready()
        tab.page.wait_for_selector("#copier_tab .copier-beside", state="detached")
    tab.unfold("Save, load, delete")
    tab.fill("preset__name", "../outside")
    tab.press("preset__save")
    tab.says("preset__said", "leave out")
    tab.press("preset__delete")
    tab.says("preset__said", "stay as they are")
    tab.press("history__compare")
    tab.says("history__said", "no run is chosen to compare with")
    tab.section("Tools")
    tab.press("tools__difference__go")
    tab.says("tools__said", "no LoRA is chosen")
    tab.section("Setup")
    tab.fill("setup__keep", "-1")
    tab.press("setup__prune")
    tab.says("setup__pruned", "number of days")
    assert len(program.jobs()) == count
    assert not list(program.folder.glob("outside*")) and not list(program.data.glob("outside*"))


def test_the_page_serves_no_files_of_the_user(program: Program, opened: Open) -> None:
    page = opened().page
    (program.folder / "mine.txt").write_text("nobody else's business", encoding="utf-8")
    kept = next(program.data.glob("jobs/*/job.json"))
    for place in (
        program.folder / "mine.txt",
        kept,
        Path("mine.txt"),
        program.data / "presets" / "short.json",
    ):
        assert page.request.get(f"{program.address}file={place}").status in (403, 404)


def test_each_tool_writes_its_file(program: Program, opened: Open, lora: Path) -> None:
    tab = opened()
    tab.section("Tools")

    def go(tool: str, name: str, folder: Path) -> None:
        tab.fill(f"tools__{tool}__name", name)
        tab.press(f"tools__{tool}__go")
        tab.waits_for(f'#copier_tools__status [data-state="done"]:has-text("{name}")')
        assert (folder / f"{name}.safetensors").is_file()

    tab.section("Resize")
    tab.choose("tools__resize__lora", lora.stem)
    tab.fill("tools__resize__rank", "2")
    go("resize", "thin", program.loras)
    tab.section("Difference")
    tab.press("tools__refresh")
    tab.choose("tools__difference__minuend", lora.stem)
    tab.choose("tools__difference__subtrahend", "thin")
    go("difference", "apart", program.loras)
    tab.section("Combine")
    tab.choose("tools__combine__lora1", "thin")
    tab.choose("tools__combine__lora2", "apart")
    go("combine", "both", program.loras)
    tab.section("Merge")
    tab.choose("tools__merge__checkpoint", "pocket")
    tab.choose("tools__merge__lora1", "both")
    go("merge", "merged", program.folder / "checkpoints")
    tab.section("Extract")
    tab.choose("tools__extract__tuned", "merged")
    tab.choose("tools__extract__base", "copier-pocket")
    go("extract", "extracted", program.loras)
    tab.section("Inspect")
    tab.choose("tools__inspect__lora", "extracted")
    tab.press("tools__inspect__go")
    tab.says("tools__found", "extracted.safetensors")
    tab.section("Resize")
    tab.fill("tools__resize__name", "thin")
    tab.press("tools__resize__go")
    tab.says("tools__said", "exists")


def test_recipes_are_saved_renamed_loaded_and_deleted(program: Program, opened: Open, lora: Path) -> None:
    tab = opened()
    tab.unfold("Save, load, delete")
    tab.fill("train__training__steps", "77")
    tab.fill("preset__name", "Meine")
    tab.press("preset__save")
    tab.says("preset__said", "Saved as Meine")
    saved = json.loads((program.data / "presets" / "Meine.json").read_text(encoding="utf-8"))
    assert saved["stages"][0]["training"]["steps"] == 77
    tab.fill("preset__name", "Deine")
    tab.press("preset__rename")
    tab.says("preset__said", "Renamed to Deine")
    tab.press("preset__delete")
    tab.says("preset__said", "Deleted Deine")
    assert not (program.data / "presets" / "Deine.json").exists()
    tab.drop("preset__upload", lora)
    tab.says("preset__said", "Loaded short")
    assert tab.page.input_value("#copier_train__training__steps input") == "6"
    tab.pick("preset__stage", "gate")
    tab.page.wait_for_selector("#copier_train__training__steps", state="hidden")
    tab.pick("preset__stage", "copier")
    tab.waits_for("#copier_train__training__steps:visible")


def test_an_earlier_run_is_used_again_and_compared(program: Program, opened: Open, lora: Path) -> None:
    tab = opened()
    done = next(job for job in reversed(program.jobs()) if job["state"] == "done" and job["kind"] == "run")
    other = next(job for job in program.jobs() if job["state"] == "stopped")
    tab.choose("history__job", done["id"])
    tab.press("history__use")
    tab.says("history__said", "settings of")
    tab.says("original__view", ".png")
    tab.is_ready()
    tab.choose("history__other", other["id"])
    tab.press("history__compare")
    tab.says("history__said", "steps")
    tab.choose("history__job", other["id"])
    tab.press("history__delete")
    tab.says("history__said", "Deleted")
    assert other["id"] not in [job["id"] for job in program.jobs()]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_in_both_themes_and_widths(opened: Open, width: int, theme: str) -> None:
    tab = opened(width=width, theme=theme)
    for label, shown in (
        ("Tools", "#copier_tools__difference__go:visible"),
        ("Setup", "#copier_setup__folders table"),
        ("Make a LoRA", "#copier_run__start:visible"),
    ):
        tab.section(label)
        tab.waits_for(shown)
        widest = tab.page.evaluate("document.documentElement.scrollWidth")
        assert widest <= width, f"{label} is {widest} px wide"
    dark = tab.page.evaluate("document.body.classList.contains('dark')")
    assert dark is (theme == "dark")
    ink, ground = tab.page.evaluate(
        """() => {
            let one = document.querySelector('#copier_tab .copier-head h3');
            const ink = getComputedStyle(one).color, clear = 'rgba(0, 0, 0, 0)';
            while (one && getComputedStyle(one).backgroundColor === clear) one = one.parentElement;
            return [ink, one ? getComputedStyle(one).backgroundColor : 'rgb(255, 255, 255)'];
        }"""
    )
    assert abs(_lightness(ink) - _lightness(ground)) > 0.5
    # While an answer is awaited gradio gives the text this class; it must not pale, once a second.
    pale = tab.page.evaluate(
        """() => {
            const one = document.querySelector('#copier_run__status [data-live]');
            one.classList.add('pending');
            return getComputedStyle(one).opacity;
        }"""
    )
    assert pale == "1"


def _lightness(colour: str) -> float:
    numbers = [float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]]
    return sum(numbers) / 3 / 255


def test_a_job_can_be_stopped_at_any_moment_and_leaves_nothing(
    program: Program, opened: Open, picture: Path
) -> None:
    tab = opened()
    tab.given(picture)
    tab.short_recipe()
    moments = random.Random(5)
    for number in range(STOPS):
        tab.fill("train__training__steps", str(60 + number))
        tab.is_ready()
        job = tab.starts(program)
        tab.waits_for(f'#copier_run__status [data-job="{job}"]')
        time.sleep(moments.uniform(0, 12))
        # It may end in this very moment, and then there is nothing to be stopped.
        tab.page.evaluate("document.querySelector('#copier_run__interrupt').click()")
        tab.waits_for(f'#copier_run__status [data-job="{job}"][data-live="0"]')
        children_gone(program)
        assert program.jobs()[-1]["state"] in ("stopped", "done")
        assert program.partial_files() == []


def test_the_queue_goes_on_after_the_program_was_killed(
    program: Program, opened: Open, picture: Path
) -> None:
    moments = random.Random(6)
    tab = opened()
    for number in range(KILLS):
        tab.page.context.close()
        tab = opened()
        tab.given(picture)
        tab.short_recipe(500 + number)
        tab.press("run__start")
        tab.state("running")
        tab.fill("train__training__steps", str(5 + number))
        tab.waits_for("#copier_run__queue:not([disabled])")
        tab.press("run__queue")
        tab.says("run__said", "waits in the queue")
        time.sleep(moments.uniform(0, 6))
        program.end(signal.SIGKILL)
        children_gone(program)
        program.start()
        killed, waiting = program.jobs()[-2:]
        until(lambda id=waiting["id"]: _state(program, id) == "done", "the job that waited was done")
        assert _state(program, killed["id"]) == "interrupted"
        assert program.partial_files() == []
        tab.state(
            "interrupted"
        )  # the page that was open all the time has found the program and its job again
        assert tab.text("run__offer1") == "Go on"
    # and has kept what it was given: the same run, without another look at the form
    count = len(program.jobs())
    tab.is_ready()
    tab.state("done", tab.starts(program))
    assert len(program.jobs()) == count + 1
    assert picture.name in tab.text("original__view")


def _state(program: Program, id: str) -> str:
    return next(str(job["state"]) for job in program.jobs() if job["id"] == id)
