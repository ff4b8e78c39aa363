"""Merging into a checkpoint file and into modules: both routes, and both against dense maths."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.names import kohya_modules, module_from_kohya
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.errors import BadInput, Cancelled
from copier.ops.inspect import inspect
from copier.ops.lora_file import write_lora
from copier.ops.merge import merge
from copier.ops.merge_modules import merge_into_modules
from copier.progress import CancelToken

DATA = Path(__file__).parents[1] / "checkpoint" / "data" / "sd15.json"
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CHANGED = (
    Q,
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_up_blocks_1_resnets_0_conv1",
    "lora_te_text_model_encoder_layers_11_mlp_fc2",
)


@functools.cache
def shapes():
    """SD 1.5's keys with every size cut to 10, so that the whole checkpoint has 0.5 MB."""
    table = json.loads(DATA.read_text(encoding="utf-8"))["checkpoint"]
    return {key: tuple(min(size, 10) for size in shape) for key, (_, shape) in table.items()}


@functools.cache
def checkpoint_tensors(dtype):
    draw = torch.Generator().manual_seed(5)
    tensors = {key: torch.randn(shape, generator=draw).to(dtype) for key, shape in shapes().items()}
    tensors[POSITIONS] = torch.arange(10)[None]
    return tensors


def weights(*, rank=3, alpha=None, names=CHANGED, size=0.5):
    deltas = {}
    for name in names:
        out, *rest = shapes()[module_from_kohya(name).ldm]
        up = size * torch.randn(out, rank, *([1] * len(rest[1:])))
        deltas[name] = LowRankDelta(up, torch.randn(rank, *rest), float(alpha or rank))
    return LoraWeights(deltas)


@pytest.fixture
def base(tmp_path):
    (tmp_path / "out").mkdir()
    path = tmp_path / "base.safetensors"
    write_tensors(path, checkpoint_tensors(torch.float16), {"modelspec.title": "base"})
    return path


def lora_at(path, source, metadata=None):
    write_lora(path, source, metadata or {}, dtype="fp32")
    return path


def read(path):
    with TensorReader(path) as reader:
        return {key: reader.tensor(key) for key in reader.header.tensors}


def dense64(delta):
    up, down = delta.up.double().flatten(1), delta.down.double().flatten(1)
    return (delta.alpha / delta.rank * up @ down).reshape(delta.shape)


def error(left, right):
    left, right = left.detach().double(), right.detach().double()
    return float((left - right).norm() / right.norm())


def test_changed_tensors_are_base_plus_weighted_deltas_and_all_others_keep_their_bytes(base):
    first, second = weights(alpha=1.5), weights(rank=5, names=CHANGED[:2])
    out = base.parent / "out" / "m.safetensors"
    report = merge(
        base,
        [
            (lora_at(base.parent / "1.safetensors", first), 0.8),
            (lora_at(base.parent / "2.safetensors", second), -1.5),
        ],
        out,
    )
    before, after = read(base), read(out)
    assert list(before) == list(after)
    keys = {module_from_kohya(name).ldm for name in CHANGED}
    for name in CHANGED:
        key = module_from_kohya(name).ldm
        right = before[key].double() + 0.8 * dense64(first[name])
        if name in second:
            right = right - 1.5 * dense64(second[name])
        assert error(after[key], right) < TOLERANCE[torch.float16] / 4
        assert error(after[key], before[key]) > 0.2
    assert all(torch.equal(before[key], after[key]) for key in before if key not in keys)
    assert report.changed == len(keys)
    assert report.ranks == {"linear": (3, 5), "conv": (3, 3), "text": (3, 3)}
    assert len({file.sha256 for file in report.inputs}) == 3


def test_a_lora_of_weight_zero_leaves_the_file_as_it_was_but_for_its_metadata(base):
    out = base.parent / "out" / "m.safetensors"
    report = merge(base, [(lora_at(base.parent / "l.safetensors", weights()), 0.0)], out)
    assert report.changed == 0
    with TensorReader(base) as before, TensorReader(out) as after:
        ends = [path.read_bytes()[r.header.data_start :] for path, r in ((base, before), (out, after))]
        assert ends[0] == ends[1]
        assert after.metadata["modelspec.title"] == "base"
        assert json.loads(after.metadata["copier_operation"])["operation"] == "merge"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_another_dtype_casts_what_floats_and_keeps_integers(base, dtype):
    out = base.parent / "out" / "m.safetensors"
    merge(base, [(lora_at(base.parent / "l.safetensors", weights()), 1.0)], out, dtype=dtype)
    found = inspect(out)
    assert found["dtypes"] == {"F32" if dtype == "fp32" else "BF16": 1130, "I64": 1}
    assert found["family"] == "sd1"
    assert torch.equal(read(out)[POSITIONS], torch.arange(10)[None])
    untouched = "first_stage_model.quant_conv.weight"
    assert error(read(out)[untouched], read(base)[untouched]) < TOLERANCE[torch.bfloat16]


