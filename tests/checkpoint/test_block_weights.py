"""The notations of block weights."""

from __future__ import annotations

import pytest

from copier.checkpoint.block_weights import VECTORS, block_weights
from copier.checkpoint.family import Family
from copier.errors import BadInput, UnknownName


@pytest.mark.parametrize(
    ("family", "lengths"), [(Family.SD1, [17, 26]), (Family.SD2, [17, 26]), (Family.SDXL, [12, 20])]
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


def test_flux_and_sd3_have_names_only():
    assert block_weights("DB18=0,SB37=.5,OTHER=2", Family.FLUX) == {"DB18": 0.0, "SB37": 0.5, "OTHER": 2.0}
    assert block_weights("JB23=-1", Family.SD3) == {"JB23": -1.0}


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
        ("1,1", Family.FLUX, BadInput, "no list at all"),
        ("IN01=1,2", Family.SD1, BadInput, "NAME=WEIGHT"),
        ("IN01=nan", Family.SD1, BadInput, "'nan'"),
        (",".join(["1"] * 16 + ["1e9"]), Family.SD1, BadInput, "'1e9'"),
    ],
)
def test_bad_block_weights_are_refused_with_what_would_do(text, family, kind, words):
    with pytest.raises(kind, match=words):
        block_weights(text, family)
