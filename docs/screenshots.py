"""Takes the pictures of docs/tab.md from the running program: `make screenshots`.

It starts the tab on the pocket checkpoint, draws, edits, trains a short recipe for real, and takes every
section in the light and the dark theme, and the first screen at the width of a phone.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.ui.running import Program, TabPage, browser_path, missing  # noqa: E402

FOLDER = ROOT / "docs" / "tab"
LARGEST = 150_000
"""Bytes of a picture."""


def main() -> None:
    """Take all pictures."""
    if reason := missing():
        sys.exit(reason)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        program = Program(Path(folder))
        program.start()
        try:
            take_all(program)
        finally:
            program.end()


def take_all(program: Program) -> None:
    """Walk through the tab once, and take the pictures in both themes."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        tab = TabPage(page, program.address).open()
        take(tab, "start")
        tab.press("original__generate")
        tab.waits_for("#copier_edited__view .copier-swipe")
        tab.pick("edited__edit", "Outline")
        tab.says("edited__explanation", "black lines")
        tab.short_recipe(40)
        tab.press("run__start")
        tab.state("running")
        tab.waits_for("#copier_run__curve svg polyline")
        both(tab, "run", "#copier_run__bar", "#copier_run__log_fold")
        both(tab, "pair", "#copier_edited__head", "#copier_edited__view")
        both(tab, "original", "#copier_original__head", "#copier_original__clear")
        both(tab, "recipe", "#copier_recipe__head", "#copier_preset__files")
        tab.state("done")
        tab.waits_for("#copier_result__report iframe")
        time.sleep(1)
        both(tab, "result", "#copier_result__head", "#copier_result__install")
        both(tab, "report", "#copier_result__fold", "#copier_result__fold")
        tab.press("result__install")
        tab.says("result__said", "Installed")
        tab.section("Tools")
        tab.press("tools__refresh")
        both(tab, "tools", "#copier_tools__head", "#copier_tools__difference__go")
        tab.section("Setup")
        tab.waits_for("#copier_setup__folders table")
        without_places(tab, program)
        both(tab, "setup", "#copier_setup__trainer_head", "#copier_setup__prune")
        small = browser.new_page(viewport={"width": 400, "height": 900})
        take(TabPage(small, program.address).open(), "phone")
        browser.close()


def without_places(tab: TabPage, program: Program) -> None:
    """Say where things would be for a user, and not where they are on the machine that takes the pictures."""
    places = {
        str(program.data): "~/.local/share/copier",
        str(program.folder): "~/copier",
        sys.executable: "~/copier/.venv/bin/python",
        str(ROOT): "~/copier",
    }
    tab.page.evaluate(
        """places => {
            const setup = document.querySelector('#copier_setup');
            const walker = document.createTreeWalker(setup, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                let text = walker.currentNode.nodeValue;
                for (const [place, said] of Object.entries(places)) text = text.replaceAll(place, said);
                walker.currentNode.nodeValue = text;
            }
        }""",
        places,
    )


def both(tab: TabPage, name: str, first: str, last: str) -> None:
    """The part of the page from one element to another, light and dark."""
    tab.page.add_style_tag(content="#copier_run__bar { position: static !important; }")
    for theme in ("light", "dark"):
        tab.page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
        time.sleep(0.6)
        tab.page.locator(first).first.scroll_into_view_if_needed()
        card = tab.page.locator(first).first.evaluate(
            """(one, last) => {
                const box = (one.closest('.copier-card') || one).getBoundingClientRect();
                const ending = document.querySelector(last), end = ending.getBoundingClientRect();
                const frame = (ending.closest('.copier-card') || ending).getBoundingClientRect();
                const top = Math.min(box.top, end.top) + scrollY, left = Math.min(box.left, end.left);
                return {x: left, y: top, width: Math.max(box.right, frame.right) - left,
                        height: Math.max(end.bottom + 14, 40) + scrollY - top};
            }""",
            last,
        )
        write(tab, f"{name}-{theme}", clip=card)
    tab.page.evaluate("document.body.classList.remove('dark')")


def take(tab: TabPage, name: str) -> None:
    """What the window shows."""
    time.sleep(0.6)
    write(tab, name)


def write(tab: TabPage, name: str, **how: object) -> None:
    """Take it, with few colours: flat surfaces lose nothing, and the repository stays small."""
    from PIL import Image

    place = FOLDER / f"{name}.png"
    tab.page.screenshot(path=str(place), full_page="clip" in how, **how)
    with Image.open(place) as image:
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(place, optimize=True)
    assert place.stat().st_size < LARGEST, f"{place.name} has {place.stat().st_size} bytes"


if __name__ == "__main__":
    main()
