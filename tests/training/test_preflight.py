"""What is refused before sd-scripts starts, each with what to do."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from copier.checkpoint.header import Header, TensorInfo, read_header
from copier.disk import free_disk
from copier.errors import BadCheckpoint, BadInput, BadPicture
from copier.ops.lora_file import read_lora
from copier.training import preflight as module
from copier.training.command_parts import PictureCopy, TrainingCommand
from copier.training.machine import Device, find_device, free_memory
from copier.training.preflight import (
    ROOM,
    check_captions,
    check_checkpoint,
    check_device,
    check_loras,
    check_pictures,
    disk_needed,
    memory_needed,
    preflight,
)

CPU, CUDA = Device("cpu"), Device("cuda", "a card", 8 << 30)
SD15 = Path(__file__).parents[1] / "checkpoint" / "data" / "sd15.json"
VAE = {"first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3)}
Make = Callable[..., TrainingCommand]


@pytest.fixture
def make(tmp_path: Path, checkpoint: Path, picture_file: Path) -> Make:
    """A command on the tiny checkpoint and one picture, with whatever is to be different."""

    def made(
        *argv: str,
        script: str = "train_network.py",
        model: Path = checkpoint,
        pictures: tuple[Path, ...] = (picture_file,),
        resolution: Any = (64, 64),
        files: dict[str, str] | None = None,
        **dataset: Any,
    ) -> TrainingCommand:
        work = tmp_path / "run" / "work"
        subset = {"image_dir": str(work / "images")}
        config = {"datasets": [{"resolution": resolution, "subsets": [subset], **dataset}]}
        needed = (
            *("--pretrained_model_name_or_path", str(model), "--dataset_config", str(work / "dataset.json")),
            *("--output_dir", str(work / "out"), "--output_name", "a", "--network_module", "networks.lora"),
            *("--network_dim", "4", "--network_train_unet_only", "--max_train_steps", "100"),
        )
        texts = {work / "dataset.json": json.dumps(config)}
        texts |= {work / "images" / name: text for name, text in (files or {}).items()}
        copies = (PictureCopy(path, work / "images" / f"{n:04d}.png") for n, path in enumerate(pictures))
        return TrainingCommand(script, (*needed, *argv), texts, tuple(copies))

    return made


def written(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file of zeros with these keys, in fp16."""
    table, position = {}, 0
    for key, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        table[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return path


def test_a_training_that_can_be_done_passes_with_a_note_about_the_processor(
    make: Make, tmp_path: Path
) -> None:
    header, notes = preflight(make(), device=CPU, folders=(tmp_path / "new",))
    assert "model.diffusion_model.out.2.weight" in header.tensors
    assert len(notes) == 1 and "no GPU" in notes[0] and "100 steps" in notes[0]
    assert preflight(make(), device=CUDA, folders=())[1] == ()


@pytest.mark.parametrize(
    ("file", "script", "right"),
    [
        ("sdxl_file", "train_network.py", "sdxl_train_network.py"),
        ("sd2_file", "sdxl_train_network.py", "train_network.py"),
    ],
)
def test_a_checkpoint_of_another_family_names_the_script_for_it(
    file: str, script: str, right: str, make: Make, narrow: ModuleType, tmp_path: Path
) -> None:
    model = written(tmp_path / "model.safetensors", getattr(narrow, file)() | VAE)
    with pytest.raises(BadCheckpoint, match=f"{right} is the one for it"):
        check_checkpoint(make(script=script, model=model))
    check_checkpoint(make(*(["--v2"] if file == "sd2_file" else []), script=right, model=model))


@pytest.mark.parametrize("file", ["flux_file", "sd3_file"])
def test_a_family_that_no_script_trains_is_refused(
    file: str, make: Make, narrow: ModuleType, tmp_path: Path
) -> None:
    model = written(tmp_path / "model.safetensors", getattr(narrow, file)() | VAE)
    with pytest.raises(BadCheckpoint, match="which is not trained: choose a checkpoint of sd1, sd2, sdxl"):
        check_checkpoint(make(model=model))


def test_a_checkpoint_that_is_none_or_lacks_a_part_is_refused(
    make: Make, narrow: ModuleType, checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    cases: dict[str, tuple[dict[str, Any], str, str]] = {
        "refiner": (
            narrow.unet((32, 64, 96, 96), (0, 4, 4, 0), linear=True, label=28)
            | narrow.open_clip("conditioner.embedders.0.model.")
            | VAE,
            "sdxl_train_network.py",
            "refiner",
        ),
        "no vae": (narrow.sdxl_file(), "sdxl_train_network.py", "no autoencoder"),
        "no text": (narrow.unet() | VAE, "train_network.py", "incomplete|no text|lacks"),
        "half": (narrow.sd1_file() | VAE, "train_network.py", "is incomplete"),
    }
    for shapes, script, says in cases.values():
        with pytest.raises(BadCheckpoint, match=says):
            check_checkpoint(make(script=script, model=written(tmp_path / "m.safetensors", shapes)))
    with pytest.raises(BadCheckpoint, match="it is: lora"):
        check_checkpoint(make(model=trained))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(BadCheckpoint, match="truncated"):
        check_checkpoint(make(model=cut))
    with pytest.raises(BadInput, match="no file"):
        check_checkpoint(make(model=tmp_path / "none.safetensors"))


def test_the_option_v2_must_agree_with_the_checkpoint(make: Make, narrow: ModuleType, tmp_path: Path) -> None:
    second = written(tmp_path / "model.safetensors", narrow.sd2_file() | VAE)
    with pytest.raises(BadInput, match="remove the option --v2"):
        check_checkpoint(make("--v2"))
    with pytest.raises(BadInput, match="add the option --v2"):
        check_checkpoint(make(model=second))


def picture(path: Path, width: int, height: int) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.mark.parametrize(
    ("size", "offers"),
    [
        ((100, 64), "crop it to 64 x 64 (--fit crop) or pad it to 128 x 64"),
        ((130, 200), "crop it to 128 x 192 (--fit crop) or pad it to 192 x 256"),
        ((40, 64), "at least 64; pad it to 64 x 64"),
    ],
)
def test_sides_that_do_not_fit_are_offered_a_crop_and_a_pad(
    size: tuple[int, int], offers: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(BadPicture, match=re.escape(offers)):
        check_pictures(make(pictures=(picture(tmp_path / "a.png", *size),)), note=print)


def test_a_picture_that_would_be_scaled_is_refused_and_so_are_buckets(make: Make, tmp_path: Path) -> None:
    large = picture(tmp_path / "a.png", 128, 64)
    for resolution in ([64, 64], 64, [64, 128]):
        with pytest.raises(BadPicture, match="would be scaled"):
            check_pictures(make(pictures=(large,), resolution=resolution), note=print)
    assert check_pictures(make(pictures=(large,), resolution=[128, 64]), note=print) == ((128, 64),)
    with pytest.raises(BadInput, match="buckets"):
        check_pictures(make(pictures=(large,), resolution=[128, 64], enable_bucket=True), note=print)


def test_a_picture_is_decoded_to_its_last_byte(make: Make, tmp_path: Path) -> None:
    whole = picture(tmp_path / "a.png", 64, 64).read_bytes()
    check_pictures(make(pictures=(tmp_path / "a.png",)), note=print)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) - 400])
    with pytest.raises(BadPicture, match=r"cut\.png is damaged"):
        check_pictures(make(pictures=(tmp_path / "a.png", cut)), note=print)


