"""Sizes of pictures: which of a set have the same one, and how drawn pictures are shared out among them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from copier.images.sizes import by_size, in_stacks, largest, shared_out, size_of, sizes_text

WIDE, TALL, SQUARE = (128, 64), (64, 128), (64, 64)


def test_the_size_of_an_array_is_its_width_and_height():
    assert size_of(np.zeros((64, 128, 3), np.float32)) == WIDE


def test_every_place_comes_once_under_its_size_in_the_order_of_the_first():
    sizes = [WIDE, SQUARE, WIDE, TALL]
    found = by_size(sizes)
    assert list(found.items()) == [(WIDE, [0, 2]), (SQUARE, [1]), (TALL, [3])]


def test_pictures_of_one_size_are_taken_at_once_and_what_is_made_of_each_keeps_its_place():
    pictures = [np.full((size[1], size[0], 3), i, np.float32) for i, size in enumerate([WIDE, TALL, WIDE])]
    seen = []

    def numbers(stack):
        seen.append([size_of(one) for one in stack])
        return [float(one[0, 0, 0]) for one in stack]

    assert in_stacks(pictures, numbers) == [0.0, 1.0, 2.0]
    assert seen == [[WIDE, WIDE], [TALL]]


def test_the_largest_has_the_most_pixels():
    assert largest([SQUARE, (192, 64), (128, 128)]) == (128, 128)
    assert largest([WIDE, TALL]) == largest([TALL, WIDE])


@pytest.mark.parametrize("count", [1, 2, 7, 16])
@pytest.mark.parametrize("sizes", [[SQUARE], [WIDE, SQUARE, WIDE], [SQUARE, WIDE, TALL]])
def test_every_size_is_drawn_as_often_and_with_every_guidance(sizes, count):
    found = shared_out(sizes, count)
    often = Counter(found)
    assert len(found) == count and set(often) <= set(sizes)
    assert max(often.values()) - min(often.get(one, 0) for one in sizes) <= 1
    if count >= 2 * len(set(sizes)):
        guided = {(size, place % 2) for place, size in enumerate(found)}
        assert len(guided) == 2 * len(set(sizes)), "guidance alternates from picture to picture"


def test_a_text_names_each_size_once():
    assert sizes_text([SQUARE, WIDE, SQUARE]) == "64 x 64, 128 x 64 px"
