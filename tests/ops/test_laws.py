"""The laws of the operations through files: any family, style of names, shape, rank, alpha and sign."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import safetensors.torch
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from copier.algebra import merging
from copier.algebra.delta import cast
from copier.algebra.merging import Change
from copier.checkpoint import straight as straight_files
from copier.checkpoint.dtypes import CHOICES
from copier.checkpoint.header import read_header
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.targets import module_targets
from copier.checkpoint.writer import TensorWriter, file_order, write_tensors
from copier.ops import merge as streaming
from copier.ops.combine import combine, difference
from copier.ops.extract import extract
from copier.ops.lora_reader import LoraReader
from copier.ops.merge import merge
from copier.ops.resize import resize
from tests.ops.dense_route import change_of, check_merged, expected_merge
from tests.ops.small_models import MODELS, Model, Module

LAWS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**32 - 1)
RATIOS = st.sampled_from([1.0, -1.0, 0.7, -2.5, 0.0])
LARGEST_RANK = 9
"""Beyond the sides of most weights here."""
ALPHAS = st.sampled_from([None, None, 0.0, 0.5, -2.0, 4.0, 257.0])
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
Parts = list[tuple[Module, int, float | None]]
"""Modules of a LoRA with their ranks and alphas; None: it has none."""


@st.composite
def loras(draw: st.DrawFn, count: int) -> tuple[Model, list[Parts]]:
    """A model, and what ``count`` LoRAs for it, under one style of names, consist of."""
    model = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    modules = st.sampled_from(draw(st.sampled_from([model.kohya, model.dotted])))
    some = st.lists(modules, min_size=1, unique=True)
    ranks = st.integers(1, LARGEST_RANK)
    return model, [[(one, draw(ranks), draw(ALPHAS)) for one in draw(some)] for _ in range(count)]


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is one: every example writes and flushes files."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as place:
        yield Path(place)


@contextmanager
def folder_of(written: list[Parts], seed: int) -> Iterator[tuple[Path, list[Path]]]:
    """A folder with the LoRAs in float32, and their paths."""
    random = torch.Generator().manual_seed(seed)
    with memory_folder() as folder:
        paths = [folder / f"{number}.safetensors" for number in range(len(written))]
        for path, parts in zip(paths, written, strict=True):
            tensors = {}
            for module, rank, alpha in parts:
                out, *rest = module.shape
                up, down = ("lora_B", "lora_A") if "." in module.name else ("lora_up", "lora_down")
                ones = [1] * len(rest[1:])
                tensors[f"{module.name}.{up}.weight"] = torch.randn(out, rank, *ones, generator=random)
                tensors[f"{module.name}.{down}.weight"] = 0.1 * torch.randn(rank, *rest, generator=random)
                if alpha is not None:
                    tensors[f"{module.name}.alpha"] = torch.tensor(alpha)
            write_tensors(path, tensors)
        yield folder, paths


def checkpoint_at(path: Path, model: Model, seed: int, dtypes: list[torch.dtype]) -> None:
    random = torch.Generator().manual_seed(seed)
    tensors = {
        key: torch.randn(shape, generator=random).to(dtypes[number % len(dtypes)])
        for number, (key, shape) in enumerate(model.keys.items())
    }
    write_tensors(path, {**tensors, "model_ema.num_updates": torch.tensor(7)})


KOHYA = (("unet.", "lora_unet_"), ("text_encoder_2.", "lora_te2_"), ("text_encoder.", "lora_te_"))
Changes = dict[tuple[str, int, int], torch.Tensor]


def dense(path: Path, model: Model) -> Changes:
    """Key, first row and number of rows -> the change, multiplied out in float64."""
    tensors = safetensors.torch.load(path.read_bytes())
    found: Changes = {}
    for module in (*model.kohya, *model.dotted):
        renamed = [
            kohya + module.name.removeprefix(start).replace(".", "_")
            for start, kohya in KOHYA
            if module.name.startswith(start)
        ]
        for name in (module.name, *renamed):
            change = change_of(tensors, name)
            if change is not None:
                found[module.key, module.row, module.shape[0]] = change.reshape(module.shape)
    assert len(found) == sum(key.endswith((".lora_up.weight", ".lora_B.weight")) for key in tensors)
    return found


def total(*terms: tuple[Changes, float]) -> Changes:
    result: Changes = {}
    for changes, ratio in terms:
        for place, change in changes.items():
            result[place] = result.get(place, 0.0) + ratio * change
    return result


def norm(changes: Changes) -> float:
    return math.hypot(*(float(change.norm()) for change in changes.values()))


def agree(left: Changes, right: Changes, size: float) -> bool:
    """Are they the same but for 1e-5 of ``size``, the norm of what they were computed from?"""
    return norm(total((left, 1.0), (right, -1.0))) <= 1e-5 * size


@LAWS
@given(SEEDS, loras(2), RATIOS, RATIOS, st.booleans())
def test_what_was_added_is_taken_away(seed, case, x, y, exact):
    model, written = case
    assume(y != 0.0)
    with folder_of(written, seed) as (folder, (a, b)):
        both, rest = folder / "both.safetensors", folder / "rest.safetensors"
        combine([(a, x), (b, y)], both, exact=True, dtype="fp32")
        how = {"exact": True} if exact else {"rank": LARGEST_RANK}
        difference(both, a, rest, ratios=(1.0, -x), dtype="fp32", **how)
        size = norm(dense(a, model)) + norm(dense(b, model))
        assert agree(dense(rest, model), total((dense(b, model), y)), (abs(x) + abs(y)) * size)


@LAWS
@given(SEEDS, loras(2), RATIOS, RATIOS, RATIOS, st.booleans())
def test_combining_is_linear_in_the_weights(seed, case, x, y, z, exact):
    model, written = case
    with folder_of(written, seed) as (folder, (a, b)):
        out = folder / "out.safetensors"
        how = {"exact": True} if exact else {"rank": 3 * LARGEST_RANK}
        report = combine([(a, x), (b, y), (a, z)], out, dtype="fp32", **how)
        right = total((dense(a, model), x + z), (dense(b, model), y))
        size = (abs(x) + abs(z)) * norm(dense(a, model)) + abs(y) * norm(dense(b, model))
        assert agree(dense(out, model), right, size)
        assert report.residual <= 1e-5


@LAWS
@given(SEEDS, loras(1))
def test_a_resize_to_the_full_rank_changes_nothing(seed, case):
    model, written = case
    with folder_of(written, seed) as (folder, (a,)):
        report = resize(a, folder / "out.safetensors", rank=LARGEST_RANK, dtype="fp32")
        assert agree(dense(folder / "out.safetensors", model), dense(a, model), norm(dense(a, model)))
        assert report.residual <= 1e-6


@LAWS
@given(SEEDS, loras(2), RATIOS, st.sampled_from(FLOATS))
def test_merging_and_merging_the_negative_gives_the_base_back_within_the_dtype(seed, case, weight, dtype):
    model, written = case
    assume(all(alpha != 257.0 for parts in written for _, _, alpha in parts))  # beyond what fp8 holds
    with folder_of(written, seed) as (folder, (a, b)):
        base, merged, back = (folder / f"{name}.safetensors" for name in ("base", "merged", "back"))
        checkpoint_at(base, model, seed, [dtype])
        terms = [(a, weight), (b, 0.5)]
        negative = [(path, -ratio) for path, ratio in terms]
        merge(base, terms, merged)
        merge(merged, negative, back)
        modules = (*model.kohya, *model.dotted)
        check_merged(base, terms, merged, modules)
        check_merged(merged, negative, back, modules)
        step = torch.finfo(dtype).eps
        with TensorReader(base) as before, TensorReader(merged) as between, TensorReader(back) as after:
            _, sizes = expected_merge({key: between.tensor(key) for key in model.keys}, negative, modules)
            for key in model.keys:
                first, last = before.tensor(key).double(), after.tensor(key).double()
                size = first.abs() + between.tensor(key).double().abs()
                rounding = 1e-6 * sizes.get(key, 0.0) + torch.finfo(dtype).smallest_normal * step
                assert bool(((last - first).abs() <= step * size + rounding).all())


def in_memory(
    base: Path, terms: list[tuple[Path, float]], model: Model, dtype: str
) -> dict[str, torch.Tensor]:
    """The merge of whole tensors, all in memory."""
    names = {module.name: module for module in (*model.kohya, *model.dotted)}
    changes: dict[str, list[Change]] = {}
    for path, weight in terms:
        with LoraReader(path) as lora:
            for name, parts in lora.modules.items():
                stored = next(iter(parts.values())).rpartition(".lora_")[0].removesuffix(".alpha")
                module = names[stored]
                changes.setdefault(module.key, []).append(Change(lora.delta(name), weight, module.row))
    tensors = {}
    with TensorReader(base) as reader:
        for key in reader.header.tensors:
            tensor = reader.tensor(key)
            chosen = CHOICES.get(dtype, tensor.dtype) if tensor.is_floating_point() else tensor.dtype
            if key in changes:
                tensors[key] = torch.empty(tensor.shape, dtype=chosen)
                merging.add_changes(tensor, changes[key], tensors[key], name=key)
            else:
                tensors[key] = cast(tensor.float(), chosen, key) if chosen is not tensor.dtype else tensor
    return tensors


@LAWS
@given(
    SEEDS,
    loras(3),
    st.lists(RATIOS.filter(bool), min_size=3, max_size=3),
    st.lists(st.sampled_from(FLOATS), min_size=1, max_size=4),
    st.sampled_from(["keep", "keep", "fp32", "bf16"]),
    st.integers(1, 90),
    st.integers(1, 40).map(lambda count: 8 * count),
)
def test_merging_in_parts_writes_the_bytes_that_merging_whole_tensors_gives(
    seed, case, weights, dtypes, dtype, elements, part_bytes
):
    model, written = case
    assume(all(alpha != 257.0 for parts in written for _, _, alpha in parts))
    with folder_of(written, seed) as (folder, paths), mock.patch.object(merging, "BLOCK_ELEMENTS", elements):
        base, out, whole = (folder / f"{name}.safetensors" for name in ("base", "out", "whole"))
        checkpoint_at(base, model, seed, dtypes)
        terms = list(zip(paths, weights, strict=True))
        events = []
        straight = mock.patch.object(straight_files, "LONG", 0 if seed % 2 else 1 << 40)
        with mock.patch.object(streaming, "PART_BYTES", part_bytes), straight:
            merge(base, terms, out, dtype=dtype, observer=events.append)
        write_tensors(whole, in_memory(base, terms, model, dtype), read_header(out).metadata)
        assert out.read_bytes() == whole.read_bytes()
        assert len(events) > 1


@LAWS
@given(SEEDS, st.lists(st.sampled_from([*FLOATS, torch.int64]), min_size=1, max_size=6), st.integers(1, 40))
def test_a_file_written_piece_by_piece_has_the_bytes_of_one_written_whole(seed, dtypes, size):
    random = torch.Generator().manual_seed(seed)
    tensors = {f"k{n}": torch.randn(n, 5, generator=random).to(dtype) for n, dtype in enumerate(dtypes)}
    with memory_folder() as folder:
        pieces, whole = folder / "pieces.safetensors", folder / "whole.safetensors"
        write_tensors(whole, tensors, {"a": "b"})
        ordered = file_order(tensors)
        plan = {key: (tensor.dtype, tensor.shape) for key, tensor in ordered.items()}
        with TensorWriter(pieces, plan, {"a": "?"}) as writer:
            for key, tensor in ordered.items():
                content = bytes(tensor.flatten().view(torch.uint8).numpy()) if tensor.numel() else b""
                writer.write_raw(key, (content[n : n + size] for n in range(0, len(content), size)))
            writer.restate({"a": "b"})
        assert pieces.read_bytes() == whole.read_bytes()


@settings(LAWS, max_examples=30)
@given(SEEDS, loras(1), st.sampled_from([1.0, -0.7]))
def test_a_lora_that_was_merged_is_extracted_again(seed, case, weight):
    model, written = case
    assume(any(alpha != 0.0 for _, _, alpha in written[0]))
    with folder_of(written, seed) as (folder, (a,)):
        base, tuned, out = (folder / f"{name}.safetensors" for name in ("base", "tuned", "out"))
        checkpoint_at(base, model, seed, [torch.float32])
        merge(base, [(a, weight)], tuned)
        report = extract(tuned, base, out, rank=99, conv_rank=99, dtype="fp32", threads=1)
        targets, tensors = module_targets(read_header(base)), safetensors.torch.load(out.read_bytes())
        found = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in model.keys.items()}
        for name in {key.partition(".")[0] for key in tensors}:
            change = found[targets[name].key][slice(*(targets[name].rows or (None,)))]
            change += change_of(tensors, name).reshape(change.shape)
        right = {key: torch.zeros_like(change) for key, change in found.items()}
        for (key, row, rows), change in dense(a, model).items():
            right[key][row : row + rows] += weight * change.reshape(right[key][row : row + rows].shape)
        size = math.hypot(*(float(change.norm()) for change in right.values()))
        error = math.hypot(*(float((found[key] - right[key]).norm()) for key in right))
        assert error <= 1e-5 * (size + 10.0)
        assert report.left_out == ()
