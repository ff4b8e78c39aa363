"""Checks that every front end's wish passes first, whatever it is; light to import."""

from __future__ import annotations

import os
from pathlib import Path

from copier.disk import existing_parent
from copier.errors import BadInput, UnknownName
from copier.fields import check_text
from copier.request import DEVICES


def check_device(device: str) -> None:
    """Raise ``BadInput`` where ``device`` is none of ``DEVICES``, or is cuda and there is none."""
    if device not in DEVICES:
        raise UnknownName("device", device, DEVICES)
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise BadInput(
            "the device is cuda, but this machine has none that torch can use: use --device cpu, or auto"
        )


def chosen_device(device: str) -> str:
    """cuda or cpu: ``auto`` takes CUDA where there is one. Raises ``BadInput`` as ``check_device``."""
    check_device(device)
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_data_folder(data: Path) -> None:
    """Raise ``BadInput`` unless the data folder is there, or can be made, and can be written."""
    there = existing_parent(data)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        why = "is write-protected" if there.is_dir() else "is a file"
        raise BadInput(f"the data folder {data} cannot be used: {there} {why}; choose another with --data")


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise ``BadInput`` unless a file can be written at ``out``."""
    check_text("the output's name", out.name)
    if out.is_dir():
        raise BadInput(f"the output {out} is a folder: give the name of a file")
    if out.exists() and not overwrite:
        raise BadInput(f"{out} exists: choose another name, or allow it with --overwrite")
    if not out.parent.is_dir():
        raise BadInput(f"the folder {out.parent} does not exist: create it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise BadInput(f"the folder {out.parent} is write-protected: choose another one for {out.name}")


def check_tensors_output(out: Path, *, overwrite: bool) -> None:
    """Raise ``BadInput`` unless a .safetensors file can be written at ``out``."""
    if out.suffix != ".safetensors":
        raise BadInput(f"the output {out} is no .safetensors file: give a name with that ending")
    check_output(out, overwrite=overwrite)
