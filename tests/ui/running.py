"""A running program and a browser at its page; and the tab as a person handles it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
PATIENCE = 1000.0 * float(os.environ.get("COPIER_TEST_PATIENCE", "600"))
"""Milliseconds to wait for what takes computing, on a machine with other work too."""


LIST_PATIENCE = 15_000.0
"""Milliseconds until a list that was opened counts as closed again."""

REQUIRED = "COPIER_TEST_UI_REQUIRED"
"""Environment variable that `make test-ui` sets: what these tests need has to be there."""


def missing() -> str:
    """What these tests need and is not here; "" for nothing."""
    for name in ("gradio", "playwright"):
        if subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode:
            return f"{name} is not installed: make test-ui runs these tests"
    return (
        ""
        if browser_path()
        else "there is no Chromium: apt-get install chromium, or name one with COPIER_TEST_BROWSER=<path>"
    )


def browser_path() -> str:
    """The browser of the system."""
    chosen = os.environ.get("COPIER_TEST_BROWSER")
    return next((path for path in (chosen, *BROWSERS) if path and Path(path).is_file()), "")


def short_recipe() -> dict[str, Any]:
    """The pocket checkpoint's own recipe with so few steps and pictures that it ends in moments."""
    source = ROOT / "copier" / "presets" / "copier-quick-pocket.json"
    recipe: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    recipe |= {"name": "short", "title": "short", "explanation": "A few steps, for the tests."}
    for stage in recipe["stages"]:
        if stage["kind"] == "train":
            stage["training"] |= {"steps": 6, "batch_size": 1, "rank": 4, "alpha": 4.0}
        else:
            stage |= {"prompts": stage["prompts"][:2], "seeds": stage["seeds"][:2], "sampling_steps": 2}
        if stage["kind"] == "evaluate":
            stage["weights"] = [1.0]
    return recipe


