"""The notations of block weights."""

from __future__ import annotations

import pytest

from copier.checkpoint.block_weights import VECTORS, block_weights
from copier.checkpoint.family import Family
from copier.errors import BadInput, UnknownName


@pytest.mark.parametrize(
    ("family", "lengths"),
    [(Family.SD1, [17, 26]), (Family.SD2, [17, 26]), (Family.SDXL, [12, 20]), (Family.FLUX, [58, 61])],
)
def test_the_vectors_have_the_lengths_that_users_know(family, lengths):
    assert [len(vector) for vector in VECTORS[family]] == lengths


def test_a_short_vector_silences_the_blocks_without_attention():
    weights = block_weights("1,.5,0,0,0,0,0,0,0,0,0,0,0,0,0,0,-2", Family.SD1)
    assert (weights["BASE"], weights["IN01"], weights["OUT11"]) == (1.0, 0.5, -2.0)
    assert weights["IN00"] == weights["OUT02"] == 0.0
    assert len(weights) == 26


def test_the_middle_block_is_the_fourteenth_of_26_and_the_sixth_of_12():
    assert block_weights(",".join("1" if i == 13 else "0" for i in range(26)), Family.SD1)["M00"] == 1.0
    assert block_weights(",".join("1" if i == 5 else "0" for i in range(12)), Family.SDXL)["M00"] == 1.0


def test_flux_and_sd3_have_names():
    assert block_weights("DB18=0,SB37=.5,OTHER=2", Family.FLUX) == {"DB18": 0.0, "SB37": 0.5, "OTHER": 2.0}
    assert block_weights("JB23=-1", Family.SD3) == {"JB23": -1.0}


def test_the_vectors_of_flux_count_double_blocks_before_single_ones():
    numbers = [str(number / 100) for number in range(1, 58)]
    blocks = {f"DB{i:02d}": (i + 1) / 100 for i in range(19)}
    blocks |= {f"SB{i:02d}": (i + 20) / 100 for i in range(38)}
    assert block_weights(",".join(["2", *numbers]), Family.FLUX) == {"BASE": 2.0, **blocks}
    whole = block_weights(",".join(["2", "2", "3", *numbers, "3"]), Family.FLUX)
    assert whole == {"BASE": 2.0, "OTHER": 3.0, **blocks}


@pytest.mark.parametrize(("place", "words"), [(1, "1 and 2 .*BASE"), (60, "3 and 61 .*OTHER")])
def test_two_weights_for_what_is_one_block_here_are_refused(place, words):
    numbers = ["1"] * 61
    numbers[place] = "0"
    with pytest.raises(BadInput, match=words):
        block_weights(",".join(numbers), Family.FLUX)


def test_named_blocks_leave_the_others_alone():
    assert block_weights(" in04 = 0.5, OUT03=0", Family.SD1) == {"IN04": 0.5, "OUT03": 0.0}


@pytest.mark.parametrize(
    ("text", "family", "kind", "words"),
    [
        ("1,1,1", Family.SD1, BadInput, "17 or 26"),
        ("1,1,1", Family.UNKNOWN, BadInput, "no list at all"),
        ("IN12=1", Family.SD1, UnknownName, "IN11"),
        ("IN09=1", Family.SDXL, UnknownName, "IN08"),
        ("IN01=1,in01=2", Family.SD1, BadInput, "two weights"),
        ("1,1", Family.FLUX, BadInput, "58 or 61"),
        ("1,1", Family.SD3, BadInput, "no list at all"),
        ("IN01=1,2", Family.SD1, BadInput, "NAME=WEIGHT"),
        ("IN01=nan", Family.SD1, BadInput, "'nan'"),
        (",".join(["1"] * 16 + ["1e9"]), Family.SD1, BadInput, "'1e9'"),
    ],
)
def test_bad_block_weights_are_refused_with_what_would_do(text, family, kind, words):
    with pytest.raises(kind, match=words):
        block_weights(text, family)
