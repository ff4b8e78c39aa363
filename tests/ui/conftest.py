"""A host without models, for tests of the form; and what the tests of the running page need."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from copier.app.ports import CheckpointInfo, Folders, Security
from copier.app.settings import Settings
from tests.ui.running import REQUIRED, Open, Program, TabPage, browser_path, missing


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where the tests of the tab are required, what they lack ends all of it, and nothing is skipped."""
    if os.environ.get(REQUIRED) and (reason := missing()):
        pytest.exit(reason, returncode=1)


@dataclass
class PlainHost:
    """``HostServices`` with files that a test puts there, and nothing that draws."""

    root: Path
    guarded: Security = field(default_factory=Security)
    embedded: bool = True
    name: str = "test"

    def folders(self) -> Folders:
        root = self.root
        return Folders(root / "loras", root / "output", root / "data", (root / "checkpoints",))

    def security(self) -> Security:
        return self.guarded

    def checkpoints(self) -> Sequence[CheckpointInfo]:
        from copier.pocket.checkpoint import checkpoint_path

        return [CheckpointInfo(checkpoint_path(), "pocket", family="sd1", embedded=self.embedded)]

    def current_checkpoint(self) -> CheckpointInfo | None:
        return self.checkpoints()[0]

    def vaes(self) -> Sequence[CheckpointInfo]:
        return []

    def loras(self) -> Sequence[Path]:
        return sorted(self.folders().loras.rglob("*.safetensors"))

    def samplers(self) -> Sequence[str]:
        return ["DDIM"]

    def released(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def refresh(self) -> None:
        pass

    def captioners(self) -> Mapping[str, Any]:
        return {}


def fresh(component: Any) -> Any:
    """What a handler is given of a component of a page that was just opened."""
    from copier.ui.gradio_versions import held

    return held(component, getattr(component, "value", None))


@pytest.fixture
def host(tmp_path: Path) -> PlainHost:
    return PlainHost(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "data")


@pytest.fixture
def picture(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "a.png"
    image = Image.new("RGB", (128, 128), (40, 160, 200))
    image.paste((220, 30, 30), (32, 32, 96, 96))
    image.save(path)
    yield path


@pytest.fixture(scope="module")
def everything() -> None:
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def program(everything: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = Program(tmp_path_factory.mktemp("program"))
    program.start()
    yield program
    program.end()


@pytest.fixture(scope="module")
def browser(everything: None) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(program: Program, browser: Any) -> Iterator[Open]:
    """Opens pages; each must have ended without an error of its scripts."""
    pages: list[TabPage] = []

    def open_page(*, width: int = 1280, theme: str = "light") -> TabPage:
        context = browser.new_context(viewport={"width": width, "height": 900})
        pages.append(TabPage(context.new_page(), program.address))
        return pages[-1].open(theme=theme)

    yield open_page
    for one in pages:
        one.page.context.close()
        assert one.errors == []
