"""Cosines of deltas in factor space, against the matrices multiplied out."""

from __future__ import annotations

import pytest
import torch

from copier.algebra.agreement import cosines
from copier.algebra.arithmetic import add, scaled
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights


def lora(seed: int, rank: int, names: tuple[str, ...] = ("lora_unet_x", "lora_unet_y")) -> LoraWeights:
    draw = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LowRankDelta(
                torch.randn(24, rank, generator=draw), torch.randn(rank, 20, generator=draw), alpha=3.0
            )
            for name in names
        }
    )


def flat(one: LoraWeights, names: list[str]) -> torch.Tensor:
    parts = [one[name].dense().flatten() if name in one else torch.zeros(24 * 20) for name in names]
    return torch.cat(parts).double()


def test_cosines_are_those_of_the_matrices() -> None:
    loras = [lora(1, 4), lora(2, 7), add(lora(1, 4), lora(3, 2)), lora(4, 3, ("lora_unet_x", "lora_unet_z"))]
    names = ["lora_unet_x", "lora_unet_y", "lora_unet_z"]
    found = cosines(loras)
    for i, left in enumerate(loras):
        for j, right in enumerate(loras):
            x, y = flat(left, names), flat(right, names)
            assert found[i][j] == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-6)
    assert found[0][2] > 0.5 > abs(found[0][1])


def test_opposite_changes_have_a_cosine_of_minus_one_and_nothing_has_none() -> None:
    one = lora(1, 4)
    found = cosines([one, scaled(one, -2.0), scaled(one, 0.0)])
    assert found[0][1] == pytest.approx(-1.0)
    assert found[0][2] == 0.0
