"""LoRA files in, LoRA files out: the laws of the algebra survive the files, and nothing is left."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.names import kohya_modules
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import write_tensors
from copier.errors import BadCheckpoint, BadInput, Cancelled, UnknownName
from copier.ops.combine import combine, difference
from copier.ops.inspect import inspect
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.ops.resize import resize
from copier.progress import CancelToken

TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
"""Relative Frobenius error of a result through files: about four roundings of each factor."""

ATTENTION = "lora_unet_down_blocks_0_attentions_0_"
SHAPES = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (32, 12),
    ATTENTION + "proj_in": (24, 24, 1, 1),
    ATTENTION + "transformer_blocks_0_attn1_to_q": (24, 20),
    "lora_unet_up_blocks_0_resnets_0_conv1": (16, 10, 3, 3),
}
CONV = "lora_unet_up_blocks_0_resnets_0_conv1"
TRAINED = {"ss_sd_model_name": "base.safetensors", "ss_steps": "300", "ss_v2": "False"}


def weights(rank, *, alpha=None, size=1.0, shapes=SHAPES):
    deltas = {}
    for name, (out, *rest) in shapes.items():
        up = size * torch.randn(out, rank, *([1] * len(rest[1:])))
        down = torch.randn(rank, *rest)
        deltas[name] = LowRankDelta(up, down, float(alpha or rank))
    return LoraWeights(deltas)


@pytest.fixture
def files(tmp_path):
    """Two LoRAs of rank 4 and 6 on one base, in float32; the folder for outputs is empty."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name, rank, alpha in (("a", 4, 2.0), ("b", 6, None)):
        source = weights(rank, alpha=alpha)
        stated = {**network_metadata(source, name=name, family=Family.SD1), **TRAINED}
        write_lora(tmp_path / "in" / f"{name}.safetensors", source, stated, dtype="fp32")
    return tmp_path


def dense(path):
    """The second route: the file's tensors, multiplied out in float64."""
    with TensorReader(path) as reader:
        tensors = {key: reader.tensor(key) for key in reader.header.tensors}
    result = {}
    for key in [key for key in tensors if key.endswith(".lora_up.weight")]:
        name = key.removesuffix(".lora_up.weight")
        up = tensors[key].double().flatten(1)
        down = tensors[f"{name}.lora_down.weight"].double()
        scale = float(tensors[f"{name}.alpha"]) / up.shape[1]
        result[name] = scale * (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])
    return result


def error(left, right):
    assert set(left) == set(right)
    lost = math.hypot(*(float((left[name] - right[name]).norm()) for name in right))
    return lost / math.hypot(*(float(value.norm()) for value in right.values()))


def plus(left, right, ratio):
    return {name: left[name] + ratio * right[name] for name in left}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_an_exact_difference_is_the_difference_and_has_the_sign(files, dtype):
    a, b, out = (
        files / "in" / "a.safetensors",
        files / "in" / "b.safetensors",
        files / "out" / "d.safetensors",
    )
    report = difference(b, a, out, exact=True, dtype=dtype)
    right = plus(dense(b), dense(a), -1.0)
    assert error(dense(out), right) <= TOLERANCE[dtype]
    assert error(dense(out), plus(dense(a), dense(b), -1.0)) > 1.0
    assert error(dense(out), plus(dense(b), dense(a), 1.0)) > 0.5
    assert report.ranks == {"text": (10, 10), "linear": (10, 10), "conv": (10, 10)}
    assert report.residual == 0.0


def test_taking_a_from_a_plus_b_gives_b_even_when_truncated_to_bs_rank(files):
    a, b = files / "in" / "a.safetensors", files / "in" / "b.safetensors"
    combine([(a, 1.0), (b, 1.0)], files / "out" / "sum.safetensors", exact=True, dtype="fp32")
    report = difference(
        files / "out" / "sum.safetensors", a, files / "out" / "d.safetensors", rank=6, dtype="fp32"
    )
    assert error(dense(files / "out" / "d.safetensors"), dense(b)) < 1e-5
    assert report.residual < 1e-5
    wrong = difference(
        files / "out" / "sum.safetensors",
        a,
        files / "out" / "w.safetensors",
        ratios=(1.0, 1.0),
        rank=6,
        dtype="fp32",
    )
    assert wrong.residual > 0.05
    assert error(dense(files / "out" / "w.safetensors"), dense(b)) > 0.5


def test_a_truncated_difference_reports_what_it_lost(files):
    a, b, out = (
        files / "in" / "a.safetensors",
        files / "in" / "b.safetensors",
        files / "out" / "d.safetensors",
    )
    report = difference(b, a, out, rank=3, conv_rank=2, dtype="fp32")
    right = plus(dense(b), dense(a), -1.0)
    assert math.isclose(report.residual, error(dense(out), right), rel_tol=1e-4)
    assert 0.05 < report.residual < 0.9
    assert report.ranks == {"text": (3, 3), "linear": (3, 3), "conv": (2, 2)}
    for name, residual in report.residuals.items():
        found = dense(out)[name] - right[name]
        assert math.isclose(residual, float(found.norm() / right[name].norm()), rel_tol=1e-4)


