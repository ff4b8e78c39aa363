"""What is checked before sd-scripts is started, which finds most of it out late and says it badly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image, ImageOps

from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import ITEM_BYTES, Header, read_header
from copier.checkpoint.shapes import sd1_problem
from copier.checkpoint.targets import written_names
from copier.errors import BadCheckpoint, BadInput, BadPicture
from copier.images.pairs import SIDE_MULTIPLE, Note, read_picture
from copier.training.command_parts import TrainingCommand, TrainingPicture
from copier.training.machine import Device, free_disk, free_memory
from copier.training.outcome import expected_targets

FAMILIES: Mapping[str, tuple[Family, ...]] = MappingProxyType(
    {
        "train_network.py": (Family.SD1, Family.SD2),
        "sdxl_train_network.py": (Family.SDXL,),
        "sd3_train_network.py": (Family.SD3,),
        "flux_train_network.py": (Family.FLUX,),
    }
)
"""What each script trains."""

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
    path = Path(command.value("--pretrained_model_name_or_path"))
    header = read_header(path)
    identity, name = detect(header), path.name
    if identity.kind is not Kind.CHECKPOINT:
        raise BadCheckpoint(f"{name!r} is no checkpoint (it is: {identity.kind.value}): choose a model file")
    trained = FAMILIES.get(command.script)
    if trained is not None and identity.family not in trained:
        raise BadCheckpoint(
            f"{name!r} is of the family {identity.family.value}, and {command.script} trains "
            f"{' and '.join(family.value for family in trained)}: {_right_script(identity.family)}"
        )
    for detail in ("quantised", "refiner"):
        if found := identity.details.get(detail):
            raise BadCheckpoint(f"{name!r} cannot be trained: it is or has {found}")
    if "vae" in identity.details and identity.family not in (Family.SD3, Family.FLUX):
        # Also where --vae names another one: the loader reads the checkpoint's own first.
        raise BadCheckpoint(f"{name!r} has no autoencoder (VAE) in it: choose a checkpoint that has one")
    if identity.layout == "diffusers":
        raise BadCheckpoint(f"{name!r} is a part of a diffusers model: choose the model as a single file")
    if identity.family is Family.SD1 and (problem := sd1_problem(header)):
        raise BadCheckpoint(f"{name!r} {problem}: download it again, or choose another checkpoint")
    second = command.values("--v2") is not None
    if identity.family in (Family.SD1, Family.SD2) and second is not (identity.family is Family.SD2):
        raise BadInput(
            f"{name!r} is {identity.family.value}: {'remove' if second else 'add'} the option --v2"
        )
    return header


def _right_script(family: Family) -> str:
    script = next((script for script, families in FAMILIES.items() if family in families), "")
    return f"{script} is the one for it" if script else "choose another checkpoint"


def check_pictures(
    pictures: Sequence[TrainingPicture], dataset: Mapping[str, Any], *, note: Note
) -> tuple[tuple[int, int], ...]:
    """The sizes (width, height) of the pictures, each decoded to its last byte.

    Raises:
        BadInput: there is none, a caption is empty, or a subset names a folder without pictures.
        BadPicture: one cannot be decoded, or its size is not one that is trained without scaling it.
    """
    if not pictures:
        raise BadInput("there is no picture to train on: give at least one")
    sizes = []
    wanted = _resolutions(dataset)
    for picture in pictures:
        if picture.caption is not None and not picture.caption.strip():
            raise BadInput(
                f"the caption of {str(picture.path)!r} is empty: write one, or remove the caption file"
            )
        if picture.folder not in wanted:
            raise BadInput(
                f"no subset of the dataset has the folder {picture.folder!r} of {picture.path.name!r}"
            )
        size = read_picture(picture.path, note=note).size
        _check_side(size, picture.path)
        _check_resolution(size, wanted[picture.folder], picture.path)
        sizes.append(size)
    if empty := sorted(set(wanted) - {picture.folder for picture in pictures}):
        # sd-scripts leaves such a folder out, and with no other one ends well without training.
        raise BadInput(f"the dataset names the folder {empty[0]!r}, for which there are no pictures")
    return tuple(sizes)


def check_pairs(pairs: Sequence[tuple[Path, Path]], *, note: Note) -> None:
    """Raise ``BadPicture`` unless the two pictures of each pair have one size."""
    for a, b in pairs:
        first, second = read_picture(a, note=note).size, read_picture(b, note=note).size
        if first != second:
            raise BadPicture(
                f"{a.name!r} is {first[0]} x {first[1]} px and {b.name!r} is {second[0]} x {second[1]} px: "
                "a pair must have one size; make B by editing a copy of A"
            )


def cropped_and_padded(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The nearest sizes that can be trained: one to crop to, one to pad to."""
    crop = tuple(max(SIDE_MULTIPLE, side // SIDE_MULTIPLE * SIDE_MULTIPLE) for side in size)
    pad = tuple(-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in size)
    return (crop[0], crop[1]), (pad[0], pad[1])


def _check_side(size: tuple[int, int], path: Path) -> None:
    crop, pad = cropped_and_padded(size)
    if crop == size:
        return
    offers = f"pad it to {pad[0]} x {pad[1]}"
    if min(size) >= SIDE_MULTIPLE:
        offers = f"crop it to {crop[0]} x {crop[1]}, or {offers}"
    raise BadPicture(
        f"{path.name!r} is {size[0]} x {size[1]} px: both sides must be multiples of {SIDE_MULTIPLE}; "
        f"{offers} (both pictures of a pair alike)"
    )


def _resolutions(dataset: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    """Folder -> the size that its pictures are brought to; None where buckets take several sizes."""
    general = dataset.get("general", {})
    found: dict[str, tuple[int, int] | None] = {}
    for one in dataset.get("datasets", ()):
        merged = {**general, **one}
        side = merged.get("resolution")
        for subset in one.get("subsets", ()):
            fixed = side is not None and not merged.get("enable_bucket", False)
            found[subset["image_dir"]] = _pair(side) if fixed else None
    return found


def _pair(side: Any) -> tuple[int, int]:
    return (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))


def _check_resolution(size: tuple[int, int], wanted: tuple[int, int] | None, path: Path) -> None:
    if wanted is not None and size != wanted:
        raise BadPicture(
            f"{path.name!r} is {size[0]} x {size[1]} px, but the training is set to {wanted[0]} x "
            f"{wanted[1]}: it would be scaled; set the resolution to the picture's size, or crop or pad the "
            "picture"
        )


def disk_needed(command: TrainingCommand, checkpoint: Header, sizes: Sequence[tuple[int, int]]) -> int:
    """Bytes that the run writes at most: copies of the pictures, their latents, and every saved LoRA."""
    rank = max(int(value) for value in _ranks(command))
    names, expected = written_names(checkpoint), expected_targets(command, checkpoint)
    shapes = [
        checkpoint.tensors[target.key].shape
        for target in names.values()
        if expected is None or target in expected
    ]
    item = 2 if command.value("--save_precision") in ("fp16", "bf16") else 4
    lora = item * rank * sum(shape[0] + math.prod(shape[1:]) for shape in shapes)
    steps, every = (
        int(command.value("--max_train_steps", "0")),
        int(command.value("--save_every_n_steps", "0")),
    )
    saves = 2 + (steps // every if every else 0)  # the last one twice: in the run's folder, and in its place
    # A PNG is no larger than its pixels; a pixel's share of a latent is 4 channels of 4 bytes in 64.
    return ROOM + lora * saves + sum(width * height * 5 for width, height in sizes)


def _ranks(command: TrainingCommand) -> list[str]:
    convs = [one for one in command.values("--network_args") or () if one.startswith("conv_dim=")]
    return [command.value("--network_dim", str(_DEFAULT_RANK)), *(one.partition("=")[2] for one in convs)]


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
    if device.kind != "cpu":
        return ()
    if command.value("--mixed_precision") == "fp16":
        raise BadInput("there is no GPU, and fp16 needs one: choose the precision fp32, or bf16")
    steps = command.value("--max_train_steps")
    return (
        f"no GPU was found: {f'the {steps} steps are' if steps else 'it is'} trained on the processor, "
        "where a step takes seconds to minutes. If there is a graphics card, its PyTorch is missing",
    )


def preflight(
    command: TrainingCommand,
    pictures: Sequence[TrainingPicture],
    *,
    device: Device,
    folders: Sequence[Path],
) -> tuple[Header, tuple[str, ...]]:
    """Everything above; the checkpoint's header, and notes for the user.

    Raises:
        BadInput, BadPicture, BadCheckpoint: the training would fail; nothing was started.
    """
    notes: list[str] = []
    header = check_checkpoint(command)
    sizes = check_pictures(pictures, command.dataset, note=notes.append)
    notes += check_device(command, device)
    check_disk(disk_needed(command, header, sizes), *folders)
    check_memory(memory_needed(header, device))
    return header, tuple(notes)


def copy_picture(picture: TrainingPicture, place: Path) -> None:
    """Write the picture to ``place`` as PNG: upright, for sd-scripts ignores the EXIF orientation."""
    if picture.mask:
        with Image.open(picture.path) as original:
            image = (ImageOps.exif_transpose(original) or original).convert("RGBA")
    else:
        image = read_picture(picture.path, note=lambda _: None)
    image.save(place, format="PNG", compress_level=1)
