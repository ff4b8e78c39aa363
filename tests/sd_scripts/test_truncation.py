"""Truncation against sd-scripts: the same singular values, and what its clamp and its extra rank do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.names import kohya_modules_text, kohya_modules_unet
from copier.checkpoint.reader import TensorReader
from copier.ops.combine import difference
from copier.ops.extract import extract
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.ops.merge import merge
from copier.ops.resize import resize
from copier.pocket.checkpoint import checkpoint_path

pytestmark = pytest.mark.sd_scripts

ATTENTION = (*kohya_modules_text(), *kohya_modules_unet(conv=False))
SOME = (*ATTENTION[::8], *kohya_modules_unet(conv=True)[::7])
"""Enough of linear layers and of kernels of 1x1 and 3x3."""
DYNAMIC = {"sv_ratio": 4.0, "sv_fro": 0.9, "sv_cumulative": 0.8}
RANK = 8


def dense(delta: LowRankDelta) -> torch.Tensor:
    whole: torch.Tensor = delta.to(dtype=torch.float64).dense().flatten(1)
    return whole


def singular_values(delta: LowRankDelta) -> torch.Tensor:
    values: torch.Tensor = torch.linalg.svdvals(dense(delta))[: delta.rank]
    return values


@pytest.fixture(scope="module")
def resized(write_random_lora, run_tools, tmp_path_factory) -> Path:
    """A folder with ``whole`` and what sd-scripts makes of it, by rank and by its dynamic methods."""
    folder = tmp_path_factory.mktemp("resized")
    whole = folder / "whole.safetensors"
    write_random_lora(whole, SOME, seed=1)

    def tool(name: str, *arguments: object) -> tuple[object, ...]:
        out = folder / f"{name}.safetensors"
        return ("resize_lora.py", "--model", whole, "--save_to", out, *arguments)

    dynamic = ("--new_rank", 64, "--dynamic_method")
    run_tools(
        tool("rank", "--new_rank", RANK),
        tool("conv-rank", "--new_rank", RANK, "--new_conv_rank", 5),
        *(tool(name, *dynamic, name, "--dynamic_param", bound) for name, bound in DYNAMIC.items()),
    )
    return folder


def test_a_fixed_rank_keeps_sd_scripts_singular_values(resized, tmp_path):
    resize(resized / "whole.safetensors", tmp_path / "ours", rank=RANK, dtype="fp32")
    ours, theirs = read_lora(tmp_path / "ours").weights, read_lora(resized / "rank.safetensors").weights
    whole = read_lora(resized / "whole.safetensors").weights
    assert set(ours) == set(theirs)
    for name, delta in ours.items():
        mine, its = singular_values(delta), singular_values(theirs[name])
        assert len(mine) == len(its) == RANK
        # What is right to the last digits is computed in float64; sd-scripts' float32 is further from it.
        right = singular_values(whole[name])[:RANK]
        torch.testing.assert_close(mine, right, rtol=0.0, atol=2e-6 * float(right[0]))
        torch.testing.assert_close(mine, its, rtol=0.0, atol=5e-6 * float(right[0]))
        apart = torch.linalg.norm(dense(delta) - dense(theirs[name]))
        assert apart <= 1e-5 * torch.linalg.norm(its)


def test_the_rank_of_convolutions_is_for_large_kernels_alone_and_in_sd_scripts_for_1x1_too(resized, tmp_path):
    resize(resized / "whole.safetensors", tmp_path / "ours", rank=RANK, conv_rank=5)
    theirs = read_lora(resized / "conv-rank.safetensors").weights
    kinds = set()
    for name, delta in read_lora(tmp_path / "ours").weights.items():
        kinds.add((delta.down.ndim == 4, delta.is_conv))
        assert delta.rank == (5 if delta.is_conv else RANK)
        assert theirs[name].rank == (5 if delta.down.ndim == 4 else RANK)
    assert kinds == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("method", DYNAMIC)
def test_a_dynamic_method_of_sd_scripts_keeps_one_rank_more_than_its_bound_needs(method, resized, tmp_path):
    bound = DYNAMIC[method]
    resize(resized / "whole.safetensors", tmp_path / "ours", dtype="fp32", **{method: bound})
    ours, theirs = read_lora(tmp_path / "ours").weights, read_lora(resized / f"{method}.safetensors").weights
    whole = read_lora(resized / "whole.safetensors").weights
    ranks = set()
    for name, delta in ours.items():
        values, rank = singular_values(whole[name]), delta.rank
        assert theirs[name].rank == rank + 1
        assert satisfies(method, bound, values, rank)
        assert not satisfies(method, bound, values, rank - 1)
        ranks.add(rank)
    assert len(ranks) > 1
    assert min(ranks) > 1


def satisfies(method: str, bound: float, values: torch.Tensor, rank: int) -> bool:
    """Does keeping ``rank`` of them do what the method promises?"""
    if method == "sv_ratio":
        return bool(values[rank] < values[0] / bound)
    power = 2 if method == "sv_fro" else 1
    kept = float((values[:rank] ** power).sum() / (values**power).sum())
    return kept ** (1 / power) >= bound


def hadamard(size: int) -> torch.Tensor:
    """Sylvester's: orthogonal, entries of one magnitude, half of them negative but in the first column."""
    one = torch.ones(1, 1)
    while len(one) < size:
        one = torch.cat([torch.cat([one, one], 1), torch.cat([one, -one], 1)])
    return one / math.sqrt(size)


