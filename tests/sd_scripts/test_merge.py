"""A merge gives sd-scripts' own bits, in a file and in loaded models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.files import file_shapes, write_random_checkpoint
from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.block_weights import block_weights
from copier.checkpoint.blocks import block_of
from copier.checkpoint.family import Family
from copier.checkpoint.names import ModuleName, kohya_modules_text, kohya_modules_unet
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.shapes import REAL, checkpoint_shapes
from copier.diffusion.load import load_checkpoint
from copier.ops.lora_file import read_lora, write_lora
from copier.ops.merge import merge
from copier.ops.merge_modules import merge_into_modules
from copier.pocket.checkpoint import checkpoint_path

pytestmark = pytest.mark.sd_scripts

MODULES = (*kohya_modules_text(), *kohya_modules_unet(conv=True))
KEYS = [module.ldm for module in MODULES]
"""Linear layers, and convolutions with kernels of 1x1 and 3x3."""


@pytest.fixture(scope="module")
def loras(write_random_lora, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("loras")
    first, second = folder / "first.safetensors", folder / "second.safetensors"
    write_random_lora(first, MODULES, seed=1)
    write_random_lora(second, MODULES, seed=2, rank=5)
    return first, second


def arguments(base: Path, loras: Sequence[tuple[Path, float]], precision: str, out: Path) -> Sequence[object]:
    models, ratios = zip(*loras, strict=True)
    return (
        *("merge_lora.py", "--sd_model", base, "--models", *models, "--ratios", *ratios),
        *("--save_precision", precision, "--save_to", out),
    )


def assert_the_same_bits(one: Path, other: Path, base: Path) -> None:
    """In every tensor; those with a module of the LoRA differ from ``base``, the others do not."""
    with TensorReader(one) as ours, TensorReader(other) as theirs, TensorReader(base) as before:
        assert set(ours.keys()) == set(theirs.keys())
        changed = []
        for key in ours.keys():  # noqa: SIM118 - a method, no mapping
            mine, its = ours.tensor(key), theirs.tensor(key)
            assert mine.dtype == its.dtype
            assert torch.equal(mine, its), key
            if not torch.equal(mine, before.tensor(key).to(mine.dtype)):
                changed.append(key)
    assert sorted(changed) == sorted(KEYS)


def test_a_merged_checkpoint_is_sd_scripts_own_to_the_last_bit(loras, run_tools, tmp_path):
    first, second = loras
    cases = {
        "fp16": ([(first, 0.7)], "fp16"),
        "negative": ([(first, -1.0)], "fp16"),
        "several": ([(first, 1.3), (second, -0.35)], "fp16"),
        "fp32": ([(first, 0.7)], "float"),
    }
    base = checkpoint_path()
    run_tools(*(arguments(base, *case, tmp_path / f"{name}.safetensors") for name, case in cases.items()))
    for name, (parts, precision) in cases.items():
        out = tmp_path / f"ours-{name}.safetensors"
        merge(base, parts, out, dtype={"float": "fp32"}.get(precision, precision))
        assert_the_same_bits(out, tmp_path / f"{name}.safetensors", base)


@pytest.mark.slow
def test_a_merged_checkpoint_of_real_size_is_sd_scripts_own_to_the_last_bit(
    write_random_lora, run_tools, tmp_path
):
    """Where a weight is computed in many blocks of rows: 2 GB, and 7 GB of memory in the child."""
    base, lora, theirs, ours = (tmp_path / f"{name}.safetensors" for name in ("base", "lora", "its", "ours"))
    write_random_checkpoint(base, file_shapes(), seed=3, dtype=torch.float16)
    write_random_lora(lora, MODULES, seed=4, rank=64, decay=0.95, sizes=REAL[Family.SD1])
    run_tools(arguments(base, [(lora, 0.7)], "fp16", theirs), sizes=REAL[Family.SD1])
    merge(base, [(lora, 0.7)], ours)
    assert_the_same_bits(ours, theirs, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_merge_in_memory_is_that_of_base_weights_to_the_last_bit(dtype, loras, run_tools, tmp_path):
    base, out = checkpoint_path(), tmp_path / "theirs.safetensors"
    name = str(dtype).removeprefix("torch.")
    run_tools((Path(__file__).with_name("base_weights.py"), base, loras[0], 0.7, name, out))
    model = load_checkpoint(base, dtype=dtype)
    parts = {"unet": model.unet, "text_encoder": model.text_encoder}
    before = {key: tensor.clone() for key, tensor in _state(parts).items()}
    merge_into_modules(model.weight_of, read_lora(loras[0]).weights, 0.7)
    ours = _state(parts)
    with TensorReader(out) as theirs:
        assert set(theirs.keys()) == set(ours)
        assert [key for key, tensor in ours.items() if not torch.equal(tensor, theirs.tensor(key))] == []
    assert sum(not torch.equal(tensor, before[key]) for key, tensor in ours.items()) == len(KEYS)


def test_block_weights_act_on_sd_scripts_modules_except_those_a_short_list_leaves_out(run_tools, tmp_path):
    """Such modules get 0 here, as in the extension that the lists come from, and 1 in sd-scripts."""
    plain, shapes = tmp_path / "plain.safetensors", checkpoint_shapes(REAL[Family.SD1])
    deltas = {module.kohya: signs(module, shapes[module.ldm][2:]) for module in MODULES}
    write_lora(plain, LoraWeights(deltas), {}, dtype="fp32")
    lists = {count: [round(0.15 + 0.05 * number, 2) for number in range(count)] for count in (17, 26)}
    run_tools(
        *(
            (
                *("svd_merge_lora.py", "--models", plain, "--ratios", 1, "--new_rank", 1),
                *("--lbws", list(weights), "--save_to", tmp_path / f"{count}.safetensors"),
            )
            for count, weights in lists.items()
        )
    )
    for count, weights in lists.items():
        ours = block_weights(",".join(map(str, weights)), Family.SD1)
        theirs = read_lora(tmp_path / f"{count}.safetensors").weights
        left_out = set()
        for module in MODULES:
            factor = theirs[module.kohya].frobenius() / deltas[module.kohya].frobenius()
            if ours[block_of(module.ldm)] == 0.0:
                assert factor == pytest.approx(1.0, rel=1e-5)
                left_out.add(block_of(module.ldm))
            else:
                assert factor == pytest.approx(ours[block_of(module.ldm)], rel=1e-5)
        assert len(left_out) == (0 if count == 26 else 8)


def signs(module: ModuleName, kernel: Sequence[int]) -> LowRankDelta:
    """Rank 1, all entries 0.01 or -0.01: the clamp of sd-scripts' svd_merge leaves such factors alone."""
    numbers = torch.tensor([1.0, -1.0])
    up, down = numbers.repeat(8)[:, None], 0.01 * numbers.repeat(8 * math.prod(kernel))[None]
    if kernel:
        up, down = up[:, :, None, None], down.reshape(1, 16, *kernel)
    return LowRankDelta(up, down, 1.0)


def _state(parts: Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{key}": tensor for part, model in parts.items() for key, tensor in model.state_dict().items()
    }
