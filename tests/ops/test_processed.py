"""A sum of LoRAs by way of a processed checkpoint: in float32 the exact sum, in float16 what is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.targets import trained_names
from copier.ops.combine import combine
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.ops.processed import combine_by_checkpoint
from copier.pocket.checkpoint import checkpoint_path

SCALE = 2e-3
"""Of the factors' product: changes as small beside the weights as trained ones are."""


def made(path: Path, seed: int) -> Path:
    header = read_header(checkpoint_path())
    draw = torch.Generator().manual_seed(seed)
    names = {name: t for name, t in trained_names(header, conv=False, text=False).items() if "attn" in name}
    deltas = {}
    for name, target in list(names.items())[:12]:
        out, columns = header.tensors[target.key].shape[:2]
        up = torch.randn(out, 4, generator=draw) * SCALE
        deltas[name] = LowRankDelta(up, torch.randn(4, columns, generator=draw), 4.0)
    weights = LoraWeights(deltas)
    write_lora(path, weights, network_metadata(weights, name=path.stem, family=Family.SD1), dtype="fp32")
    return path


def error(found: LoraWeights, exact: LoraWeights) -> float:
    """|found - exact| / |exact|, over all modules."""
    off = sum(float((found[name].dense() - exact[name].dense()).square().sum()) for name in exact)
    return float((off / sum(float(one.dense().square().sum()) for one in exact.values())) ** 0.5)


@pytest.mark.parametrize(("processed", "low", "high"), [("fp32", 0.0, 1e-4), ("fp16", 1e-3, 0.2)])
def test_the_route_gives_the_exact_sum_but_for_the_checkpoints_rounding(
    tmp_path: Path, processed: str, low: float, high: float
) -> None:
    terms = [(made(tmp_path / f"{i}.safetensors", i), 0.5) for i in range(2)]
    combine(terms, tmp_path / "exact.safetensors", exact=True, dtype="fp32")
    combine_by_checkpoint(
        checkpoint_path(),
        terms,
        tmp_path / "routed.safetensors",
        work=tmp_path,
        processed=processed,
        dtype="fp32",
    )
    exact = read_lora(tmp_path / "exact.safetensors").weights
    routed = read_lora(tmp_path / "routed.safetensors").weights
    assert set(routed) == set(exact)
    assert {delta.rank for delta in routed.values()} == {8}
    assert low <= error(routed, exact) <= high
    assert not (tmp_path / "processed.safetensors").exists()
