from __future__ import annotations

import pytest

from copier.errors import BadInput
from copier.recipe import CaptionPolicy, CaptionSpec
from copier.training.captions import CaptionSource


def source(spec: CaptionSpec, *texts: str, pictures: int = 1, seed: int = 1) -> CaptionSource:
    return CaptionSource(spec, texts, pictures=pictures, seed=seed)


def test_empty_and_fixed_always_give_the_same() -> None:
    fixed = CaptionSpec(policy=CaptionPolicy.FIXED, texts=("a red star",))
    assert {source(CaptionSpec()).draw(0) for _ in range(5)} == {""}
    assert {source(fixed).draw(0) for _ in range(5)} == {"a red star"}


def test_varied_draws_all_texts_evenly_and_again_the_same_for_the_same_seed() -> None:
    spec = CaptionSpec(policy=CaptionPolicy.VARIED, texts=("a", "b", "c", "d"))
    one, again, other = source(spec), source(spec), source(spec, seed=2)
    drawn = [one.draw(0) for _ in range(400)]
    assert drawn == [again.draw(0) for _ in range(400)]
    assert drawn != [other.draw(0) for _ in range(400)]
    assert all(70 < drawn.count(text) < 130 for text in "abcd")
    assert one.all() == ["a", "b", "c", "d"]


def test_files_belong_to_their_picture_and_of_several_lines_one_is_drawn() -> None:
    spec = CaptionSpec(policy=CaptionPolicy.FILES)
    captions = source(spec, "a cat\n\n a dog \n", "", pictures=2)
    assert {captions.draw(0) for _ in range(30)} == {"a cat", "a dog"}
    assert captions.draw(1) == ""
    assert captions.all() == ["a cat", "a dog", ""]


def test_the_caption_is_left_away_as_often_as_asked_for() -> None:
    spec = CaptionSpec(policy=CaptionPolicy.FIXED, texts=("a",), dropout=0.25)
    captions = source(spec)
    drawn = [captions.draw(0) for _ in range(400)]
    assert 70 < drawn.count("") < 130 and drawn.count("") + drawn.count("a") == 400
    assert captions.all() == ["a", ""]


def test_files_need_one_text_for_each_picture() -> None:
    with pytest.raises(BadInput, match="1 captions for 2 pictures"):
        source(CaptionSpec(policy=CaptionPolicy.FILES), "a", pictures=2)


def test_shuffling_keeps_all_tags_and_the_first_ones_in_place() -> None:
    text = "one, two, three, four, five, six"
    spec = CaptionSpec(policy=CaptionPolicy.FIXED, texts=(text,), shuffle=True, keep_tokens=2)
    captions = source(spec)
    drawn = [captions.draw(0).split(", ") for _ in range(30)]
    assert all(tags[:2] == ["one", "two"] for tags in drawn)
    assert all(sorted(tags) == sorted(text.split(", ")) for tags in drawn)
    assert len({tuple(tags) for tags in drawn}) > 10
    assert captions.all() == []
