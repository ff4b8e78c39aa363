"""The tagger through a fake script: the tags of every picture, what is refused, and that nothing is left."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from copier.errors import (
    BadInput,
    BadPicture,
    Cancelled,
    CopierError,
    InstallFailed,
    NotInstalled,
    TaggingFailed,
)
from copier.progress import CancelToken, ProgressEvent
from copier.training.sd_scripts import SdScripts
from copier.training.tagger import SCRIPT, Tagged, readable, tag_pictures
from copier.training.tagger_log import events_of, explain
from copier.training.tagger_model import MODEL, REPOSITORY, TAGS, TaggerModel, find_model, usual_place

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("tiny_tagger", HERE / "tiny_tagger.py")
assert _spec and _spec.loader
tiny_tagger = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_tagger)
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SdScripts:
    monkeypatch.setenv("COPIER_FAKE", "")
    place = tmp_path / "sd scripts 雪" / SCRIPT
    place.parent.mkdir(parents=True)
    shutil.copy(HERE / "fake_wd14_tagger.py", place)
    return SdScripts(sys.executable, tmp_path / "sd scripts 雪", threads=1)


@pytest.fixture
def model(tmp_path: Path) -> TaggerModel:
    return TaggerModel(tiny_tagger.write_tiny_tagger(tmp_path / "-my model ü"))


@pytest.fixture
def tag(tmp_path: Path, scripts: SdScripts, model: TaggerModel) -> Callable[..., tuple[Tagged, ...]]:
    def tagged(*pictures: Path, **options: Any) -> tuple[Tagged, ...]:
        work = tmp_path / f"work {time.monotonic_ns()}"
        work.mkdir()
        given = {"scripts": scripts, "model": model, "work": work, **options}
        return tag_pictures(pictures, **given)

    return tagged


def save(path: Path, size: tuple[int, int] = (40, 20), mode: str = "RGB", **options: Any) -> Path:
    """Red, but blue in the last rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, size[1] - 5, *size))
    image.convert(mode).save(path, **options)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_picture_gets_its_tags_and_nothing_is_written_beside_it(tag: Any, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    clear = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    mine = tmp_path / "my pictures"
    pictures = (
        save(mine / "a.png"),
        save(mine / "a.bmp"),
        save(mine / "other" / "a.png", mode="P"),
        save(mine / "naïve 雪, [1] %s -x.webp", lossless=True),
        save(mine / "-o.tif", exif=turned),
        mine / "clear.png",
    )
    clear.save(pictures[-1])
    before = everything(mine)
    found = tag(*pictures)
    assert everything(mine) == before
    assert [one.picture for one in found] == list(pictures)
    plain = ("^_^", "red top left", "blue bottom right", "mode RGB")
    assert [one.tags for one in found[:4]] == [plain] * 4
    assert found[4].tags == ("^_^", "blue top left", "red bottom right", "mode RGB")
    assert found[5].tags == ("^_^", "white top left", "white bottom right", "mode RGB")


def test_the_threshold_is_the_models_and_a_picture_may_have_no_tags(tag: Any, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    assert tag(picture, threshold=0.95) == (Tagged(picture, ()),)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="from 0"):
            tag(picture, threshold=wrong)


def test_progress_counts_pictures_and_tells_what_it_waits_for(tag: Any, tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    tag(save(tmp_path / "a.png"), save(tmp_path / "b.png"), observer=events.append)
    assert {one.stage for one in events} == {"tag"}
    assert [one.message for one in events if one.message] == ["loading the tagger's model"]
    steps = [(one.step, one.steps) for one in events if one.steps]
    assert steps[0] == (0, 2) and steps[-1] == (2, 2) and steps == sorted(steps)


def test_bars_of_downloads_are_not_taken_for_the_pictures() -> None:
    assert events_of("selected_tags.csv: 100%|###| 480/480 [00:00<00:00, 1.2MB/s]") == ()
    assert events_of("  4%|▍         | 1/25 [00:00<00:11,  2.1it/s]") == (ProgressEvent("tag", 1, 25),)


@pytest.mark.skipif(os.name == "nt", reason="signals and process groups")
def test_cancelling_ends_the_child(
    tag: Any, tmp_path: Path, scripts: SdScripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    psutil = pytest.importorskip("psutil")
    monkeypatch.setenv("COPIER_FAKE", "hang")
    token, reached = CancelToken(), threading.Event()

    def observe(event: ProgressEvent) -> None:
        if event.steps:
            reached.set()
            token.cancel()

    began = time.monotonic()
    with pytest.raises(Cancelled):
        tag(save(tmp_path / "a.png"), observer=observe, cancel=token)
    assert reached.is_set() and time.monotonic() - began < 30
    lines = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(scripts.folder) in line]


def test_a_tagger_that_hangs_is_ended(
    tag: Any, tmp_path: Path, scripts: SdScripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPIER_FAKE", "hang")
    with pytest.raises(TaggingFailed, match="said nothing for 0\\.5 s"):
        tag(save(tmp_path / "a.png"), scripts=replace(scripts, silent_seconds=0.5))


@pytest.mark.parametrize(
    ("words", "message"),
    [("crash", "exit code 1"), ("mute-exit", "without tags"), ("less", "without tags")],
)
def test_tags_for_some_pictures_are_none(
    tag: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.setenv("COPIER_FAKE", words)
    with pytest.raises(TaggingFailed, match=message):
        tag(save(tmp_path / "a.png"), save(tmp_path / "b.png"), log_path=tmp_path / "tagger.log")
    assert "found 2 images." in (tmp_path / "tagger.log").read_text()


def test_what_is_no_picture_is_refused_before_the_script_starts(tag: Any, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"text")
    with pytest.raises(BadPicture, match=r"b\.png"):
        tag(save(tmp_path / "a.png"), tmp_path / "b.png", log_path=tmp_path / "tagger.log")
    assert not (tmp_path / "tagger.log").exists()


def test_a_folder_without_the_script_is_named(tag: Any, tmp_path: Path, scripts: SdScripts) -> None:
    with pytest.raises(NotInstalled, match="copier trainer install"):
        tag(save(tmp_path / "a.png"), scripts=replace(scripts, folder=tmp_path))


def test_a_model_is_downloaded_on_request_only_and_kept(
    tag: Any, tmp_path: Path, model: TaggerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPIER_FAKE_MODEL", str(model.folder))
    models = tmp_path / "models"
    with pytest.raises(NotInstalled) as refused:
        find_model(models)
    assert all(word in str(refused.value) for word in (MODEL, TAGS, str(usual_place(models)), REPOSITORY))
    wanted = find_model(models, allow_download=True)
    assert not wanted.here and not models.exists()
    picture = save(tmp_path / "a.png")
    assert tag(picture, model=wanted)[0].tags
    assert find_model(models) == TaggerModel(usual_place(models))
    kept = everything(usual_place(models))
    assert {Path(name).name for name in kept} == {MODEL, TAGS}
    monkeypatch.setenv("COPIER_FAKE_MODEL", str(tmp_path / "gone"))
    assert tag(picture, model=find_model(models))[0].tags
    assert everything(usual_place(models)) == kept


def test_a_download_that_breaks_off_leaves_no_model(
    tag: Any, tmp_path: Path, model: TaggerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPIER_FAKE", "half")
    monkeypatch.setenv("COPIER_FAKE_MODEL", str(model.folder))
    with pytest.raises(InstallFailed, match="--model"):
        tag(save(tmp_path / "a.png"), model=find_model(tmp_path / "models", allow_download=True))
    assert not (tmp_path / "models").exists()


def test_a_folder_of_ones_own_must_have_both_files(tmp_path: Path, model: TaggerModel) -> None:
    assert find_model(tmp_path / "models", model.folder) == model
    (model.folder / TAGS).unlink()
    with pytest.raises(BadInput, match=f"no {TAGS}"):
        find_model(tmp_path / "models", model.folder, allow_download=True)


HEADER = "tag_id,name,category,count\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (MODEL, b"", "empty"),
        (MODEL, b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (TAGS, b"", "columns"),
        (TAGS, b"tag,score\n", "columns"),
        (TAGS, HEADER.encode() + b"0,general\n", "columns"),
        (TAGS, b"\xff\xfe", "cannot be read"),
        (TAGS, HEADER.encode() + b"0,general,9,1\n" * 4, "order"),
        (TAGS, HEADER.encode() + b"0,general,9,1\n" * 3 + b"1,solo,0,1\n", "order"),
        (TAGS, HEADER.encode() + b"0,general,9,1\n" * 4 + b"1,alice,4,1\n2,solo,0,1\n", "order"),
    ],
)
def test_a_model_that_sd_scripts_would_misread_is_refused(
    name: str, content: bytes, words: str, model: TaggerModel, tmp_path: Path
) -> None:
    (model.folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        find_model(tmp_path / "models", model.folder)


@pytest.mark.parametrize(
    ("line", "code", "error", "words"),
    [
        ("ModuleNotFoundError: No module named 'onnxruntime'", 1, NotInstalled, "install --tagger"),
        ("ModuleNotFoundError: No module named 'google'", 1, NotInstalled, "install --tagger"),
        ("ModuleNotFoundError: No module named 'diffusers'", 1, NotInstalled, "install --again"),
        ("google.protobuf.message.DecodeError: Error parsing message", 1, BadInput, "damaged"),
        ("onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf: [ONNXRuntimeError] : 7 : "
         "INVALID_PROTOBUF : Load model from x failed:Protobuf parsing failed.", 1, BadInput, "damaged"),
        ("onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument: [ONNXRuntimeError] : 2 : "
         "INVALID_ARGUMENT : Got invalid dimensions for input: x", 1, BadInput, "448"),
        ("onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented: no", 1, BadInput, "NotImplemented"),
        ("requests.exceptions.ProxyError: Max retries exceeded with url", 1, InstallFailed, "proxy"),
        ("OSError: [Errno 28] No space left on device", 1, TaggingFailed, "--data"),
        ("tag.py: error: unrecognized arguments: --onnx", 2, TaggingFailed, "version"),
        ("anything", -9, TaggingFailed, "memory"),
        ("anything", 0, TaggingFailed, "every picture"),
    ],
)  # fmt: skip
def test_a_failure_has_its_remedy_and_the_last_lines(
    line: str, code: int, error: type[CopierError], words: str
) -> None:
    found = explain(["first", line, "100%|###| 2/2 [00:00<00:00]"], code)
    assert type(found) is error
    assert words in str(found) and line in str(found) and "100%" not in str(found)


def test_tags_are_written_as_captions_have_them() -> None:
    assert [readable(tag) for tag in ("arms_at_sides", "^_^", "solo")] == ["arms at sides", "^_^", "solo"]