def test_without_a_rank_each_module_keeps_the_largest_rank_of_the_inputs(files):
    report = difference(
        files / "in" / "a.safetensors", files / "in" / "b.safetensors", files / "out" / "d.safetensors"
    )
    assert report.ranks == {"text": (6, 6), "linear": (6, 6), "conv": (6, 6)}


def test_the_report_names_inputs_by_digest_and_is_json(files):
    a, b, out = (
        files / "in" / "a.safetensors",
        files / "in" / "b.safetensors",
        files / "out" / "d.safetensors",
    )
    report = difference(b, a, out, ratios=(1.0, -0.5), rank=2)
    assert [file.sha256 for file in report.inputs] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in (b, a)
    ]
    again = json.loads(json.dumps(report.to_json()))
    assert again["operation"] == "difference"
    assert again["output"] == str(out)
    assert again["inputs"][1]["ratio"] == -0.5
    assert again["ranks"]["linear"] == {"min": 2, "max": 2}
    assert set(again["residuals"]) == set(SHAPES)
    assert again["seconds"] >= 0.0


def test_the_written_file_has_hosts_names_only_and_describes_itself(files):
    out = files / "out" / "diff-1.safetensors"
    difference(
        files / "in" / "b.safetensors",
        files / "in" / "a.safetensors",
        out,
        rank=3,
        conv_rank=2,
        metadata={"ss_training_comment": "hello"},
    )
    header = read_header(out)
    assert {info.dtype for info in header.tensors.values()} == {"F16"}
    modules = {key.split(".", 1)[0] for key in header.tensors}
    assert modules == set(SHAPES) <= set(kohya_modules())
    assert len(header.tensors) == 3 * len(modules)
    metadata = header.metadata
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("3", "3.0")
    assert json.loads(metadata["ss_network_args"])["conv_dim"] == "2"
    assert metadata["ss_output_name"] == "diff-1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_sd_model_name"] == "base.safetensors"
    assert metadata["ss_training_comment"] == "hello"
    assert "ss_steps" not in metadata
    data = out.read_bytes()[header.data_start :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert str(files) not in json.dumps(dict(metadata))


def test_what_the_inputs_say_of_their_base_is_kept_only_where_they_agree(files):
    other = files / "in" / "c.safetensors"
    write_lora(other, weights(2), {**TRAINED, "ss_sd_model_name": "other.safetensors"})
    combine([(files / "in" / "a.safetensors", 1.0), (other, 1.0)], files / "out" / "c.safetensors")
    metadata = read_header(files / "out" / "c.safetensors").metadata
    assert "ss_sd_model_name" not in metadata
    assert metadata["ss_v2"] == "False"


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_full_rank_resize_is_the_identity(files, dtype):
    b, out = files / "in" / "b.safetensors", files / "out" / "r.safetensors"
    report = resize(b, out, rank=6, dtype=dtype)
    assert error(dense(out), dense(b)) <= TOLERANCE[dtype]
    assert report.residual == 0.0


def test_resizing_keeps_the_trainings_metadata_and_renews_the_networks(files):
    b, out = files / "in" / "b.safetensors", files / "out" / "r.safetensors"
    report = resize(b, out, rank=2, conv_rank=1, dtype="fp32")
    metadata = read_header(out).metadata
    assert metadata["ss_steps"] == "300"
    assert metadata["ss_network_dim"] == "2"
    assert metadata["sshs_model_hash"] != read_header(b).metadata["sshs_model_hash"]
    assert report.ranks == {"text": (2, 2), "linear": (2, 2), "conv": (1, 1)}
    assert math.isclose(report.residual, error(dense(out), dense(b)), rel_tol=1e-4)


def test_a_dynamic_resize_satisfies_its_bound_in_every_module(files):
    b, out = files / "in" / "b.safetensors", files / "out" / "r.safetensors"
    report = resize(b, out, sv_fro=0.9, dtype="fp32")
    bound = math.sqrt(1 - 0.9**2)
    assert all(residual <= bound + 1e-5 for residual in report.residuals.values())
    assert report.residual > 0.0
    assert read_header(out).metadata["ss_network_dim"] in ("Dynamic", *map(str, range(1, 7)))


def test_inspect_counts_ranks_alphas_and_norms_by_block(files):
    a = files / "in" / "a.safetensors"
    found = inspect(a)
    assert json.loads(json.dumps(found)) == found
    assert (found["family"], found["kind"], found["layout"]) == ("sd1", "lora", "kohya")
    assert found["modules"] == {"text": 1, "linear": 2, "conv": 1}
    assert found["ranks"]["conv"] == {"4": 1}
    assert found["alphas"] == {"2": 4}
    assert set(found["norms"]) == {"BASE", "IN01", "OUT00"}
    truth = {name: float(value.norm()) for name, value in dense(a).items()}
    assert math.isclose(found["norms"]["OUT00"], truth[CONV], rel_tol=1e-5)
    assert math.isclose(found["norm"], math.hypot(*truth.values()), rel_tol=1e-5)


def refused(files):
    """Calls that must be refused; the first argument of each is a function, the rest its own."""
    a, out = files / "in" / "a.safetensors", files / "out" / "o.safetensors"
    other = files / "in" / "xl.safetensors"
    write_lora(other, weights(2, shapes={"lora_unet_input_blocks_4_1_proj_in": (8, 8)}), {})
    wide = files / "in" / "wide.safetensors"
    write_lora(wide, weights(2, shapes={ATTENTION + "proj_in": (48, 24, 1, 1)}), {})
    huge = files / "in" / "huge.safetensors"
    write_lora(huge, weights(2, size=1e12), {}, dtype="fp32")
    plain = files / "in" / "plain.safetensors"
    write_tensors(plain, {"x": torch.zeros(2)})
    cut = files / "in" / "cut.safetensors"
    cut.write_bytes(a.read_bytes()[:-1])
    (files / "in" / "existing.safetensors").write_bytes(b"mine")
    return {
        "family": (BadInput, "different families", lambda: difference(a, other, out)),
        "shape": (BadInput, r"proj_in \[24, 24\] and \[48, 24\]", lambda: difference(a, wide, out)),
        "range": (BadInput, "float16 ends at", lambda: combine([(huge, 1.0)], out)),
        "no lora": (BadInput, "is no LoRA", lambda: difference(a, plain, out)),
        "truncated": (BadCheckpoint, "truncated", lambda: resize(cut, out, rank=1)),
        "missing": (BadInput, "no file", lambda: difference(a, files / "none", out)),
        "both": (BadInput, "not both", lambda: difference(a, a, out, rank=2, exact=True)),
        "rule": (BadInput, "give one of rank", lambda: resize(a, out)),
        "rank": (BadInput, "rank is 0", lambda: resize(a, out, rank=0)),
        "dtype": (UnknownName, "dtype", lambda: resize(a, out, rank=1, dtype="fp8")),
        "nothing": (BadInput, "at least one", lambda: combine([], out)),
        "own input": (BadInput, "input too", lambda: difference(a, a, a, overwrite=True)),
        "existing": (
            BadInput,
            "exists",
            lambda: resize(a, files / "in" / "existing.safetensors", rank=1),
        ),
    }


CASES = [
    "family",
    "shape",
    "range",
    "truncated",
    "missing",
    "both",
    "rule",
    "rank",
    "dtype",
    "nothing",
    "existing",
]


@pytest.mark.parametrize("case", [*CASES, "no lora", "own input"])
def test_bad_input_is_refused_and_nothing_is_written(files, case):
    kind, message, call = refused(files)[case]
    before = {path: path.read_bytes() for path in (files / "in").iterdir()}
    with pytest.raises(kind, match=message):
        call()
    assert {path: path.read_bytes() for path in (files / "in").iterdir()} == before
    assert list((files / "out").iterdir()) == []


def test_a_lora_read_back_is_the_one_written(files):
    source = read_lora(files / "in" / "b.safetensors")
    write_lora(files / "out" / "b.safetensors", source.weights, source.metadata, dtype="fp32")
    data = [
        read_header(path).tensors
        for path in (files / "in" / "b.safetensors", files / "out" / "b.safetensors")
    ]
    assert data[0] == data[1]
    assert error(dense(files / "out" / "b.safetensors"), dense(files / "in" / "b.safetensors")) == 0.0


OPERATIONS = {
    "combine": lambda a, b, out, **how: combine([(a, 0.5), (b, 2.0)], out, rank=2, **how),
    "difference": lambda a, b, out, **how: difference(a, b, out, exact=True, **how),
    "resize": lambda a, b, out, **how: resize(b, out, sv_fro=0.9, **how),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_progress_is_told_and_cancelling_leaves_nothing(operation, files):
    a, b = files / "in" / "a.safetensors", files / "in" / "b.safetensors"
    events = []
    OPERATIONS[operation](a, b, files / "out" / "x.safetensors", observer=events.append)
    steps = [event.step for event in events]
    assert {event.stage for event in events} == {operation}
    assert {event.steps for event in events} == {len(SHAPES)}
    assert steps == sorted(steps) and steps[-1] == len(SHAPES)
    (files / "out" / "x.safetensors").unlink()
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        OPERATIONS[operation](a, b, files / "out" / "x.safetensors", cancel=token)
    assert list((files / "out").iterdir()) == []