def test_a_dataset_without_pictures_is_refused(make: Make) -> None:
    """sd-scripts leaves the folder out and ends well."""
    with pytest.raises(BadInput, match="at least one"):
        check_pictures(make(pictures=()), note=print)
    command = make()
    moved = replace(command.pictures[0], place=command.pictures[0].place.parents[1] / "other" / "0.png")
    with pytest.raises(BadInput, match="does not name the folder"):
        check_pictures(replace(command, pictures=(moved,)), note=print)
    config = command.dataset()
    config["datasets"][0]["subsets"].append({"image_dir": str(moved.place.parent)})
    path = Path(command.value("--dataset_config"))
    with pytest.raises(BadInput, match="no picture"):
        check_pictures(replace(command, files={path: json.dumps(config)}), note=print)


def test_a_caption_file_without_a_line_is_refused_and_one_with_an_empty_line_is_not(make: Make) -> None:
    with pytest.raises(BadInput, match="not even an empty line"):
        check_captions(make(files={"0000.txt": ""}))
    check_captions(make(files={"0000.txt": "\n"}))
    check_captions(make(files={"0001.txt": ""}))


def test_loras_beneath_must_be_there_fit_and_be_kohyas(make: Make, trained: Path, tmp_path: Path) -> None:
    from copier.checkpoint.writer import write_tensors

    header = check_checkpoint(make())
    twice = ("--base_weights", str(trained), str(trained), "--base_weights_multiplier", "1", "1")
    check_loras(make(*twice), header)
    with pytest.raises(BadInput, match="no file"):
        check_loras(make("--base_weights", str(trained), str(tmp_path / "none.safetensors")), header)
    tensors = {}
    for name, delta in read_lora(trained).weights.items():
        tensors |= {f"{name}.lora_A.weight": delta.down, f"{name}.lora_B.weight": delta.up}
    write_tensors(tmp_path / "peft.safetensors", tensors, {})
    with pytest.raises(BadInput, match="kohya's only"):
        check_loras(make("--network_weights", str(tmp_path / "peft.safetensors")), header)


