"""Which weights a LoRA must change, by the names of kohya's networks, and files that are no success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.header import Header, read_header
from copier.checkpoint.names import kohya_modules_text, kohya_modules_unet
from copier.checkpoint.targets import Target
from copier.checkpoint.writer import write_tensors
from copier.errors import TrainingFailed
from copier.ops.lora_file import read_lora, write_lora
from copier.training.command_parts import TrainingCommand
from copier.training.outcome import expected_targets, verify_lora

CONFIG = Path("/run/work/dataset.json").absolute()


def command(*argv: str) -> TrainingCommand:
    needed = (
        *("--pretrained_model_name_or_path", "model.safetensors", "--dataset_config", str(CONFIG)),
        *("--output_dir", "/run/work/out", "--output_name", "a", "--network_module", "networks.lora"),
    )
    return TrainingCommand("train_network.py", (*needed, *argv), {CONFIG: "{}"}, ())


@pytest.fixture(scope="session")
def header(checkpoint: Path) -> Header:
    return read_header(checkpoint)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_of_sd1_they_are_the_modules_that_kohya_trains(conv: bool, text: bool, header: Header) -> None:
    argv = [*(["--network_args", "conv_dim=4", "conv_alpha=1"] if conv else [])]
    argv += [] if text else ["--network_train_unet_only"]
    modules = [*kohya_modules_unet(conv=conv), *(kohya_modules_text() if text else ())]
    expected = expected_targets(command(*argv), header)
    assert expected == {Target(module.ldm) for module in modules}
    assert len(expected) == 192 + 86 * conv + 72 * text


def test_of_sdxl_they_are_as_many_as_in_sd_scripts_own_loras(narrow: ModuleType) -> None:
    """722 of the U-Net, known from its files; a conv rank adds 17 residual blocks and 4 samplers."""
    header = narrow.header(narrow.sdxl_file())
    unet = expected_targets(command("--network_train_unet_only"), header)
    conv = expected_targets(command("--network_train_unet_only", "--network_args", "conv_dim=1"), header)
    both = expected_targets(command(), header)
    assert unet is not None and conv is not None and both is not None
    assert (len(unet), len(conv), len(both) - len(unet)) == (722, 722 + 17 * 3 + 11 + 4, 2 * 2 * 6)


@pytest.mark.parametrize(
    "argv",
    [
        ("--network_module", "lycoris.kohya"),
        ("--network_args", "block_dims=1,2,3"),
        ("--dim_from_weights",),
    ],
)
def test_they_are_left_open_where_the_command_chooses_in_another_way(
    argv: tuple[str, ...], header: Header
) -> None:
    assert expected_targets(command(*argv), header) is None


def test_a_trained_lora_verifies(trained: Path, header: Header) -> None:
    verify_lora(trained, header, expected_targets(command("--network_train_unet_only"), header))


def test_a_lora_with_more_or_fewer_modules_than_asked_for_does_not(trained: Path, header: Header) -> None:
    with pytest.raises(TrainingFailed, match="72 of 264 weights are not in it"):
        verify_lora(trained, header, expected_targets(command(), header))
    with pytest.raises(TrainingFailed, match="it has 120 weights beside the 72"):
        all_of_them = expected_targets(command("--network_train_unet_only"), header)
        verify_lora(trained, header, frozenset(sorted(all_of_them or (), key=str)[:72]))


def test_a_lora_that_changes_nothing_does_not(trained: Path, header: Header, tmp_path: Path) -> None:
    """As it starts: up is zero, down is not."""
    zero, weights = tmp_path / "zero.safetensors", read_lora(trained).weights
    write_lora(zero, LoraWeights({name: replace(d, up=0 * d.up) for name, d in weights.items()}), {})
    with pytest.raises(TrainingFailed, match="zero everywhere"):
        verify_lora(zero, header)


def test_one_number_that_is_none_is_enough_to_fail(trained: Path, header: Header, tmp_path: Path) -> None:
    from safetensors.torch import load

    tensors = load(trained.read_bytes())
    last = sorted(key for key in tensors if key.endswith("lora_down.weight"))[-1]
    tensors[last].view(-1)[-1] = float("nan")
    write_tensors(tmp_path / "nan.safetensors", tensors, {})
    with pytest.raises(TrainingFailed, match="cannot be used"):
        verify_lora(tmp_path / "nan.safetensors", header)


def test_a_lora_of_another_width_does_not(header: Header, tmp_path: Path) -> None:
    delta = LowRankDelta(torch.ones(7, 1), torch.ones(1, 7), 1.0)
    name = kohya_modules_unet(conv=False)[0].kohya
    write_lora(tmp_path / "other.safetensors", LoraWeights({name: delta}), {})
    with pytest.raises(TrainingFailed, match="cannot be used"):
        verify_lora(tmp_path / "other.safetensors", header)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_file_that_is_cut_off_does_not(kept: int, trained: Path, header: Header, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(trained.read_bytes()[:kept])
    with pytest.raises(TrainingFailed, match="cannot be used"):
        verify_lora(tmp_path / "cut.safetensors", header)
