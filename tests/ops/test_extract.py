"""Extraction from two checkpoint files, against the LoRA that was merged and against dense maths."""

from __future__ import annotations

import functools
import hashlib
import json
import math

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import read_header
from copier.checkpoint.names import kohya_modules, kohya_modules_text, kohya_modules_unet, module_from_kohya
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.shapes import Sizes, TextSizes, checkpoint_shapes
from copier.checkpoint.writer import write_tensors
from copier.errors import BadInput, Cancelled
from copier.ops import extract as extracting
from copier.ops.extract import Target, Why, extract
from copier.ops.lora_file import read_lora, write_lora
from copier.ops.merge import merge
from copier.progress import CancelToken

SIZES = Sizes(Family.SD1, (8, 12, 16, 16), (4, 4, 4, 4), (TextSizes(8, 16, 12),))
Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PROJECTION = "lora_unet_mid_block_attentions_0_proj_in"
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"
TIME = "lora_unet_up_blocks_1_resnets_0_time_emb_proj"
TEXT = "lora_te_text_model_encoder_layers_11_mlp_fc2"
NORM, BIAS = (f"model.diffusion_model.{key}" for key in ("middle_block.1.norm.weight", "out.2.bias"))
EMBEDDING, MISSING = (
    f"cond_stage_model.transformer.text_model.{key}"
    for key in ("embeddings.position_embedding.weight", "final_layer_norm.bias")
)
VAE = "first_stage_model.encoder.conv_in.weight"
OTHERS = (NORM, BIAS, EMBEDDING, MISSING, VAE)
EVERY = (Q, PROJECTION, CONV, TIME, TEXT)
LINEAR = [module.kohya for module in (*kohya_modules_text(), *kohya_modules_unet(conv=False))]


def key_of(name):
    return module_from_kohya(name).ldm


@functools.cache
def base_tensors():
    """The weights of all modules, and what no LoRA changes: the rest of a checkpoint would only take time."""
    draw = torch.Generator().manual_seed(5)
    kept = {*(module.ldm for module in kohya_modules().values()), *OTHERS}
    shapes = {key: shape for key, shape in checkpoint_shapes(SIZES).items() if key in kept}
    return {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}


def lora(names=EVERY, *, rank=3, size=0.1):
    deltas = {}
    for name in names:
        out, *rest = base_tensors()[key_of(name)].shape
        up = size * torch.randn(out, rank, *([1] * len(rest[1:])))
        deltas[name] = LowRankDelta(up, torch.randn(rank, *rest), float(rank))
    return LoraWeights(deltas)


def dense64(delta):
    up, down = delta.up.double().flatten(1), delta.down.double().flatten(1)
    return (delta.alpha / delta.rank * up @ down).reshape(delta.shape)


def error(left, right):
    return float((left.double() - right.double()).norm() / right.double().norm())


@pytest.fixture(scope="module")
def base_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_tensors(path, base_tensors())
    return path


@pytest.fixture
def files(tmp_path, base_file):
    """Write TUNED: ``base`` (default: base_tensors) with ``changes``; gives both paths and one to write."""

    def write(changes=None, *, without=(), base=None):
        (tmp_path / "out").mkdir()
        path = base_file
        if base is not None:
            path = tmp_path / "base.safetensors"
            write_tensors(path, base)
        if changes is not None:
            after = {**(base or base_tensors()), **changes}
            kept = {key: value for key, value in after.items() if key not in without}
            write_tensors(tmp_path / "tuned.safetensors", kept)
        return tmp_path / "tuned.safetensors", path, tmp_path / "out" / "l.safetensors"

    return write


def changed(*keys, by=0.1):
    return {key: base_tensors()[key] + by * torch.randn_like(base_tensors()[key]) for key in keys}


def nothing_in(folder):
    return list(folder.iterdir()) == []