def test_the_disk_must_hold_every_file_that_is_saved(
    make: Make, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LoRA of the same rank and modules tells how much one takes."""
    header, size = check_checkpoint(make()), trained.stat().st_size
    once = disk_needed(make(), header, ()) - ROOM
    assert 2 * 0.7 * size < once < 2 * 1.1 * size
    saved = disk_needed(make("--save_every_n_steps=10"), header, ()) - ROOM
    assert saved == once * (2 + 10) // 2
    assert disk_needed(make("--save_precision", "fp16"), header, ()) - ROOM == once // 2
    assert disk_needed(make(), header, ((64, 64),)) > once + ROOM
    monkeypatch.setattr(module, "free_disk", lambda folder: ROOM)
    with pytest.raises(BadInput, match=r"has 64 MB free; the training needs \d+ MB for copies"):
        preflight(make(), device=CPU, folders=(tmp_path,))


def test_the_memory_that_sd15_needs_is_near_what_it_was_seen_to_take(
    make: Make, narrow: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6.7 GB on a processor, of which the mapped file of 2 GB is no loss to others."""
    shapes = json.loads(SD15.read_text(encoding="utf-8"))["checkpoint"].items()
    tensors = {key: TensorInfo("F16", tuple(shape), 0, 2 * math.prod(shape)) for key, (_, shape) in shapes}
    header = Header(tensors=tensors, metadata={}, data_start=0, file_size=0)
    assert 6.7e9 - 2.2e9 < memory_needed(header, CPU) < 6.7e9
    assert memory_needed(header, CPU) == memory_needed(header, CUDA)
    large = narrow.header(narrow.sdxl_file())
    assert memory_needed(large, CUDA) < memory_needed(large, CPU)
    monkeypatch.setattr(module, "free_memory", lambda: 1 << 30)
    with pytest.raises(BadInput, match=r"needs about 1\.\d GB of memory.*1\.1 GB are free"):
        preflight(make(), device=CPU, folders=())
    monkeypatch.setattr(module, "free_memory", lambda: None)
    preflight(make(), device=CPU, folders=())


def test_fp16_needs_a_gpu(make: Make) -> None:
    with pytest.raises(BadInput, match="choose the precision fp32, or bf16"):
        check_device(make("--mixed_precision", "fp16"), CPU)
    assert check_device(make("--mixed_precision", "fp16"), CUDA) == ()
    assert check_device(make("--mixed_precision", "bf16"), CPU)


def test_the_device_is_that_of_the_pythons_torch(tmp_path: Path) -> None:
    import torch

    found = find_device(sys.executable)
    assert (found.kind == "cuda") == torch.cuda.is_available()
    with pytest.raises(BadInput, match="cannot be run"):
        find_device(str(tmp_path / "python"))


def test_a_python_without_torch_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    python.chmod(0o755)
    with pytest.raises(BadInput, match=r"(?s)no torch that works.*No module named 'torch'"):
        find_device(str(python))


def test_the_machine_has_some_of_what_it_has() -> None:
    psutil = pytest.importorskip("psutil")
    free = free_memory()
    assert free is None or 0 < free <= psutil.virtual_memory().total + psutil.swap_memory().total
    assert free_disk(Path("/nowhere/at/all")) > 0


@pytest.mark.parametrize(
    ("argv", "option", "found"),
    [
        (("--a", "1", "2", "--b"), "--a", ("1", "2")),
        (("--a=1", "--b", "x"), "--a", ("1",)),
        (("--a", "1", "--a", "2"), "--a", ("2",)),
        (("--b", "-0.5", "x"), "--b", ("-0.5", "x")),
        (("--flag", "--b", "1"), "--flag", ()),
        (("--bb", "1"), "--b", None),
    ],
)
def test_values_of_an_option_are_read_as_argparse_would(
    argv: tuple[str, ...], option: str, found: tuple[str, ...] | None, make: Make
) -> None:
    assert replace(make(), argv=(*make().argv, *argv)).values(option) == found


def test_a_command_must_name_its_files(make: Make) -> None:
    command = make()
    with pytest.raises(BadInput, match="lack --output_name"):
        replace(command, argv=tuple(one for one in command.argv if one not in ("--output_name", "a")))
    with pytest.raises(BadInput, match="not among the files"):
        replace(command, files={})
    with pytest.raises(BadInput, match="give a whole number"):
        replace(command, argv=(*command.argv, "--max_train_steps=many")).number("--max_train_steps", 0)


def test_the_header_is_the_checkpoints(make: Make, checkpoint: Path) -> None:
    assert check_checkpoint(make()) == read_header(checkpoint)
