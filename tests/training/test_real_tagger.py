"""The tagger of a checkout of sd-scripts: its options, its wordings, and itself with a tiny model."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
from PIL import Image

from benchmarks import sd_scripts
from copier.app.captions import Wd14Tagger
from copier.app.settings import Settings
from copier.captioning import tags_of
from copier.errors import BadInput
from copier.progress import CancelToken, ProgressEvent, ignore
from copier.training import tagger
from copier.training.tagger import SCRIPT
from copier.training.tagger_log import events_of
from copier.training.tagger_model import MODEL

pytestmark = [
    pytest.mark.sd_scripts,
    # Its own, in a help text.
    pytest.mark.filterwarnings("ignore:.*invalid escape sequence"),
]

_spec = importlib.util.spec_from_file_location("tiny_tagger", Path(__file__).with_name("tiny_tagger.py"))
assert _spec and _spec.loader
tiny_tagger = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_tagger)


@pytest.fixture(scope="module")
def script() -> Path:
    folder, reason = sd_scripts.checkout()
    assert folder is not None, reason  # else tests/conftest.py leaves these tests out
    return folder / SCRIPT


def constants(script: Path) -> Iterator[str]:
    """Every text in it; of a composed one its constant parts."""
    for node in ast.walk(ast.parse(script.read_bytes())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def functions(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from functions(one)


def test_every_option_is_one_of_its_own(script: Path) -> None:
    texts = list(constants(Path(tagger.__file__)))
    used = {one.removesuffix("=") for one in texts if re.fullmatch(r"--[a-z_]+=?", one)} - {"--parent"}
    assert {"--onnx", "--thresh", "--repo_id", "--output_path", "--character_threshold"} <= used
    assert used <= set(constants(script))


def test_the_lines_that_begin_a_phase_are_printed(script: Path) -> None:
    said = [event.message for text in constants(script) for event in events_of(text)]
    assert said == ["downloading the tagger's model", "loading the tagger's model"]


def test_it_cannot_tell_characters_as_long_as_their_list_is_a_local_variable_too(script: Path) -> None:
    """When this fails, characters can be asked for again."""
    (batch,) = (
        one for one in functions(compile(script.read_bytes(), SCRIPT, "exec")) if one.co_name == "run_batch"
    )
    assert "character_tags" in batch.co_varnames


@pytest.fixture(scope="module")
def settings(script: Path) -> Settings:
    data = os.environ.get("COPIER_TEST_TAGGER")
    if not data:
        pytest.skip("needs a data folder where 'copier trainer install --tagger' was run: COPIER_TEST_TAGGER")
    python = os.environ.get("COPIER_PYTHON", sys.executable)
    return Settings(Path(data), python=python, sd_scripts_dir=script.parents[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny_tagger.write_tiny_tagger(tmp_path_factory.mktemp("model") / "my model ü")
    return folder


@pytest.mark.slow
def test_the_real_script_tags_every_picture(settings: Settings, model: Path, tmp_path: Path) -> None:
    red, blue = (255, 0, 0), (0, 0, 255)
    halves = Image.new("RGB", (512, 512), red)
    halves.paste(blue, (0, 0, 512, 200))
    turned = Image.Exif()
    turned[0x0112] = 3
    cases = {
        "a.png": (Image.new("RGB", (64, 64), blue), {}, "blue picture, blue above, ^_^"),
        "a.jpg": (halves, {"quality": 95}, "red picture, blue above, ^_^"),
        "naïve 雪 %s.webp": (halves, {"lossless": True}, "red picture, blue above, ^_^"),
        "upside down.tif": (halves, {"exif": turned}, "red picture, red above, ^_^"),
        # Transparency is laid on white, and with white a picture is made square.
        "clear.png": (Image.new("RGBA", (70, 30), (0, 0, 0, 0)), {}, None),
        "wide.png": (Image.new("RGB", (300, 40), (0, 0, 0)), {}, None),
    }
    for name, (image, options, _) in cases.items():
        image.save(tmp_path / name, **options)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    events: list[ProgressEvent] = []
    paths = [tmp_path / name for name in cases]
    said = Wd14Tagger(settings, model=model)(paths, observer=events.append, cancel=CancelToken())
    everywhere = {f"{one} {where}" for one in tiny_tagger.COLOURS for where in ("picture", "above")}
    for (_, _, expected), text in zip(cases.values(), said, strict=True):
        assert set(tags_of(text)) == (set(tags_of(expected)) if expected else everywhere | {"^_^"})
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (events[-1].step, events[-1].steps) == (6, 6)
    assert not list(settings.stages.glob(".tmp-*"))


@pytest.mark.slow
def test_a_damaged_model_is_named(settings: Settings, model: Path, tmp_path: Path) -> None:
    damaged = tiny_tagger.write_tiny_tagger(tmp_path / "damaged")
    (damaged / MODEL).write_bytes((damaged / MODEL).read_bytes()[:500])
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(picture)
    with pytest.raises(BadInput, match="damaged"):
        Wd14Tagger(settings, model=damaged)([picture], observer=ignore, cancel=CancelToken())