def test_every_module_of_kohya_can_be_merged(base):
    everything = weights(rank=1, names=tuple(kohya_modules()))
    out = base.parent / "out" / "m.safetensors"
    report = merge(base, [(lora_at(base.parent / "l.safetensors", everything), 1.0)], out)
    assert report.changed == 350


def test_an_fp8_checkpoint_is_merged_and_cast_once(tmp_path):
    tensors = {
        key: value.to(torch.float8_e4m3fn) if value.is_floating_point() else value
        for key, value in checkpoint_tensors(torch.float16).items()
    }
    write_tensors(tmp_path / "base.safetensors", tensors)
    source = weights()
    lora = lora_at(tmp_path / "l.safetensors", source)
    merge(tmp_path / "base.safetensors", [(lora, 1.0)], tmp_path / "m.safetensors")
    key = module_from_kohya(Q).ldm
    right = (tensors[key].float() + source[Q].dense()).to(torch.float8_e4m3fn)
    found = read(tmp_path / "m.safetensors")[key]
    assert torch.equal(found.view(torch.uint8), right.view(torch.uint8))


def test_progress_is_told_and_cancelling_leaves_nothing(base, monkeypatch):
    monkeypatch.setattr("copier.ops.merge.PART_BYTES", 1000)
    lora = lora_at(base.parent / "l.safetensors", weights())
    events = []
    merge(base, [(lora, 1.0)], base.parent / "out" / "m.safetensors", observer=events.append)
    assert [event.step for event in events] == list(range(1, events[-1].steps + 1))
    assert len(events) > 300
    token = CancelToken()

    def stop(event):
        if event.step == 200:
            token.cancel()

    with pytest.raises(Cancelled):
        merge(
            base,
            [(lora, 1.0)],
            base.parent / "out" / "n.safetensors",
            observer=stop,
            cancel=token,
        )
    assert [path.name for path in (base.parent / "out").iterdir()] == ["m.safetensors"]


def misfits(folder):
    wrong = weights()
    bad = LowRankDelta(torch.zeros(11, 2), torch.zeros(2, 10), 2.0)
    huge = weights(size=1e6)
    return {
        "unmatched": (
            r"lora_unet_no_such \[11, 10\]: the checkpoint has no",
            {**wrong, "lora_unet_no_such": bad},
        ),
        "shape": (r"attn1_to_q: it changes a weight of shape \[11, 10\]", {**wrong, Q: bad}),
        "range": ("float16 ends at 65504: choose bf16", huge),
        "family": ("LoRA is for SDXL, the checkpoint is SD1", {"lora_unet_label_emb_0_0": bad}),
    }


@pytest.mark.parametrize("case", ["unmatched", "shape", "range", "family"])
def test_what_does_not_fit_is_named_and_nothing_is_written(base, case):
    message, source = misfits(base.parent)[case]
    lora = lora_at(base.parent / "l.safetensors", LoraWeights(source))
    with pytest.raises(BadInput, match=message):
        merge(base, [(lora, 1.0)], base.parent / "out" / "m.safetensors")
    assert list((base.parent / "out").iterdir()) == []


def test_a_lora_is_no_checkpoint_and_an_input_no_output(base):
    lora = lora_at(base.parent / "l.safetensors", weights())
    out = base.parent / "out" / "m.safetensors"
    with pytest.raises(BadInput, match="given as checkpoint is none"):
        merge(lora, [(lora, 1.0)], out)
    with pytest.raises(BadInput, match="input too"):
        merge(base, [(lora, 1.0)], base, overwrite=True)
    with pytest.raises(BadInput, match="at least one"):
        merge(base, [], out)


def test_a_quantised_checkpoint_is_refused_with_the_reason(base):
    tensors = dict(checkpoint_tensors(torch.float16))
    key = module_from_kohya(Q).ldm
    tensors[f"{key}.quant_state.bitsandbytes__nf4"] = torch.zeros(3, dtype=torch.uint8)
    write_tensors(base.parent / "q.safetensors", tensors)
    lora = lora_at(base.parent / "l.safetensors", weights())
    with pytest.raises(BadInput, match="quantised with bitsandbytes"):
        merge(base.parent / "q.safetensors", [(lora, 1.0)], base.parent / "out" / "m.safetensors")


