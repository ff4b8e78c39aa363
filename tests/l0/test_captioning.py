"""Laws of the captions that name what varies, or only what is constant."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from copier.captioning import (
    CONSTANT,
    FRAMING,
    Policy,
    caption_of,
    captions_by,
    naming_only,
    naming_what_varies,
    on_every_picture,
    same_tag,
    tags_of,
)
from copier.errors import BadInput

LAWS = settings(deadline=None, derandomize=True, database=None)
TAGS = ("red hair", "blue_hair", "White Background", "from behind", "arms_at_sides", "solo", "hat", "^_^")
pictures = st.lists(st.lists(st.sampled_from(TAGS), unique=True).map(tuple), min_size=1, max_size=6)
kept = st.lists(st.sampled_from(TAGS), unique=True).map(tuple)


def names(tags: tuple[str, ...]) -> set[str]:
    return set(map(same_tag, tags))


@LAWS
@given(pictures, kept)
def test_what_is_left_out_is_exactly_what_all_share_and_nobody_keeps(pictures, keep):
    shared = set.intersection(*map(names, pictures))
    assert on_every_picture(pictures) == shared
    for before, after in zip(pictures, naming_what_varies(pictures, keep=keep), strict=True):
        assert names(before) - names(after) == shared - names(keep)
        assert [tag for tag in before if tag in after] == list(after)


@LAWS
@given(pictures, kept)
def test_only_the_tags_to_keep_remain_and_all_of_them(pictures, keep):
    for before, after in zip(pictures, naming_only(pictures, keep=keep), strict=True):
        assert names(after) == names(before) & names(keep)
        assert [tag for tag in before if tag in after] == list(after)


@LAWS
@given(pictures, kept)
def test_both_policies_change_nothing_the_second_time(pictures, keep):
    for policy in (naming_what_varies, naming_only):
        once = policy(pictures, keep=keep)
        assert policy(once, keep=keep) == once


@LAWS
@given(pictures, kept, st.randoms())
def test_the_order_of_the_pictures_does_not_matter(pictures, keep, random):
    order = list(range(len(pictures)))
    random.shuffle(order)
    for policy in (naming_what_varies, naming_only):
        plain = policy(pictures, keep=keep)
        assert policy([pictures[i] for i in order], keep=keep) == [plain[i] for i in order]


@LAWS
@given(pictures)
def test_without_tags_to_keep_the_two_share_the_tags_of_a_picture_out(pictures):
    shared = naming_only(pictures, keep=on_every_picture(pictures))
    varying = naming_what_varies(pictures, keep=())
    for before, one, other in zip(pictures, shared, varying, strict=True):
        assert sorted((*one, *other)) == sorted(before)


@LAWS
@given(pictures, kept)
def test_a_picture_more_never_leaves_more_unnamed(pictures, keep):
    fewer = naming_what_varies(pictures[:-1], keep=keep)
    for one, other in zip(fewer, naming_what_varies(pictures, keep=keep), strict=False):
        assert set(one) <= set(other)


@LAWS
@given(st.lists(st.sampled_from(TAGS), unique=True).map(tuple))
def test_a_caption_is_read_back_as_its_tags(tags):
    assert tags_of(caption_of(tags)) == tags


def test_of_one_picture_nothing_varies_but_the_framing_is_named():
    assert naming_what_varies([("solo", "from behind", "cowboy shot")]) == [("from behind", "cowboy shot")]


def test_the_character_recipe_is_followed():
    base = [
        "1girl, solo, red hair, white background, from behind, full body",
        "1girl, solo, blue hair, white background, from behind, full body",
    ]
    assert captions_by(Policy.VARIES, base) == [
        "red hair, from behind, full body",
        "blue hair, from behind, full body",
    ]
    target = ["1girl, solo, pink hair, white_background, arms at sides, from_behind, upper body, smile"]
    expected = ["white_background, arms at sides, from_behind, upper body"]
    assert captions_by(Policy.CONSTANT, target) == expected
    assert set(FRAMING) < set(CONSTANT)


@pytest.mark.parametrize(
    ("one", "other"),
    [("White_Background", "white background"), (r"alice \(series\)", "alice_(series)"), ("a  b ", "a b")],
)
def test_spellings_of_one_tag(one: str, other: str):
    assert same_tag(one) == same_tag(other)


def test_tags_are_read_from_any_text():
    assert tags_of(" a,, b_c ,\nb c, A,\r\n d") == ("a", "b_c", "d")
    assert tags_of("\n ,") == ()


def test_all_is_the_text_as_it_is_and_a_list_of_ones_own_takes_the_place_of_the_default():
    assert captions_by(Policy.ALL, ["A cat,  sitting\nA cat", ""]) == ["A cat,  sitting\nA cat", ""]
    assert captions_by(Policy.CONSTANT, ["hat, from behind"], ["hat"]) == ["hat"]
    assert captions_by(Policy.CONSTANT, ["hat, from behind"], []) == [""]
    assert captions_by(Policy.VARIES, ["hat, from behind"], []) == [""]
    assert captions_by(Policy.VARIES, []) == []


@pytest.mark.parametrize(
    ("policy", "keep", "words"),
    [
        (Policy.ALL, ["hat"], "'all'"),
        (Policy.VARIES, ["a, b"], "not one tag"),
        (Policy.CONSTANT, [""], "not one tag"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(policy: Policy, keep: list[str], words: str):
    with pytest.raises(BadInput, match=words):
        captions_by(policy, ["hat"], keep)
