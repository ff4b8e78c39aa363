"""Is a file a whole checkpoint that can be loaded? Told from its header."""

from __future__ import annotations

from copier.checkpoint.family import Identity, Kind, detect
from copier.checkpoint.header import Header
from copier.checkpoint.shapes import Sizes, checkpoint_problem, sizes_of
from copier.checkpoint.structure import STRUCTURES
from copier.errors import BadCheckpoint

_TITLES = ", ".join(structure.title for structure in STRUCTURES.values())


def whole_checkpoint(header: Header, name: str) -> Sizes:
    """The sizes of the checkpoint; ``name`` is what messages call it.

    Raises:
        BadCheckpoint: it is a LoRA or something else, a part of a model, quantised, the refiner, made for
            inpainting, of another family, or incomplete; the message says which, and what to give.
    """
    identity = detect(header)
    if identity.kind is Kind.LORA:
        raise BadCheckpoint(f"{name!r} is a LoRA, not a checkpoint: give the checkpoint that it is for")
    if identity.kind is not Kind.CHECKPOINT:
        raise BadCheckpoint(
            f"{name!r} has {len(header.tensors)} tensors, but not those of a checkpoint: give one of "
            f"{_TITLES} in one .safetensors file"
        )
    if problem := _unusable(identity):
        raise BadCheckpoint(f"{name!r} {problem}: give a checkpoint of {_TITLES}, in one file")
    if "vae" in identity.details:
        raise BadCheckpoint(f"{name!r} has no autoencoder (VAE) in it: give a whole checkpoint")
    title = STRUCTURES[identity.family].title
    if problem := checkpoint_problem(header, identity.family):
        raise BadCheckpoint(f"{name!r} {problem}: give a whole checkpoint of {title}")
    return sizes_of({key: info.shape for key, info in header.tensors.items()}, identity.family)


def _unusable(identity: Identity) -> str:
    """Why no file of this kind can be loaded, a clause; or ""."""
    if identity.family not in STRUCTURES:
        return f"is of the family {identity.family.value}, which cannot be loaded"
    if identity.layout == "diffusers":
        return "is a part of a model in diffusers' layout"
    if identity.layout != "ldm":
        return f"is a U-Net of the family {identity.family.value} without its text encoder"
    for detail in ("quantised", "refiner"):
        if found := identity.details.get(detail):
            return f"is or has {found}"
    return ""
