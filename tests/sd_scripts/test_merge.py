"""A merge gives sd-scripts' own bits, in a file and in loaded models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.files import checkpoint_shapes, write_random_checkpoint
from copier.checkpoint.names import kohya_modules_text, kohya_modules_unet
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.shapes import REAL
from copier.diffusion.load import load_checkpoint
from copier.ops.lora_file import read_lora
from copier.ops.merge import merge
from copier.ops.merge_modules import merge_into_modules
from copier.pocket.checkpoint import checkpoint_path

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
    write_random_checkpoint(base, checkpoint_shapes(), seed=3, dtype=torch.float16)
    write_random_lora(lora, MODULES, seed=4, rank=64, decay=0.95, widths=REAL)
    run_tools(arguments(base, [(lora, 0.7)], "fp16", theirs), widths=REAL)
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
    merge_into_modules(model.unet, model.text_encoder, read_lora(loras[0]).weights, 0.7)
    ours = _state(parts)
    with TensorReader(out) as theirs:
        assert set(theirs.keys()) == set(ours)
        assert [key for key, tensor in ours.items() if not torch.equal(tensor, theirs.tensor(key))] == []
    assert sum(not torch.equal(tensor, before[key]) for key, tensor in ours.items()) == len(KEYS)


def _state(parts: Mapping[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{key}": tensor for part, model in parts.items() for key, tensor in model.state_dict().items()
    }
