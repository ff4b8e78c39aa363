"""Errors, requests, progress, digests and write points; and that L0 needs nothing installed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from copier import digest as digest_module
from copier import writepoints
from copier.codec import builtin_recipes
from copier.digest import DigestMemory, DigestsAhead, file_digest, json_digest
from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed, UnknownName
from copier.progress import CancelToken, ProgressEvent, guarded
from copier.recipe import BaseLora, FileStage, Recipe, TrainStage
from copier.request import Edit, Generated, PictureFiles, RunRequest

ROOT = Path(__file__).resolve().parents[2]


def test_l0_needs_nothing_but_the_standard_library():
    """In an interpreter without site-packages: nothing that is installed can be found."""
    modules = (
        *("errors", "recipe", "fields", "codec", "request", "captioning", "progress", "digest"),
        "writepoints",
    )
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        + "\n".join(f"import copier.{name}" for name in modules)
        + "\nfrom copier.codec import builtin_recipes\nprint(len(builtin_recipes()))"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(run.stdout) == len(builtin_recipes())


def test_exit_codes_say_what_kind_of_failure_it_was():
    errors = (CopierError, BadInput, UnknownName, TrainingFailed, Cancelled)
    assert [error.exit_code for error in errors] == [1, 2, 2, 1, 130]


def test_an_unknown_name_offers_near_ones_or_lists_all():
    assert "did you mean 'outline'" in str(UnknownName("edit", "outlin", ["outline", "blur"]))
    assert "known: blur, outline" in str(UnknownName("edit", "zzz", ["outline", "blur"]))


@pytest.mark.parametrize(
    "change",
    [
        *({"size": size} for size in (-64, 1, 100, 8192)),
        *({"steps": steps} for steps in (0, 151)),
        *({"guidance": guidance} for guidance in (0.5, 31.0, float("nan"))),
        *({"seed": seed} for seed in (-1, 2**32)),
    ],
)
def test_an_original_out_of_bounds_is_refused(change):
    good = Generated("a star", seed=0, steps=1, guidance=1.0, size=64)
    with pytest.raises(BadInput, match="the original's"):
        replace(good, **change)


def test_a_request_knows_its_devices_and_numbers_of_threads(tmp_path):
    pictures = {"a": Generated("a star"), "b": Edit("grayscale")}
    request = RunRequest(builtin_recipes()["copier-quick"], tmp_path, pictures, tmp_path)
    with pytest.raises(UnknownName, match=r"'gpu'; did you mean 'cpu'"):
        replace(request, device="gpu")
    with pytest.raises(BadInput, match="threads is 0"):
        replace(request, threads=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": {"a": Generated("x")}}, "'b' of the recipe are missing: add --pictures b=PATH"),
        ({"pictures": {"a": Edit("blur"), "b": Edit("blur")}}, "'a' are originals: an edit cannot"),
        ({"pictures": {"a": Generated("x"), "b": Generated("x")}}, "'b' are those of 'a'.*differ in every"),
        ({"pictures": {"a": Generated("x"), "b": Edit("blur"), "c": Edit("blur")}}, "set of pictures.*'c'"),
        ({"loras": {"look": Path("look.safetensors")}}, "LoRA of the recipe.*'look'"),
    ],
)
def test_a_request_gives_just_what_the_recipe_asks_for(tmp_path, changes, message):
    given = {"pictures": {"a": Generated("a star"), "b": Edit("grayscale")}, **changes}
    with pytest.raises(BadInput, match=message):
        RunRequest(builtin_recipes()["copier-quick"], tmp_path, out=tmp_path, **given)


def test_a_request_without_the_lora_that_the_recipe_starts_from_is_refused(tmp_path):
    stages = (FileStage("look"), TrainStage("lora", "b", base=(BaseLora("look"),)))
    recipe = Recipe("r", "R", stages, "lora")
    pictures = {"a": Generated("a star"), "b": Edit("grayscale")}
    with pytest.raises(BadInput, match="'look' of the recipe is missing: add --lora look=FILE"):
        RunRequest(recipe, tmp_path, pictures, tmp_path)
    assert RunRequest(recipe, tmp_path, pictures, tmp_path, loras={"look": tmp_path / "x"}).edits == (
        Edit("grayscale"),
    )


def test_a_folder_stands_for_its_pictures_by_name(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.webp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.v2.png").write_bytes(b"x")
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in PictureFiles.at(tmp_path).paths] == ["a.jpg", "a.v2.png", "b.PNG", "c.webp"]
    assert PictureFiles.at(tmp_path / "none.png").paths == (tmp_path / "none.png",)
    with pytest.raises(BadInput, match="holds no picture: put PNG"):
        PictureFiles.at(tmp_path / "d.png")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(BadInput, match="several pictures called 'a'"):
        PictureFiles.at(tmp_path)


def test_a_failing_observer_is_told_of_once_and_never_ends_a_stage(caplog):
    seen = []

    def observe(event):
        seen.append(event.step)
        if event.step == 2:
            raise RuntimeError("the window is closed")

    observer = guarded(observe)
    with caplog.at_level(logging.ERROR):
        for step in range(1, 5):
            observer(ProgressEvent("train", step, 4))
    assert seen == [1, 2]
    assert len(caplog.records) == 1


def test_the_time_left_is_known_once_the_rate_is():
    assert ProgressEvent("train", 3, 10).seconds_left is None
    assert ProgressEvent("train", 3, 10, rate=2.0).seconds_left == 14.0


def test_a_cancelled_token_stays_cancelled():
    token = CancelToken()
    token.check()
    token.cancel()
    assert token.cancelled
    for _ in range(2):
        with pytest.raises(Cancelled):
            token.check()


def test_equal_values_have_equal_digests_whatever_the_order_of_their_keys():
    assert json_digest({"a": 1, "b": [1.5, None]}) == json_digest({"b": [1.5, None], "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 1.5})
    assert json_digest([1, 2]) != json_digest([2, 1])
    assert json_digest("ü") == hashlib.sha256(b'"\\u00fc"').hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_digest(float("nan"))


def test_digests_ahead_are_those_of_the_files_and_a_missing_file_is_an_error_only_when_asked_for(tmp_path):
    file = tmp_path / "model"
    file.write_bytes(b"abc" * 100)
    memory = DigestMemory(tmp_path / "digests")
    with DigestsAhead([file, str(file), tmp_path / "none"], memory) as ahead:
        assert ahead.digest(file) == ahead.digest(str(file)) == file_digest(file)
        with pytest.raises(FileNotFoundError):
            ahead.digest(tmp_path / "none")
    assert DigestMemory(tmp_path / "digests").known(file) == file_digest(file)


def test_digests_ahead_are_given_up_where_their_block_ends(tmp_path, monkeypatch):
    file = tmp_path / "model"
    file.write_bytes(bytes(100))
    monkeypatch.setattr(digest_module, "_CHUNK", 1)
    monkeypatch.setattr(digest_module, "hashlib", SlowHashes())
    started = time.monotonic()
    with pytest.raises(KeyError), DigestsAhead([file], DigestMemory(tmp_path / "digests")):
        raise KeyError
    assert time.monotonic() - started < 2.0


class SlowHashes:
    """In place of hashlib: 100 bytes would take 10 seconds."""

    def sha256(self):
        return self

    def update(self, data):
        time.sleep(0.1)


@pytest.fixture
def reads(monkeypatch):
    """The files whose content was read."""
    found = []

    def counted(path, *, cancel=None):
        found.append(Path(path).name)
        return file_digest(path)

    monkeypatch.setattr(digest_module, "file_digest", counted)
    return found


def test_a_known_file_is_not_read_again(tmp_path, reads):
    file, memory = tmp_path / "model", tmp_path / "deep" / "memory"
    file.write_bytes(b"abc" * 100)
    first = DigestMemory(memory).digest(file)
    assert first == hashlib.sha256(b"abc" * 100).hexdigest()
    remembering = DigestMemory(memory)
    assert [remembering.digest(file), remembering.digest(str(file))] == [first, first]
    link = tmp_path / "link"
    link.symlink_to(file)
    assert remembering.digest(link) == first
    assert reads == ["model"]


def test_another_size_or_another_time_is_another_file(tmp_path, reads):
    file, memory = tmp_path / "model", tmp_path / "memory"
    file.write_bytes(b"one")
    stamp = os.stat(file).st_mtime_ns
    found = [DigestMemory(memory).digest(file)]
    file.write_bytes(b"three")
    os.utime(file, ns=(stamp, stamp))
    found.append(DigestMemory(memory).digest(file))
    file.write_bytes(b"seven")
    os.utime(file, ns=(stamp + 1, stamp + 1))
    found.append(DigestMemory(memory).digest(file))
    assert found == [hashlib.sha256(text).hexdigest() for text in (b"one", b"three", b"seven")]
    assert len(reads) == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\xff\xfe", b"{}", b'{"a": [1, 2, "x"]}', b"[]", b'["model", 3]', b"[" * 100_000, b'["half'],
    ids=range(8),
)
def test_a_damaged_memory_is_an_empty_one_and_goes_on_remembering(tmp_path, reads, content):
    file, memory = tmp_path / "model", tmp_path / "memory"
    file.write_bytes(b"one")
    memory.write_bytes(content)
    first = DigestMemory(memory).digest(file)
    assert DigestMemory(memory).digest(file) == first == file_digest(file)
    assert reads == ["model"]


def test_two_processes_that_remember_lose_nothing(tmp_path, reads):
    memory = tmp_path / "memory"
    one, two = DigestMemory(memory), DigestMemory(memory)
    for name, user in (("x", one), ("y", two), ("z", one)):
        (tmp_path / name).write_bytes(name.encode())
        user.digest(tmp_path / name)
    fresh = DigestMemory(memory)
    for name in "xyz":
        fresh.digest(tmp_path / name)
    assert reads == ["x", "y", "z"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_memory_that_may_not_write_leaves_no_trace(tmp_path, reads):
    (tmp_path / "model").write_bytes(b"one")
    memory = DigestMemory(tmp_path / "new" / "memory", write=False)
    memory.digest(tmp_path / "model")
    memory.digest(tmp_path / "model")
    assert reads == ["model"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_memory_that_cannot_be_written_still_answers(tmp_path, caplog):
    (tmp_path / "model").write_bytes(b"one")
    (tmp_path / "file").write_bytes(b"")
    memory = DigestMemory(tmp_path / "file" / "memory")
    with caplog.at_level(logging.WARNING):
        assert memory.digest(tmp_path / "model") == hashlib.sha256(b"one").hexdigest()
    assert "not remembered" in caplog.text


def test_write_points_do_nothing_but_refuse_names_that_are_not_listed(monkeypatch):
    monkeypatch.delenv("COPIER_KILL_AT", raising=False)
    for name in writepoints.WRITE_POINTS:
        writepoints.write_point(name)
    with pytest.raises(ValueError, match="'elsewhere' is no write point"):
        writepoints.write_point("elsewhere")


def test_every_write_point_is_in_the_code_and_every_one_in_the_code_is_listed():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "copier").rglob("*.py"))
    quoted = {part.split('"', 1)[0] for part in source.split('write_point("')[1:]}
    for prefix in re.findall(r' point="([a-z]+)"', source):  # of ``replace_file``
        quoted |= {f"{prefix}-{place}" for place in ("temporary", "rename", "done")}
    assert quoted == set(writepoints.WRITE_POINTS)


def test_events_are_plain_values():
    assert json.dumps(vars(ProgressEvent("train", 1, 2)))