class Program:
    """``python -m copier ui`` with a data directory of its own, and more options."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.options = options
        self.folder, self.data, self.loras = folder, folder / "data", folder / "loras"
        self.port = _free_port()
        self.process: subprocess.Popen[str] | None = None
        (self.data / "presets").mkdir(parents=True)
        (self.data / "presets" / "short.json").write_text(json.dumps(short_recipe()), encoding="utf-8")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start it, and wait until it serves."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "COPIER_DATA": str(self.data),
            "COPIER_LORAS": str(self.loras),
            "COPIER_OUTPUT": str(self.folder / "output"),
            "COPIER_CHECKPOINTS": str(self.folder / "checkpoints"),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
        }
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "copier", "--threads", "1", "ui", "--port", str(self.port), *self.options],
            cwd=self.folder,
            env=environment,
            stderr=(self.folder / "program.log").open("a"),
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        until(lambda: _answers(self.port), "the page is served")

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it, politely or not."""
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.wait(PATIENCE / 1000)
        self.process = None

    def memory(self) -> float:
        """What the program itself has in memory, in MB; without its children."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs on the disk, oldest first."""
        found = sorted((self.data / "jobs").glob("*/job.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in found]

    def children(self) -> list[str]:
        """Command lines of processes that the program started, or that were left by it."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or (self.process is not None and int(entry.name) == self.process.pid):
                continue
            try:
                environment = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"COPIER_DATA={self.data}\0".encode() in environment and command.strip():
                found.append(command[:120])
        return found

    def partial_files(self) -> list[Path]:
        """Files that were not finished."""
        return [path for path in self.folder.rglob("*.tmp") if path.is_file()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
    """Wait for ``condition``; fails with ``what`` did not come, or with what it says then."""
    limit = time.monotonic() + PATIENCE / 1000
    while not condition():
        if time.monotonic() > limit:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {PATIENCE / 1000:g} s in vain: {said}")
        time.sleep(0.1)


class TabPage:
    """The tab in a browser's page."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        from playwright.sync_api import TimeoutError

        self.errors: list[str] = []
        self.timeout_error = TimeoutError
        page.on("pageerror", lambda error: self.errors.append(str(error.stack or error)))
        page.set_default_timeout(PATIENCE)

    def open(self, *, theme: str = "light") -> TabPage:
        """Load the page, and wait until its lists are filled and the form was checked."""
        self.page.goto(f"{self.address}?__theme={theme}")
        self.page.wait_for_selector("#copier_run__problems .copier-blocked")
        self.page.wait_for_selector("#copier_original__line .copier-facts")
        return self

    def press(self, name: str) -> None:
        """Press the button with that id."""
        self.page.click(f"#copier_{name}:not([disabled])")

    def section(self, label: str) -> None:
        """Open a tab by its label."""
        self.page.click(
            f"button[role=tab]:text-is('{label}'):visible, .tab-nav button:text-is('{label}'):visible"
        )

    def fill(self, name: str, value: str) -> None:
        """Type into a field."""
        self.page.fill(f"#copier_{name} :is(textarea, input)", value)
        self.page.keyboard.press("Tab")

    def choose(self, name: str, label: str) -> None:
        """Choose from a list the first that has that text; once more where an answer closed the list."""
        wanted = self.page.locator(f"#copier_{name} ul li").filter(has_text=label).first
        until(lambda: self._chose(name, wanted), lambda: f"{label} in the list {name}")

    def _chose(self, name: str, wanted: Any) -> bool:
        # Amid the window, where there is room for the list, which does not scroll with the page.
        self.page.locator(f"#copier_{name}").first.evaluate("one => one.scrollIntoView({block: 'center'})")
        # A list opens for an input that was not in use.
        self.page.evaluate("document.activeElement.blur()")
        self.page.click(f"#copier_{name} input")
        try:
            wanted.click(timeout=LIST_PATIENCE)
        except self.timeout_error:
            return False
        return True

    def pick(self, name: str, label: str) -> None:
        """Choose a radio button."""
        self.page.click(f"#copier_{name} label:has-text('{label}')")

    def unfold(self, title: str) -> None:
        """Open a fold by its title."""
        self.page.click(f".label-wrap:has(span:text-is('{title}')):visible")

    def drop(self, name: str, *files: Path) -> None:
        """Give files to a place for files."""
        self.page.set_input_files(f"#copier_{name} input[type=file]", [str(path) for path in files])

    def says(self, name: str, text: str) -> None:
        """Wait until the place says that."""
        self.page.locator(f"#copier_{name}", has_text=text).first.wait_for()

    def text(self, name: str) -> str:
        """What stands there now."""
        return str(self.page.locator(f"#copier_{name}").first.inner_text())

    def waits_for(self, selector: str) -> None:
        """Wait until something is there."""
        self.page.wait_for_selector(selector)

    def recipe(self, title: str, explanation: str) -> None:
        """Choose the recipe of that title, and wait until the page shows it."""
        self.choose("preset__choice", title)
        self.says("preset__explanation", explanation)

    def stage(self, name: str, field: str) -> None:
        """Show the fields of a stage; ``field`` is one that has its name."""
        self.page.click(f"#copier_preset__stage label:has(span:text-is('{name}'))")
        self.page.wait_for_function(
            """([field, name]) => document.querySelector(`${field} :is(input, textarea)`).value === name""",
            arg=[field, name],
        )

    def short_recipe(self, steps: int | None = None) -> None:
        """Choose the recipe of a few steps, or of ``steps`` in each training, and wait until it may start."""
        self.choose("preset__choice", "short")
        self.says("preset__explanation", "A few steps")
        if steps is not None:
            self.fill("train__training__steps", str(steps))
        self.is_ready()

    def is_ready(self) -> None:
        """Wait until Start may be pressed, by a check of the form as it is now."""
        # An answer may be under way to an earlier form: the second one that comes is none of these.
        for _ in range(2):
            before = self._checks()
            self.page.evaluate("document.querySelector('#copier_run__check').click()")
            until(lambda before=before: self._checks() != before, "the form was checked")
        until(lambda: self.page.is_enabled("#copier_run__start"), lambda: self.text("run__problems"))

    def _checks(self) -> str:
        """Which answer the page has had last."""
        pulse = "document.querySelector('#copier_run__checked .copier-pulse')"
        return str(self.page.evaluate(f"({pulse} || {{dataset: {{}}}}).dataset.count"))

    def state(self, wanted: str, job: str = "") -> None:
        """Wait until the watched job, or the one of that id, is in that state."""
        id = f'[data-job="{job}"]' if job else ""
        self.waits_for(f'#copier_run__status {id}[data-state="{wanted}"]')

    def starts(self, program: Program) -> str:
        """Press Start; the id of the job that there is then."""
        known = len(program.jobs())
        self.press("run__start")
        until(lambda: len(program.jobs()) > known, lambda: f"a job: {self.text('run__said')}")
        return str(program.jobs()[-1]["id"])

    def given(self, picture: Path) -> None:
        """Drop an original in: quicker than drawing one, which takes a child of the program."""
        self.section("Drop one in")
        self.drop("original__files", picture)
        self.says("original__view", picture.name)
        self.waits_for("#copier_edited__view .copier-swipe")

    def draws(self, *, count: int = 1) -> None:
        """Draw originals, as fast as it goes."""
        self.fill("original__count", str(count))
        self.unfold("Sampling")
        self.fill("original__steps", "4")
        self.press("original__generate")
        self.waits_for("#copier_original__view .copier-thumbs img")
        self.waits_for("#copier_edited__view .copier-swipe")


Open = Callable[..., TabPage]
"""Opens a page: by its width and its theme."""