def test_a_merged_lora_comes_back(files, tmp_path):
    source = lora()
    _, base, out = files()
    write_lora(tmp_path / "source.safetensors", source, {}, dtype="fp32")
    merge(base, [(tmp_path / "source.safetensors", 0.5)], tmp_path / "merged.safetensors")
    report = extract(tmp_path / "merged.safetensors", base, out, rank=3, conv_rank=3, dtype="fp32")
    found = read_lora(out).weights
    assert set(found) == set(EVERY)
    for name in EVERY:
        assert found[name].shape == source[name].shape
        assert error(dense64(found[name]), 0.5 * dense64(source[name])) < 1e-5
    assert report.changed == 5
    assert report.unchanged == len(kohya_modules()) - 5
    assert report.left_out == ()
    assert report.residual < 1e-5
    assert report.ranks == {"text": (3, 3), "linear": (3, 3), "conv": (3, 3)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_every_module_is_within_1_01_of_the_best_by_dense_svd(files, dtype):
    keys = [key_of(name) for name in kohya_modules()]
    changes = {key: value.to(dtype) for key, value in changed(*keys).items()}
    before = {key: value.to(dtype) for key, value in base_tensors().items()}
    tuned, base, out = files(changes, base=before)
    report = extract(tuned, base, out, rank=4, conv_rank=2, dtype="fp32")
    found = read_lora(out).weights
    assert set(found) == set(kohya_modules())
    for name in kohya_modules():
        key = key_of(name)
        change = (changes[key].double() - before[key].double()).flatten(1)
        rank = 2 if base_tensors()[key].shape[2:] == (3, 3) else 4
        values = torch.linalg.svdvals(change)
        best = float(values[rank:].norm() / values.norm())
        assert found[name].rank == min(rank, *change.shape)
        assert error(dense64(found[name]).flatten(1), change) <= 1.01 * best + 1e-5
        assert report.residuals[name] == pytest.approx(
            error(dense64(found[name]).flatten(1), change), abs=1e-4
        )
        assert 1.0 <= report.bounds[name] <= 1.01
    assert 0.1 < report.residual < 1.0


def test_without_a_rank_for_convolutions_residual_blocks_are_listed(files):
    tuned, base, out = files(changed(*map(key_of, EVERY)))
    report = extract(tuned, base, out, rank=2)
    assert set(read_lora(out).weights) == {Q, PROJECTION, TEXT}
    assert {(one.key, one.why) for one in report.left_out} == {
        (key_of(CONV), Why.NO_CONV_RANK),
        (key_of(TIME), Why.NO_CONV_RANK),
    }
    assert report.unchanged == len(LINEAR) - 3


def test_tiny_differences_of_the_text_encoder_are_kept(files):
    """sd-scripts drops the whole text encoder where no difference exceeds 0.01."""
    source = lora([TEXT], size=1e-4)
    tuned, base, out = files({key_of(TEXT): base_tensors()[key_of(TEXT)] + dense64(source[TEXT]).float()})
    extract(tuned, base, out, rank=3, dtype="fp32")
    assert error(dense64(read_lora(out).weights[TEXT]), dense64(source[TEXT])) < 1e-3


def test_large_differences_are_not_clamped(files):
    source = lora([Q], rank=1, size=30.0)
    tuned, base, out = files({key_of(Q): base_tensors()[key_of(Q)] + dense64(source[Q]).float()})
    extract(tuned, base, out, rank=1, dtype="fp32")
    assert error(dense64(read_lora(out).weights[Q]), dense64(source[Q])) < 1e-5


def test_whatever_differs_and_is_not_in_the_lora_is_listed(files):
    wider = key_of(PROJECTION)
    changes = {
        **changed(NORM, BIAS, EMBEDDING, VAE, key_of(Q)),
        wider: torch.randn(20, 16, 1, 1),
        "model_ema.decay": torch.zeros(()),
    }
    tuned, base, out = files(changes, without=[MISSING])
    report = extract(tuned, base, out, rank=2)
    assert {one.key: one.why for one in report.left_out} == {
        NORM: Why.NO_LORA,
        BIAS: Why.NO_LORA,
        EMBEDDING: Why.NO_LORA,
        VAE: Why.NO_LORA,
        MISSING: Why.ONLY_BASE,
        wider: Why.SHAPE,
        "model_ema.decay": Why.ONLY_TUNED,
    }
    listed = json.loads(json.dumps(report.to_json()))
    two = {"shape": [20, 16, 1, 1], "base_shape": [16, 16, 1, 1]}
    assert {"key": wider, **two, "why": Why.SHAPE.value} in listed["left_out"]
    shape = list(base_tensors()[BIAS].shape)
    assert {"key": BIAS, "shape": shape, "why": Why.NO_LORA.value} in listed["left_out"]
    assert 1.0 <= listed["bound"] <= 1.01


@pytest.mark.parametrize("tuned_dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float64])
def test_dtypes_may_differ_between_the_files(files, tuned_dtype):
    change = dense64(lora([Q], size=0.5)[Q])
    key = key_of(Q)
    after = {**base_tensors(), key: base_tensors()[key] + change}
    after = {key: value.to(tuned_dtype) for key, value in after.items()}
    same = {key: value.float() for key, value in after.items()}
    before = base_tensors()[key]
    tuned, base, out = files(after, base={**same, key: before})
    report = extract(tuned, base, out, rank=99, dtype="fp32")
    assert set(read_lora(out).weights) == {Q}
    assert report.left_out == ()
    assert error(dense64(read_lora(out).weights[Q]), after[key].double() - before.double()) < 1e-5


def test_a_small_change_between_float64_files_is_not_lost_in_float32(files):
    key, change = key_of(Q), 1e-9 * dense64(lora([Q])[Q])
    base = {one: value.double() for one, value in base_tensors().items()}
    tuned, base, out = files({key: base[key] + change}, base=base)
    extract(tuned, base, out, rank=3, dtype="fp32")
    assert error(dense64(read_lora(out).weights[Q]), change) < 1e-4


def test_a_1x1_convolution_stored_as_linear_is_the_same_weight(files):
    keys = [key_of(name) for name in LINEAR if name.endswith(("proj_in", "proj_out"))]
    change = dense64(lora([PROJECTION])[PROJECTION]).float()
    flat = {key: base_tensors()[key].flatten(1) for key in keys}
    flat[key_of(PROJECTION)] = flat[key_of(PROJECTION)] + change.flatten(1)
    tuned, base, out = files(flat)
    report = extract(tuned, base, out, rank=3, dtype="fp32")
    found = read_lora(out).weights
    assert set(found) == {PROJECTION}
    assert found[PROJECTION].shape == (16, 16, 1, 1)
    assert error(dense64(found[PROJECTION]), change) < 1e-5
    assert report.left_out == ()


def test_modules_that_share_a_tensor_get_its_rows(files, monkeypatch):
    key = key_of(TEXT)
    rows = {"lora_te_a": (0, 3), "lora_te_b": (3, 6), "lora_te_c": (6, 8)}
    monkeypatch.setattr(
        extracting,
        "written_names",
        lambda header: {name: Target(key, part) for name, part in rows.items()},
    )
    tuned = base_tensors()[key].clone()
    tuned[:3] += torch.randn(3, 16)
    tuned[6:] += torch.randn(2, 16)
    report = extract(*files({key: tuned}), rank=8, dtype="fp32")
    found = read_lora(report.output).weights
    assert set(found) == {"lora_te_a", "lora_te_c"}
    assert report.unchanged == 1
    for name, delta in found.items():
        part = slice(*rows[name])
        assert error(dense64(delta), tuned[part].double() - base_tensors()[key][part].double()) < 1e-6


def test_a_dynamic_rule_holds_in_every_module(files):
    tuned, base, out = files(changed(*map(key_of, LINEAR)))
    report = extract(tuned, base, out, sv_fro=0.9, max_rank=7, dtype="fp32")
    assert max(report.residuals.values()) > math.sqrt(1 - 0.9**2)  # max_rank has bound it
    found = read_lora(out).weights
    for name, delta in found.items():
        assert delta.rank == 7 or report.residuals[name] <= math.sqrt(1 - 0.9**2) + 1e-6
    assert {delta.rank for delta in found.values()} > {4, 7}


def test_the_result_depends_neither_on_threads_nor_on_what_else_is_extracted(files, tmp_path, monkeypatch):
    tuned, base, out = files(changed(*map(key_of, EVERY)))
    before = torch.get_num_threads()
    extract(tuned, base, out, rank=2, threads=1)
    extract(tuned, base, tmp_path / "out" / "3.safetensors", rank=2, threads=3)
    monkeypatch.setattr(extracting, "_DIFFERENCES", 1)  # room for one at a time
    extract(tuned, base, tmp_path / "out" / "conv.safetensors", rank=2, conv_rank=1, threads=2)
    assert torch.get_num_threads() == before

    def tensors(name):
        with TensorReader(tmp_path / "out" / name) as reader:
            return {key: reader.tensor(key) for key in reader.header.tensors}

    one, three, conv = tensors("l.safetensors"), tensors("3.safetensors"), tensors("conv.safetensors")
    assert set(one) == set(three) < set(conv)
    assert all(torch.equal(value, three[key]) and torch.equal(value, conv[key]) for key, value in one.items())


def test_the_metadata_names_base_and_sources(files):
    tuned, base, out = files(changed(key_of(Q), key_of(CONV)))
    extract(tuned, base, out, rank=4, conv_rank=2, metadata={"note": "mine"})
    header = read_header(out)
    identity = detect(header)
    assert (identity.kind, identity.family) == (Kind.LORA, Family.SD1)
    content = base.read_bytes()
    metadata = header.metadata
    assert metadata["ss_sd_model_name"] == "base.safetensors"
    assert metadata["ss_new_sd_model_hash"] == hashlib.sha256(content).hexdigest()
    assert metadata["ss_sd_model_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert metadata["ss_network_dim"] == "4"
    assert json.loads(metadata["ss_network_args"])["conv_dim"] == "2"
    assert metadata["note"] == "mine"
    what = json.loads(metadata["copier_operation"])
    assert what["operation"] == "extract"
    assert [one["name"] for one in what["inputs"]] == ["tuned.safetensors", "base.safetensors"]


def test_tensors_of_strange_kinds_are_compared_and_listed_not_extracted(files):
    """A weight that is no matrix, one of whole numbers, one without elements, and what is no weight."""
    vector, integers, empty = (key_of(name) for name in (Q, TEXT, PROJECTION))
    base = {
        **base_tensors(),
        vector: torch.zeros(5),
        integers: torch.zeros(4, 4, dtype=torch.int32),
        empty: torch.zeros(0, 4),
        "numbers": torch.arange(5, dtype=torch.int16),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.0),
    }
    other = key_of(LINEAR[0])
    differ = {
        vector: torch.ones(5),
        integers: torch.ones(4, 4, dtype=torch.int32),
        "numbers": torch.arange(1, 6, dtype=torch.int16),
        "scalar": torch.tensor(2.0),
    }
    report = extract(*files({**differ, **changed(other)}, base=base), rank=1)
    assert report.changed == 1
    assert {one.key for one in report.left_out} == set(differ)
    assert {one.why for one in report.left_out} == {Why.NO_LORA}


def other_family(path):
    keys = ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.x", key_of(Q))
    write_tensors(path, {key: torch.zeros(2, 2) for key in keys})


def quantised(path):
    state = {f"{key_of(Q)}.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8)}
    write_tensors(path, {**base_tensors(), **state})


def with_value(value):
    def write(path):
        broken = base_tensors()[key_of(Q)].clone()
        broken[1, 2] = value
        write_tensors(path, {**base_tensors(), key_of(Q): broken})

    return write


REFUSED = {
    "a LoRA": (lambda path: write_lora(path, lora(), {}), "checkpoint 'x.safetensors' is none .*lora"),
    "another family": (other_family, "'x.safetensors' is SDXL.*use two checkpoints of one family"),
    "quantised": (quantised, "quantised with bitsandbytes"),
    "NaN": (with_value(math.nan), r"attn1\.to_q\.weight' in 'x.safetensors' has NaN or infinite"),
    "infinity": (with_value(-math.inf), "'x.safetensors' has NaN or infinite"),
    "no square": (with_value(3e38), "square is no float32"),
    "the same": (lambda path: write_tensors(path, base_tensors()), "same weights in all 264 .* nothing to"),
    "cut short": (lambda path: path.write_bytes(b"\x10"), "no safetensors file is that short"),
    "nowhere": (lambda path: None, "there is no file"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_extracted_is_refused_and_nothing_is_left(files, tmp_path, write, message):
    _, base, out = files()
    write(tmp_path / "x.safetensors")
    for pair in ((tmp_path / "x.safetensors", base), (base, tmp_path / "x.safetensors")):
        with pytest.raises(BadInput, match=message):
            extract(*pair, out, rank=2)
    assert nothing_in(out.parent)


def test_where_only_other_tensors_differ_the_refusal_says_so(files):
    tuned, base, out = files(changed(NORM, key_of(CONV)))
    with pytest.raises(
        BadInput, match=r"1 tensors changed, but no LoRA can.*1 tensors changed, but carried only"
    ):
        extract(tuned, base, out, rank=2)
    assert nothing_in(out.parent)


def test_values_that_the_dtype_cannot_hold_and_bad_rules_are_refused(files):
    tuned, base, out = files({key_of(Q): base_tensors()[key_of(Q)] + 1e12})
    for message, options in (
        ("choose bf16 or fp32", {"rank": 1}),
        ("give one of rank", {}),
        ("give one of rank", {"rank": 1, "sv_fro": 0.5}),
        ("from 1 up", {"rank": 1, "conv_rank": 0}),
        ("dtype", {"rank": 1, "dtype": "int8"}),
    ):
        with pytest.raises(BadInput, match=message):
            extract(tuned, base, out, **options)
    assert nothing_in(out.parent)


def test_an_input_is_no_output(files):
    tuned, base, _ = files(changed(key_of(Q)))
    before = tuned.read_bytes()
    for out in (tuned, base):
        with pytest.raises(BadInput, match="input too"):
            extract(tuned, base, out, rank=1, overwrite=True)
    assert tuned.read_bytes() == before


def test_progress_is_told_and_cancelling_leaves_nothing(files):
    tuned, base, out = files(changed(key_of(Q)))
    events = []
    extract(tuned, base, out, rank=1, observer=events.append)
    count = len(base_tensors())
    assert [(event.step, event.steps) for event in events] == [(n, count) for n in range(1, count + 1)]
    out.unlink()
    for step in (0, 10, count):
        token = CancelToken()

        def stop(event, token=token, step=step):
            if event.step == step:
                token.cancel()

        if step == 0:
            token.cancel()
        with pytest.raises(Cancelled):
            extract(tuned, base, out, rank=1, observer=stop, cancel=token)
    assert nothing_in(out.parent)
