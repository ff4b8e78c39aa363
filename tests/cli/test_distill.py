"""``copier distill`` and ``copier views``: what is drawn, picked and written, and what is never replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from copier.app.distilling import picked
from copier.codec import load_recipe
from copier.errors import BadInput
from copier.images.framing import seen, views_of
from copier.images.pairs import read_picture

Copier = Callable[..., Any]


@pytest.fixture
def distill(copier: Copier, folder: Path, worker: Any) -> Copier:
    def call(*more: str) -> Any:
        prompts = ("a red star", "a blue ring")
        given = ("distill", folder / "small.safetensors", *prompts, "--count", "3", "--out", folder / "d")
        return copier(*given, "--json", *more)

    return call


def test_candidates_are_drawn_once_and_the_picked_ones_become_a_set(
    distill: Copier, worker: Any, folder: Path
) -> None:
    first = distill().json
    assert [one["number"] for one in first["candidates"]] == [1, 2, 3, 4, 5, 6]
    assert first["set"] is None
    calls = list(worker.calls)
    second = distill("--keep", "2,5-6").json
    assert worker.calls == calls
    made = Path(second["set"])
    assert sorted(path.name for path in made.iterdir()) == [
        f"000{number}.{ending}" for number in (2, 5, 6) for ending in ("png", "txt")
    ]
    for number in (2, 5, 6):
        one = first["candidates"][number - 1]
        assert (made / f"000{number}.png").read_bytes() == Path(one["file"]).read_bytes()
        assert (made / f"000{number}.txt").read_text(encoding="utf-8") == one["prompt"] + "\n"
    assert distill("--keep", "all").json["set"].endswith("set-2")
    assert sorted(path.name for path in made.iterdir())[0] == "0002.png"


def test_the_lora_has_half_its_weight_where_none_is_named(distill: Copier, folder: Path) -> None:
    distill()
    asked = json.loads((folder / "d" / "candidates.json").read_text(encoding="utf-8"))["request"]
    assert [weight for _, weight in asked["loras"]] == [0.5]


@pytest.mark.parametrize("other", [("--weight", "0.6"), ("--seed", "9"), ("--steps", "5")])
def test_candidates_of_another_request_are_not_taken_for_its_own(distill: Copier, other: Any) -> None:
    distill()
    answer = distill(*other)
    assert answer.code == 2
    assert "choose another folder" in answer.err


def test_a_candidate_that_was_changed_is_refused(distill: Copier) -> None:
    first = Path(distill().json["candidates"][0]["file"])
    Image.new("RGB", (64, 64)).save(first)
    answer = distill("--keep", "1")
    assert answer.code == 2
    assert first.name in answer.err


def test_a_wrong_list_costs_no_drawing(distill: Copier, worker: Any) -> None:
    calls = list(worker.calls)
    for wrong in ("7", "0", "3-2", "x", ""):
        assert distill("--keep", wrong).code == 2
    assert worker.calls == calls


def test_a_lora_that_is_not_there_is_refused(copier: Copier, folder: Path, worker: Any) -> None:
    answer = copier("distill", folder / "none.safetensors", "a star", "--out", folder / "d")
    assert answer.code == 2
    assert "none.safetensors" in answer.err
    assert not (folder / "d").exists()


def test_numbers_are_picked_once_in_the_order_given() -> None:
    assert picked("all", 3) == (1, 2, 3)
    assert picked(" 3, 1-2,2", 3) == (3, 1, 2)
    with pytest.raises(BadInput, match=r"from 1 to 3"):
        picked("4", 3)


def test_views_are_shown_as_they_are_trained_on(copier: Copier, folder: Path) -> None:
    picture = folder / "wide.png"
    noise = bytes(index * 37 % 251 for index in range(256 * 128 * 3))
    Image.frombytes("RGB", (256, 128), noise).save(picture)
    written = copier("views", "framing", picture, "--out", folder / "views", "--json").json["views"]
    spec = load_recipe("framing").picture_set("views-a")
    expected = views_of(spec, (256, 128), 0)
    assert [one["view"] for one in written] == [str(view) for view in expected]
    for one, view in zip(written, expected, strict=True):
        assert read_picture(one["file"]).tobytes() == seen(read_picture(picture), view).tobytes()
    Path(written[1]["file"]).write_bytes(b"mine")
    refused = copier("views", "framing", picture, "--out", folder / "views")
    assert refused.code == 2
    assert Path(written[1]["file"]).read_bytes() == b"mine"
    assert copier("views", "copier-quick", picture).code == 2