def test_a_difference_is_sd_scripts_where_its_clamp_cannot_bite(run_tools, tmp_path):
    """Singular vectors of one magnitude: more than 1 % of the entries that it clamps are the largest."""
    paths, theirs = two_files(tmp_path), tmp_path / "theirs.safetensors"
    values = 0.1 * 0.75 ** torch.arange(2 * RANK + 4)
    with TensorReader(checkpoint_path()) as pocket:
        shapes = {module.kohya: pocket.info(module.ldm).shape for module in ATTENTION[::8]}
    for start, path in enumerate(paths):
        mine = slice(start, None, 2)
        weights = LoraWeights({name: flat(shape, values, mine) for name, shape in shapes.items()})
        described = network_metadata(weights, name=path.stem, family=Family.SD1)
        write_lora(path, weights, described, dtype="fp32")
    run_tools(svd_merge(paths, theirs))
    difference(*paths, tmp_path / "ours", rank=RANK, dtype="fp32")
    its = read_lora(theirs).weights
    for name, delta in read_lora(tmp_path / "ours").weights.items():
        torch.testing.assert_close(singular_values(delta), 1.5 * values[:RANK].double(), rtol=1e-5, atol=0.0)
        torch.testing.assert_close(dense(delta), dense(its[name]), rtol=0.0, atol=1e-7)


def flat(shape: Sequence[int], values: torch.Tensor, mine: slice) -> LowRankDelta:
    """Those ``mine`` of the singular ``values``, with columns of Hadamard matrices as vectors; scale 1.5."""
    out, inner, *kernel = shape
    some = slice(1, 1 + len(values))
    up, down = (hadamard(out)[:, some] * values)[:, mine], hadamard(inner)[some][mine]
    if kernel:
        up, down = up[:, :, None, None], down[:, :, None, None]
    return LowRankDelta(up, down, 1.5 * len(down))


def test_a_difference_is_nearer_to_the_best_than_sd_scripts_whose_clamp_bites(
    write_random_lora, run_tools, tmp_path
):
    paths, theirs, ours = two_files(tmp_path), tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    for seed, path in enumerate(paths):
        write_random_lora(path, ATTENTION[::8], seed=seed, decay=0.6)
    run_tools(svd_merge(paths, theirs))
    difference(*paths, ours, rank=RANK, dtype="fp32")
    first, second = (read_lora(path).weights for path in paths)
    exact = {name: dense(first[name]) - dense(second[name]) for name in first}
    assert 1.0 - 1e-6 < excess(ours, exact) < 1.00001
    assert excess(theirs, exact) > 1.3


def two_files(folder: Path) -> tuple[Path, Path]:
    return folder / "minuend.safetensors", folder / "subtrahend.safetensors"


def svd_merge(paths: Sequence[Path], out: Path) -> tuple[object, ...]:
    ratios = ("--ratios", 1, -1, "--new_rank", RANK)
    return ("svd_merge_lora.py", "--models", *paths, *ratios, "--save_to", out)


def excess(lora: Path, exact: Mapping[str, torch.Tensor]) -> float:
    """Error of the LoRA over that of the best approximation of its rank, over all modules (>= 1)."""
    weights = read_lora(lora).weights
    best = sum(float((torch.linalg.svdvals(exact[name])[RANK:] ** 2).sum()) for name in weights)
    error = sum(float(((dense(delta) - exact[name]) ** 2).sum()) for name, delta in weights.items())
    return math.sqrt(error / best)


def test_an_extracted_lora_is_nearer_to_the_best_than_sd_scripts(write_random_lora, run_tools, tmp_path):
    """And has the text encoder, which sd-scripts drops unless a weight differs by more than 0.01."""
    base, tuned = checkpoint_path(), tmp_path / "tuned.safetensors"
    lora, ours = tmp_path / "lora.safetensors", tmp_path / "ours.safetensors"
    write_random_lora(lora, ATTENTION, seed=5, decay=0.6)
    merge(base, [(lora, 0.05)], tuned, dtype="fp32")

    def tool(out: Path, *arguments: object) -> tuple[object, ...]:
        models = ("--model_org", base, "--model_tuned", tuned, "--dim", RANK, "--save_to", out)
        return ("extract_lora_from_models.py", *models, "--save_precision", "float", *arguments)

    plain, asked = tmp_path / "plain.safetensors", tmp_path / "asked.safetensors"
    run_tools(tool(plain))
    run_tools(tool(asked, "--min_diff", 0, "--clamp_quantile", 1))
    extract(tuned, base, ours, rank=RANK, dtype="fp32")
    with TensorReader(tuned) as after, TensorReader(base) as before:
        exact = {
            module.kohya: (after.tensor(module.ldm).double() - before.tensor(module.ldm).double()).flatten(1)
            for module in ATTENTION
        }
    assert set(read_lora(ours).weights) == set(read_lora(asked).weights) == set(exact)
    assert set(read_lora(plain).weights) == {name for name in exact if not name.startswith("lora_te_")}
    assert 1.0 - 1e-6 < excess(ours, exact) < 1.00001
    assert excess(plain, exact) > 5.0
    # Asked not to clamp, it still cuts what lies below minus the largest entry.
    assert excess(asked, exact) > 1.1
