"""Adding changes block by block: any cut gives the same bits, and rows go where they belong."""

from __future__ import annotations

import torch

from copier.algebra import merging
from copier.algebra.delta import LowRankDelta
from copier.algebra.merging import Change, add_changes, block_rows, matrix_of, merged
from copier.algebra.products import HadamardDelta, Product


def low_rank(out: int, across: int, rank: int = 4, alpha: float = 3.0) -> LowRankDelta:
    return LowRankDelta(torch.randn(out, rank), torch.randn(rank, across), alpha)


def test_parts_that_begin_at_a_block_give_the_bits_of_the_whole(monkeypatch):
    monkeypatch.setattr(merging, "BLOCK_ELEMENTS", 24 * 7)
    torch.manual_seed(1)
    weight = torch.randn(64, 24).half()
    loha = HadamardDelta(
        Product(torch.randn(64, 2), torch.randn(2, 24)), Product(torch.randn(64, 2), torch.randn(2, 24)), 1.0
    )
    changes = [
        Change(low_rank(64, 24), 0.7),
        Change(matrix_of(loha), -0.3),
        Change(low_rank(16, 24), 2.0, first_row=30),
    ]
    whole, parts = torch.empty_like(weight), torch.empty_like(weight)
    add_changes(weight, changes, whole)
    step = 3 * block_rows(24)
    for start in range(0, 64, step):
        rows = slice(start, start + step)
        add_changes(weight[rows], changes, parts[rows], first_row=start)
    assert step == 21
    assert torch.equal(whole, parts)


def test_a_change_of_some_rows_leaves_the_others_alone():
    torch.manual_seed(2)
    weight, delta = torch.randn(48, 10), low_rank(16, 10)
    result = merged(weight, [Change(delta, -1.5, first_row=16)])
    assert torch.equal(result[:16], weight[:16])
    assert torch.equal(result[32:], weight[32:])
    right = weight[16:32].double() - 1.5 * 3.0 / 4 * (delta.up.double() @ delta.down.double())
    assert float((result[16:32] - right).abs().max()) < 1e-5


def test_a_kernel_and_its_flattened_change_agree():
    torch.manual_seed(3)
    weight = torch.randn(6, 5, 3, 3)
    conv = LowRankDelta(torch.randn(6, 2, 1, 1), torch.randn(2, 5, 3, 3), 2.0)
    flat = LowRankDelta(conv.up_matrix, conv.down_matrix, 2.0)
    assert torch.equal(merged(weight, [Change(conv, 1.0)]), merged(weight, [Change(flat, 1.0)]))
