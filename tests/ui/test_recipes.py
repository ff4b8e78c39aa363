"""Each recipe set up, started and finished with the mouse, on the pocket checkpoint, with a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from copier.codec import builtin_recipes
from copier.recipe import EvaluateStage, GateStage, Recipe
from copier.ui import words
from copier.ui.recipe_form import kind_of
from tests.ui.running import Open, Program, TabPage, until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = "3"
FEW = {
    "train": {"training__steps": STEPS, "training__rank": "2", "training__alpha": "2"},
    "gate": {"sampling_steps": "2"},
    "evaluate": {"sampling_steps": "2", "weights": "1"},
}
"""What is typed into the fields of each kind of stage, so that it takes moments."""
EARLY = {"check_every": "2", "check_pictures": "2", "check_sampling_steps": "2"}
BUILTIN = {"training__warmup_steps": "0", "training__resolution": "0"}


@dataclass(frozen=True)
class Case:
    """A recipe, and what is done besides: more fields by stage, and how many pictures go into the places."""

    name: str
    more: dict[str, dict[str, str]] = field(default_factory=dict)
    ticked: tuple[tuple[str, str], ...] = ()
    first: int = 1
    second: int = 0
    trainer: str = ""

    @property
    def recipe(self) -> Recipe:
        return builtin_recipes()[self.name]


CASES = {
    "copier, quick, on paired sets": Case("copier-quick-pocket", first=2, second=2),
    "mask by the pair, early stop": Case(
        "copier-quick-pocket", {"copier": EARLY}, (("lora", "train__training__pair_mask"),)
    ),
    "copier, thorough": Case("copier-thorough", {"copier": BUILTIN, "wide": BUILTIN}, trainer="builtin"),
    "difference by SVD": Case("difference-svd-pocket"),
    "difference, exact": Case("difference-exact-pocket"),
    "direct pair": Case("direct-pair-pocket"),
    "semantic pair": Case("semantic-pair-pocket"),
    "several originals": Case("several-originals-pocket", first=2),
    "framing": Case("framing-pocket"),
    "erase": Case("erase-pocket", first=0),
    "move": Case("move-pocket", first=0),
    "character via a base": Case("character-pocket", first=2, second=1),
    "style-separated subject": Case("style-subject-pocket", first=2, second=1),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of discs in other colours and places, under the same names, and a caption beside each."""
    root = tmp_path_factory.mktemp("pictures")
    for folder, background in (("first", "white"), ("second", "cyan")):
        (root / folder).mkdir()
        for number, colour in enumerate(("red", "blue"), start=1):
            image = Image.new("RGB", (128, 128), background)
            left = 20 * number
            ImageDraw.Draw(image).ellipse((left, left, left + 60, left + 60), fill=colour)
            image.save(root / folder / f"{number}.png")
            caption = f"{colour} disc, {background} background, full body"
            (root / folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return root


def files(folder: Path, count: int) -> list[Path]:
    return [folder / f"{number}.{kind}" for number in range(1, count + 1) for kind in ("png", "txt")]


def given(tab: TabPage, case: Case, pictures: Path) -> None:
    """Put the pictures into the places that the recipe has for them."""
    pairs = tab.page.locator("#copier_edited__view .copier-swipe")
    if case.first:
        tab.section("Drop one in")
        if case.first > 1 and case.recipe.changed and not case.recipe.given[0].one_by_one:
            tab.page.check("#copier_original__several input")
        tab.drop("original__files", *files(pictures / "first", case.first))
        tab.says("original__view", f"{case.first}.png")
    if case.second:
        if case.recipe.changed:
            tab.pick("edited__edit", "A picture of my own")
            until(lambda: pairs.count() == 0, "the built-in edit's pairs are gone")
        tab.drop("edited__files", *files(pictures / "second", case.second))
        if case.recipe.changed:
            until(lambda: pairs.count() == case.second, "the pairs are shown")
        else:
            tab.says("edited__view", f"{case.second}.png")


def few(tab: TabPage, case: Case) -> None:
    """Type few steps and few pictures into every stage's fields."""
    tab.unfold("Advanced")
    if case.trainer:
        tab.unfold("The recipe itself")
        tab.choose("recipe__trainer", case.trainer)
    for stage in case.recipe.stages:
        kind = kind_of(stage)
        fields = case.more.get(stage.name, {}) | FEW.get(kind, {})
        if not fields:
            continue
        tab.stage(stage.name, f"#copier_{kind}__name")
        for name, value in fields.items():
            tab.fill(f"{kind}__{name}", value)
        if isinstance(stage, (GateStage, EvaluateStage)):
            tab.fill(f"{kind}__prompts", "\n".join(stage.prompts[:2]))
            tab.fill(f"{kind}__seeds", "1, 2")
        for where, name in case.ticked:
            if where == stage.name:
                tab.page.check(f"#copier_{name} input")


def framings_are_shown(tab: TabPage) -> None:
    """The crops and zooms of A and of B, eight of each, before anything is trained."""
    until(lambda: tab.page.locator("#copier_edited__views img").count() == 16, "the views are shown")


def captions_are_edited(tab: TabPage) -> None:
    """Both sets are in the table with the caption files that came along; one is typed anew."""
    fields = tab.page.locator("#copier_captions__table textarea")
    until(lambda: fields.count() == 3, "a field for each picture")
    assert fields.first.input_value() == "red disc, white background, full body"
    fields.last.fill("a disc, arms at sides")
    fields.last.blur()
    told = tab.page.locator("#copier_captions__table [data-told]")
    until(lambda: told.last.inner_text() == "arms at sides", "what is kept of the typed caption")
    assert told.first.inner_text() == "red disc, full body"


LOOKS = {"framing": framings_are_shown, "character via a base": captions_are_edited}
"""What is looked at or done besides, before Start."""


def finished(tab: TabPage, program: Program) -> dict[str, Any]:
    """Start the run, and wait until it is done; its job."""
    tab.is_ready()
    tab.state("done", tab.starts(program))
    job = program.jobs()[-1]
    assert Path(job["outcome"]["result"]).is_file()
    trained = [one for one in job["payload"]["request"]["recipe"]["stages"] if one["kind"] == "train"]
    assert {one["training"]["steps"] for one in trained} == {int(STEPS)}
    tab.waits_for("#copier_result__install:visible")
    return job


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_is_set_up_started_and_finished(
    program: Program, opened: Open, pictures: Path, name: str
) -> None:
    case = CASES[name]
    tab = opened()
    tab.recipe(case.recipe.title, case.recipe.explanation)
    few(tab, case)
    given(tab, case, pictures)
    if name in LOOKS:
        LOOKS[name](tab)
    job = finished(tab, program)
    if case.recipe.measures:
        tab.waits_for("#copier_result__report iframe")
    else:
        tab.says("result__figures", words.NO_REPORT)
    if name == "character via a base":
        kept = Path(job["payload"]["request"]["captions"]) / "character" / "1.txt"
        assert kept.read_text(encoding="utf-8") == "a disc, arms at sides\n"


def test_a_lora_is_distilled_from_pictures_that_are_clicked(program: Program, opened: Open) -> None:
    tab, case = opened(), CASES["erase"]
    tab.recipe(case.recipe.title, case.recipe.explanation)
    few(tab, case)
    finished(tab, program)
    tab.fill("result__name", "teacher")
    tab.press("result__install")
    tab.says("result__said", "Installed")

    again = Case("picture-set-pocket")
    tab.recipe(again.recipe.title, again.recipe.explanation)
    tab.fill("train__training__steps", STEPS)
    tab.fill("original__prompt", "a green ring")
    tab.fill("original__count", "3")
    tab.unfold("Sampling")
    tab.fill("original__steps", "2")
    tab.press("original__refresh")
    tab.choose("original__lora", "teacher")
    tab.press("original__generate")
    drawn = tab.page.locator("#copier_original__gallery img")
    until(lambda: drawn.count() == 3, "three pictures are drawn")
    chosen = tab.page.locator("#copier_original__view img")
    for number in range(3):
        drawn.nth(number).click()
        until(lambda wanted=number + 1: chosen.count() == wanted, "it is chosen too")
    tab.page.locator("#copier_original__view .copier-cross").nth(1).click()
    until(lambda: chosen.count() == 2, "the second is taken out again")
    job = finished(tab, program)
    assert len(job["payload"]["request"]["pictures"]["set"]["paths"]) == 2
    captions = sorted((Path(job["payload"]["request"]["captions"]) / "set").glob("*.txt"))
    assert [one.read_text(encoding="utf-8") for one in captions] == ["a green ring\n"] * 2
