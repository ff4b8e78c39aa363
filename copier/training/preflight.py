"""What is checked before sd-scripts is started, which finds most of it out late and says it badly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import ITEM_BYTES, Header, read_header
from copier.checkpoint.shapes import checkpoint_problem
from copier.checkpoint.targets import written_names
from copier.disk import free_disk
from copier.errors import BadCheckpoint, BadInput, BadPicture
from copier.images.pairs import Note, check_size, read_picture
from copier.images.sizes import Size
from copier.ops.lora_reader import LoraReader
from copier.training.command import SCRIPTS
from copier.training.command_parts import PictureCopy, TrainingCommand
from copier.training.machine import Device, free_memory
from copier.training.outcome import expected_targets

ROOM = 64 << 20
"""Bytes on the disk besides pictures and LoRAs: log, samples, latents of a few pictures."""
PROGRAM_BYTES = 3 << 29
"""Memory that Python, torch and the libraries take before any weight (1.5 GB)."""
_DEFAULT_RANK = 4
"""Of ``networks.lora`` where no ``--network_dim`` is given."""


def check_checkpoint(command: TrainingCommand) -> Header:
    """The header of the command's checkpoint, a file that its script can train.

    Raises:
        BadInput: there is no such file, or the options contradict it.
        BadCheckpoint: it is damaged, no checkpoint, incomplete, or of another family.
    """
    header = trainable_checkpoint(command.checkpoint)
    family, name = detect(header).family, command.checkpoint.name
    script = SCRIPTS[family]
    if script.file != command.script:
        raise BadCheckpoint(
            f"{name!r} is of the family {family.value}, which {command.script} does not train: "
            f"{script.file} is the one for it"
        )
    second = command.values("--v2") is not None
    if second is not ("--v2" in script.flags):
        raise BadInput(f"{name!r} is {family.value}: {'remove' if second else 'add'} the option --v2")
    return header


def trainable_checkpoint(path: Path) -> Header:
    """The header of the checkpoint at ``path``, which one of sd-scripts' scripts can train.

    Raises:
        BadInput: there is no such file.
        BadCheckpoint: it is damaged, no checkpoint, incomplete, or of a family that none trains.
    """
    header = read_header(path)
    identity, name = detect(header), path.name
    if identity.kind is not Kind.CHECKPOINT:
        raise BadCheckpoint(f"{name!r} is no checkpoint (it is: {identity.kind.value}): choose a model file")
    if identity.family not in SCRIPTS:
        raise BadCheckpoint(
            f"{name!r} is of the family {identity.family.value}, which is not trained: choose a checkpoint "
            f"of {', '.join(family.value for family in SCRIPTS)}"
        )
    for detail in ("quantised", "refiner"):
        if found := identity.details.get(detail):
            raise BadCheckpoint(f"{name!r} cannot be trained: it is or has {found}")
    if identity.layout == "diffusers":
        raise BadCheckpoint(f"{name!r} is a part of a diffusers model: choose the model as a single file")
    if identity.layout != "ldm":
        raise BadCheckpoint(f"{name!r} has no text encoder in it: choose a checkpoint that has one")
    if "vae" in identity.details:
        # Also where --vae names another one: the loader reads the checkpoint's own first.
        raise BadCheckpoint(f"{name!r} has no autoencoder (VAE) in it: choose a checkpoint that has one")
    if identity.family is Family.SD1 and (problem := checkpoint_problem(header, Family.SD1)):
        raise BadCheckpoint(f"{name!r} {problem}: download it again, or choose another checkpoint")
    return header


def check_loras(command: TrainingCommand, checkpoint: Header) -> None:
    """Check the LoRAs that are merged beneath, or trained further, from their headers.

    Raises:
        BadInput, BadCheckpoint: one is missing, damaged, of a layout that sd-scripts does not read (it would
            merge nothing, silently), or does not fit the checkpoint.
    """
    for name in (*(command.values("--base_weights") or ()), *(command.values("--network_weights") or ())):
        check_lora_layout(Path(name))
        with LoraReader(name) as reader:
            require_modules_fit(reader.shapes, reader.family, checkpoint)


def check_lora_layout(path: Path) -> None:
    """Raise ``BadInput`` for a LoRA that sd-scripts cannot merge: it would merge nothing, silently."""
    with LoraReader(path) as reader:
        if reader.layout != "kohya":
            raise BadInput(
                f"{path.name!r} is a LoRA in the layout {reader.layout}, and sd-scripts reads kohya's only: "
                "rewrite it with `copier resize`"
            )


def check_pictures(command: TrainingCommand, *, note: Note) -> tuple[Size, ...]:
    """The sizes (width, height) of the pictures, each decoded to its last byte.

    Raises:
        BadInput: there is none, or a folder of the dataset has none.
        BadPicture: one cannot be decoded, or its size is not one that is trained without scaling it.
    """
    if not command.pictures:
        raise BadInput("there is no picture to train on: give at least one")
    wanted = _resolutions(command.dataset())
    sizes = []
    for picture in command.pictures:
        folder = picture.place.parent
        image = read_picture(picture.source, note=note)
        check_size(image, picture.source.name)
        if folder not in wanted:
            raise BadInput(f"the dataset does not name the folder {str(folder)!r}: add it there")
        _check_resolution(image.size, wanted[folder], picture.source)
        sizes.append(image.size)
    if empty := sorted(set(wanted) - {picture.place.parent for picture in command.pictures}):
        # sd-scripts leaves such a folder out, and where there is no other it ends well without training.
        raise BadInput(f"the dataset names the folder {str(empty[0])!r}, which has no picture: give one")
    return tuple(sizes)


def check_captions(command: TrainingCommand) -> None:
    """Raise ``BadInput`` for a caption file without any line, where sd-scripts has an AssertionError."""
    copies = {picture.place.with_suffix(""): picture.source for picture in command.pictures}
    for path, text in command.files.items():
        source = copies.get(path.with_suffix(""))
        if source is not None and not text:
            raise BadInput(
                f"the caption of {source.name!r} has not even an empty line: write one, or leave the caption "
                "file out"
            )


def _resolutions(dataset: Mapping[str, Any]) -> dict[Path, Size]:
    """Folder -> the size that its pictures are brought to.

    Raises:
        BadInput: a dataset has none, or buckets, which scale what is not of their size.
    """
    found: dict[Path, Size] = {}
    for one in dataset.get("datasets", ()):
        merged = {**dataset.get("general", {}), **one}
        if "resolution" not in merged or merged.get("enable_bucket", False):
            raise BadInput("a dataset has no resolution or has buckets: give each size a dataset of its own")
        for subset in one.get("subsets", ()):
            found[Path(subset["image_dir"])] = _pair(merged["resolution"])
    return found


def _pair(side: Any) -> Size:
    return (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))


def _check_resolution(size: Size, wanted: Size, path: Path) -> None:
    if size != wanted:
        raise BadPicture(
            f"{path.name!r} is {size[0]} x {size[1]} px, but the training is set to {wanted[0]} x "
            f"{wanted[1]}: it would be scaled; set the resolution to the picture's size, or crop or pad the "
            "picture"
        )


def disk_needed(command: TrainingCommand, checkpoint: Header, sizes: Sequence[Size]) -> int:
    """Bytes that the run writes at most: copies of the pictures, their latents, and every saved LoRA."""
    rank = max(command.number("--network_dim", _DEFAULT_RANK), _conv_rank(command))
    names, expected = written_names(checkpoint), expected_targets(command, checkpoint)
    shapes = [
        checkpoint.tensors[target.key].shape
        for target in names.values()
        if expected is None or target in expected
    ]
    item = 2 if command.value("--save_precision") in ("fp16", "bf16") else 4
    lora = item * rank * sum(shape[0] + math.prod(shape[1:]) for shape in shapes)
    steps, every = command.number("--max_train_steps", 0), command.number("--save_every_n_steps", 0)
    saves = 2 + (steps // every if every else 0)  # the last one twice: in the run's folder, and in its place
    # A PNG is no larger than its pixels; a pixel's share of a latent is 4 channels of 4 bytes in 64.
    return ROOM + lora * saves + sum(width * height * 5 for width, height in sizes)


def _conv_rank(command: TrainingCommand) -> int:
    text = command.network_arguments.get("conv_dim", "0")
    return int(text) if text.isdecimal() else 0


def check_disk(needed: int, *folders: Path) -> None:
    """Raise ``BadInput`` where the disk of one of the folders has less than ``needed`` bytes free."""
    for folder in folders:
        if (free := free_disk(folder)) < needed:
            raise BadInput(
                f"the disk of {str(folder)!r} has {free >> 20} MB free; the training needs {needed >> 20} MB "
                "for copies of the pictures and the LoRAs that it saves: free some room, save less often, or "
                "choose another folder"
            )


def memory_needed(checkpoint: Header, device: Device) -> int:
    """Bytes of memory (not the GPU's) that loading takes at most; an estimate.

    SD1 and SD2 are built in float32 before they are filled (``model_util.py``), and on the processor every
    model is trained so; SD 1.5 took 6.7 GB that way, 2 GB of it the mapped file, which counts as cache.
    Other families are loaded in the file's own format.
    """
    family = detect(checkpoint).family
    # The moving average that old checkpoints carry beside the weights is read and dropped.
    infos = [info for key, info in checkpoint.tensors.items() if not key.startswith("model_ema.")]
    wide = device.kind == "cpu" or family in (Family.SD1, Family.SD2)
    item = ITEM_BYTES["F32"]
    return PROGRAM_BYTES + sum(math.prod(info.shape) * item if wide else info.nbytes for info in infos)


def check_memory(needed: int) -> None:
    """Raise ``BadInput`` where less memory than ``needed`` is free; where that is not known, nothing."""
    free = free_memory()
    if free is not None and free < needed:
        raise BadInput(
            f"the training needs about {needed / 1e9:.1f} GB of memory to load the checkpoint, and "
            f"{free / 1e9:.1f} GB are free: close other programs, and unload the WebUI's own checkpoint"
        )


def check_device(command: TrainingCommand, device: Device) -> tuple[str, ...]:
    """Notes about the device; raises ``BadInput`` where the command cannot run on it."""
    check_precision(command.value("--mixed_precision"), device)
    if device.kind != "cpu" or device.chosen:
        return ()
    steps = command.value("--max_train_steps")
    return (
        f"no GPU was found: {f'the {steps} steps are' if steps else 'it is'} trained on the processor, "
        "where a step takes seconds to minutes. If there is a graphics card, its PyTorch is missing",
    )


def check_precision(precision: str, device: Device) -> None:
    """Raise ``BadInput`` for fp16 (accelerate's word, and the recipe's) on the processor."""
    if device.kind == "cpu" and precision == "fp16":
        raise BadInput("there is no GPU, and fp16 needs one: choose the precision fp32, or bf16")


def preflight(
    command: TrainingCommand, *, device: Device, folders: Sequence[Path]
) -> tuple[Header, tuple[str, ...]]:
    """Everything above; the checkpoint's header, and notes for the user. ``folders`` are written to.

    Raises:
        BadInput, BadPicture, BadCheckpoint: the training would fail; nothing was started.
    """
    notes: list[str] = []
    header = check_checkpoint(command)
    check_loras(command, header)
    sizes = check_pictures(command, note=notes.append)
    check_captions(command)
    notes += check_device(command, device)
    check_disk(disk_needed(command, header, sizes), *folders)
    check_memory(memory_needed(header, device))
    return header, tuple(notes)


def copy_picture(picture: PictureCopy) -> None:
    """Write the copy: as PNG, and upright, for sd-scripts ignores the EXIF orientation."""
    image = read_picture(picture.source, note=lambda _: None)
    if picture.mask is not None:
        image.putalpha(read_picture(picture.mask).convert("L"))
    image.save(picture.place, format="PNG", compress_level=1)
