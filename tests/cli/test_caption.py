"""``copier caption``: what is written for which pictures, and what is left alone."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from copier.app.captions import CaptionRequest, caption_pictures
from copier.app.crew import Kit
from copier.errors import BadInput, Cancelled, NotInstalled, TaggingFailed
from copier.pipeline.plan import read_captions
from copier.progress import CancelToken, Observer
from copier.training.captions import caption_lines
from copier.training.environment import TrainerEnvironment
from copier.training.interpreter import ask_interpreter
from copier.training.machine import Device
from copier.training.scripts_folder import ScriptsFolder
from copier.training.tagger import SCRIPT

TRAINING = Path(__file__).parents[1] / "training"
_spec = importlib.util.spec_from_file_location("tiny_tagger", TRAINING / "tiny_tagger.py")
assert _spec and _spec.loader
tiny_tagger = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_tagger)
SAID = {
    "one": "1girl, red_hair, white background, from behind",
    "two": "1girl, blue hair, white_background, smile",
}


@pytest.fixture
def mine(folder: Path) -> Path:
    """A folder with two pictures, and one with caption files for them."""
    (folder / "mine").mkdir()
    (folder / "said").mkdir()
    for name, text in SAID.items():
        Image.new("RGB", (64, 64), (255, 0, 0)).save(folder / "mine" / f"{name}.png")
        (folder / "said" / f"{name}.txt").write_text(f"\ufeff{text}\n", encoding="utf-8")
    return folder / "mine"


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), SAID),
        (("--policy", "varies"), {"one": "red_hair, from behind", "two": "blue hair, smile"}),
        (("--policy", "varies", "--keep", "1girl"), {
            "one": "1girl, red_hair, from behind", "two": "1girl, blue hair, smile"
        }),
        (("--policy", "constant"), {"one": "white background, from behind", "two": "white_background"}),
        (("--policy", "constant", "--keep", "Smile", "--keep", "hat"), {"one": "", "two": "smile"}),
        (("--policy", "constant", "--keep", ""), {"one": "", "two": ""}),
    ],
)  # fmt: skip
def test_caption_files_are_reduced_by_the_policy(
    copier: Any, mine: Path, options: tuple[str, ...], expected: dict[str, str]
) -> None:
    done = copier("caption", mine, "-o", "out", "--from", "said", *options, "--json")
    assert done.code == 0
    assert texts(Path("out")) == {name: f"{text}\n" for name, text in expected.items()}
    answer = {Path(one["picture"]).stem: (one["said"], one["text"]) for one in done.json["captions"]}
    assert answer == {name: (SAID[name], expected[name]) for name in SAID}
    assert sorted(path.name for path in mine.iterdir()) == ["one.png", "two.png"]


def test_one_text_goes_to_files_and_folders_alike(copier: Any, mine: Path) -> None:
    done = copier("caption", mine / "two.png", "a.png", "-o", "new/folder", "--text", "Eine Wiese, größer")
    assert done.code == 0 and "2 in new/folder" in done.out and "two.txt" in done.out
    assert texts(Path("new/folder")) == dict.fromkeys(("two", "a"), "Eine Wiese, größer\n")


def test_a_caption_file_is_replaced_only_on_request(copier: Any, mine: Path) -> None:
    place = Path("out/two.txt")
    place.parent.mkdir()
    place.write_text("my own words")
    refused = copier("caption", mine, "-o", "out", "--text", "x")
    assert refused.code == 2 and "two.txt" in refused.err and "--overwrite" in refused.err
    assert texts(Path("out")) == {"two": "my own words"}
    assert copier("caption", mine, "-o", "out", "--text", "x", "--overwrite").code == 0
    assert texts(Path("out")) == {"one": "x\n", "two": "x\n"}


def test_the_pictures_own_folder_may_be_named(copier: Any, mine: Path) -> None:
    assert copier("caption", mine, "-o", mine, "--text", "x").code == 0
    assert (mine / "one.txt").read_text() == "x\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mine", "-o", "out"), "--tagger"),
        (("mine", "-o", "out", "--text", "x", "--from", "said"), "not allowed"),
        (("nowhere.png", "-o", "out", "--text", "x"), "nowhere.png"),
        (("said", "-o", "out", "--text", "x"), "no picture"),
        (("mine", "a.png", "-o", "out", "--from", "said"), "no a.txt"),
        (("mine", "mine/one.png", "-o", "out", "--text", "x"), "share"),
        (("mine", "-o", "out", "--text", "x", "--threshold", "0.5"), "--tagger"),
        (("mine", "-o", "out", "--text", "x", "--keep", "hat"), "'all'"),
        (("mine", "-o", "out", "--from", "said", "--policy", "constant", "--keep", "a, b"), "one tag"),
        (("mine", "-o", "out", "--tagger", "--threshold", "1.5"), "1.5"),
        (("mine", "-o", "out", "--tagger", "--model", "said", "--allow-download"), "--model"),
        (("mine", "-o", "out", "--tagger", "--model", "said"), "model.onnx"),
        (("mine", "-o", "a.png", "--text", "x"), "a.png"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(
    copier: Any, mine: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = copier("caption", *arguments)
    assert done.code == 2 and words in done.err and done.out == ""
    assert not Path("out").exists()


def test_without_a_model_the_way_to_one_is_told(copier: Any, mine: Path, folder: Path) -> None:
    done = copier("caption", mine, "-o", "out", "--tagger")
    assert done.code == 1 and not Path("out").exists()
    for words in ("model.onnx", "selected_tags.csv", str(folder / "data" / "tagger"), "--allow-download"):
        assert words in done.err


def test_without_packages_their_installation_is_told(
    copier: Any, mine: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(settings: Any) -> Kit:
        raise NotInstalled("copier trainer install --tagger")

    monkeypatch.setattr("copier.app.captions.find_tagger_kit", lacking)
    model = tiny_tagger.write_tiny_tagger(folder / "model")
    done = copier("caption", mine, "-o", "out", "--tagger", "--model", model)
    assert done.code == 1 and "--tagger" in done.err


@pytest.fixture
def kit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake script, run by this Python."""
    place = folder / "scripts" / SCRIPT
    place.parent.mkdir(parents=True)
    shutil.copy(TRAINING / "fake_wd14_tagger.py", place)
    interpreter = ask_interpreter(sys.executable)
    environment = TrainerEnvironment(interpreter, folder / "packages", None, folder / "tokenizers", False)
    scripts = ScriptsFolder(folder / "scripts", own=True, commit="")
    found = Kit(environment, scripts, Device("cpu"), (folder / "more packages",))
    monkeypatch.setattr("copier.app.captions.find_tagger_kit", lambda settings: found)
    monkeypatch.setenv("COPIER_FAKE", "")


