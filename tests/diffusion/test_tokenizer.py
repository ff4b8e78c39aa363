from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from copier.diffusion import tokenizer
from copier.errors import CopierError


def test_ids_are_those_of_openais_clip() -> None:
    clip = tokenizer.load_tokenizer()
    ids = clip("a photo cat").input_ids
    assert ids == [49406, 320, 1125, 2368, 49407]
    assert len(clip) == 49408
    assert clip.decode(ids[1:-1]) == "a photo cat"


def test_padding_repeats_the_end_mark() -> None:
    clip = tokenizer.load_tokenizer()
    ids = clip("cat", padding="max_length", truncation=True).input_ids
    assert ids == [49406, 2368] + [49407] * 75
    assert len(clip("cat " * 200, truncation=True).input_ids) == 77


def test_the_wheel_is_located_and_never_imported() -> None:
    tokenizer.load_tokenizer()
    assert "open_clip" not in sys.modules


def test_files_are_kept_and_serve_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clip"
    tokenizer.load_tokenizer(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "merges.txt",
        "tokenizer_config.json",
        "vocab.json",
    ]
    assert len(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))) == 49408
    monkeypatch.setattr(tokenizer, "find_vocabulary", lambda: pytest.fail("read a second time"))
    assert tokenizer.load_tokenizer(folder)("cat").input_ids == [49406, 2368, 49407]


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CopierError, match=r"pip install --no-deps open_clip_torch"):
        tokenizer.load_tokenizer(tmp_path / "clip")
    assert not (tmp_path / "clip").exists()