def models(dtype=torch.float16):
    """Bare module trees with diffusers' paths and the checkpoint's weights."""
    tensors = checkpoint_tensors(torch.float16)
    roots = {"lora_unet_": nn.Module(), "lora_te_": nn.Module()}
    for module in kohya_modules().values():
        weight = tensors[module.ldm].to(dtype)
        node = roots["lora_te_" if module.kohya.startswith("lora_te_") else "lora_unet_"]
        *parents, leaf = module.diffusers.split(".")
        for part in parents:
            if not hasattr(node, part):
                node.add_module(part, nn.Module())
            node = getattr(node, part)
        if weight.ndim == 2:
            made: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
        else:
            made = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], dtype=dtype)
        with torch.no_grad():
            made.weight.copy_(weight)  # type: ignore[operator,union-attr]
        node.add_module(leaf, made)
    return roots["lora_unet_"], roots["lora_te_"]


def weight_of(unet, text, name):
    model = text if name.startswith("lora_te_") else unet
    return model.get_submodule(module_from_kohya(name).diffusers).weight


def lookup(unet, text):
    """The weight by the name in a LoRA, or None."""

    def weight(name):
        known = (text is not None or not name.startswith("lora_te_")) and name in kohya_modules()
        return weight_of(unet, text, name) if known else None

    return weight


def test_merging_into_modules_is_bit_for_bit_what_the_file_gets(base):
    source = weights(alpha=2)
    out = base.parent / "out" / "m.safetensors"
    merge(base, [(lora_at(base.parent / "l.safetensors", source), 0.7)], out)
    merged = read(out)
    unet, text = models()
    with merge_into_modules(lookup(unet, text), source, 0.7):
        for name in CHANGED:
            assert torch.equal(weight_of(unet, text, name), merged[module_from_kohya(name).ldm])


def test_undoing_restores_every_bit_also_after_an_exception():
    unet, text = models()
    before = {name: weight_of(unet, text, name).clone() for name in kohya_modules()}
    with pytest.raises(KeyError), merge_into_modules(lookup(unet, text), weights(), -0.3):
        assert not torch.equal(weight_of(unet, text, Q), before[Q])
        raise KeyError
    assert all(torch.equal(weight_of(unet, text, name), before[name]) for name in before)


def test_merges_nest():
    unet, text = models(torch.float32)
    first, second = weights(), weights(rank=2)
    before = weight_of(unet, text, Q).clone()
    outer = merge_into_modules(lookup(unet, text), first)
    with merge_into_modules(lookup(unet, text), second, 0.5):
        right = before.double() + dense64(first[Q]) + 0.5 * dense64(second[Q])
        assert error(weight_of(unet, text, Q).detach(), right) < 1e-6
    outer.undo()
    outer.undo()
    assert torch.equal(weight_of(unet, text, Q), before)


def test_modules_that_match_nothing_are_named_and_nothing_changes():
    unet, text = models()
    before = weight_of(unet, text, Q).clone()
    source = weights()
    with pytest.raises(BadInput, match=r"lora_te_.*no such module"):
        merge_into_modules(lookup(unet, None), source)
    bad = LowRankDelta(torch.zeros(11, 2), torch.zeros(2, 10), 2.0)
    with pytest.raises(BadInput, match=r"(?s)2 modules.*proj_in.*lora_unet_nowhere"):
        merge_into_modules(
            lookup(unet, text),
            LoraWeights(
                {**source, "lora_unet_mid_block_attentions_0_proj_in": bad, "lora_unet_nowhere": bad}
            ),
        )
    with pytest.raises(BadInput, match="float16 ends at"):
        merge_into_modules(lookup(unet, text), weights(size=1e6))
    assert torch.equal(weight_of(unet, text, Q), before)


def test_the_norm_of_what_a_merge_changes_is_what_inspect_reports(base):
    source = weights()
    lora = lora_at(base.parent / "l.safetensors", source)
    merge(base, [(lora, 1.0)], base.parent / "out" / "m.safetensors", dtype="fp32")
    before, after = read(base), read(base.parent / "out" / "m.safetensors")
    change = math.hypot(*(float((after[key].double() - before[key].double()).norm()) for key in before))
    assert math.isclose(change, inspect(lora)["norm"], rel_tol=1e-5)