def test_the_tagger_runs_from_the_command_line(copier: Any, mine: Path, folder: Path, kit: None) -> None:
    model = tiny_tagger.write_tiny_tagger(folder / "model")
    done = copier("caption", mine, "-o", "out", "--tagger", "--model", model, "--policy", "constant",
                  "--keep", "red top left")  # fmt: skip
    assert done.code == 0, done.err
    assert texts(Path("out")) == {"one": "red top left\n", "two": "red top left\n"}
    assert "loading the tagger's model" in done.err
    assert list((folder / "data" / "stages").iterdir()) == []
    assert "found 2 images." in (folder / "data" / "logs" / "tagger.log").read_text(encoding="utf-8")


class Says:
    """A captioner, as an interrogator of a WebUI may be one."""

    def __init__(self, *texts: str, token: CancelToken | None = None) -> None:
        self.texts, self.token = texts, token

    def __call__(
        self, pictures: Sequence[Path], *, observer: Observer, cancel: CancelToken
    ) -> Sequence[str]:
        if self.token is not None:
            self.token.cancel()
        return self.texts


def test_anything_that_gives_a_text_for_a_picture_is_a_captioner(mine: Path) -> None:
    request = CaptionRequest((mine / "two.png", mine / "one.png"), Path("out"))
    written = caption_pictures(request, Says("a drawing of two", "b"))
    assert [(one.file, one.text) for one in written] == [
        (Path("out/two.txt"), "a drawing of two"), (Path("out/one.txt"), "b")
    ]  # fmt: skip
    assert texts(Path("out")) == {"two": "a drawing of two\n", "one": "b\n"}


def test_a_captioner_that_skips_a_picture_or_is_stopped_leaves_nothing(mine: Path) -> None:
    request = CaptionRequest((mine / "two.png", mine / "one.png"), Path("out"))
    with pytest.raises(TaggingFailed, match="1 captions for 2 pictures"):
        caption_pictures(request, Says("a"))
    token = CancelToken()
    with pytest.raises(Cancelled):
        caption_pictures(request, Says("a", "b", token=token), cancel=token)
    assert not Path("out").exists()
    with pytest.raises(BadInput, match="at least one"):
        CaptionRequest((), Path("out"))


def test_a_training_reads_what_was_written(copier: Any, mine: Path) -> None:
    for text in ("größer, ein Stern", ""):
        copier("caption", mine, "-o", "out", "--text", text, "--overwrite")
        assert caption_lines(read_captions(Path("out/one.txt"))) == (text,)
