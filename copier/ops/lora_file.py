"""LoRA files: whole in, whole out, with the metadata that hosts read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.algebra.lora import LoraWeights
from copier.checkpoint.dtypes import chosen_dtype
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.writer import data_digest, write_tensors
from copier.errors import BadInput

STALE_HASHES = ("sshs_legacy_hash", "sshs_model_hash", "modelspec.hash_sha256")
"""Metadata that no longer holds once a tensor has changed."""

_ABOUT_THE_BASE = (
    "ss_base_model_version",
    "ss_clip_skip",
    "ss_new_sd_model_hash",
    "ss_resolution",
    "ss_sd_model_hash",
    "ss_sd_model_name",
    "ss_v2",
    "modelspec.architecture",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
"""What still holds of a LoRA that was made from others: on which checkpoint they were trained."""

_STATEMENTS = {
    # Forge shows the version badge of a card only where the architecture is stated.
    Family.SD1: {
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    },
    Family.SDXL: {
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
}


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA as it was read: weights in float32, metadata, and the family of its names."""

    path: str
    weights: LoraWeights
    metadata: Mapping[str, str]
    family: Family


def read_lora(path: str | os.PathLike[str], *, device: str = "cpu") -> LoraFile:
    """Read a whole LoRA file in kohya's layout onto ``device``.

    Raises:
        BadInput: there is no such file, or it is no LoRA.
        BadCheckpoint: it is damaged, or a kind of LoRA that is not supported.
    """
    with TensorReader(path) as reader:
        identity = detect(reader.header)
        if identity.kind is not Kind.LORA:
            raise BadInput(f"{Path(path).name!r} is no LoRA (it is: {identity.kind.value})")
        weights = LoraWeights.from_tensors({key: reader.tensor(key) for key in reader.header.tensors})
        return LoraFile(str(path), weights.to(device), dict(reader.metadata), identity.family)


def write_lora(
    path: str | os.PathLike[str],
    weights: LoraWeights,
    metadata: Mapping[str, str],
    *,
    dtype: str = "fp16",
    overwrite: bool = False,
) -> None:
    """Write a LoRA in kohya's layout; ``sshs_model_hash`` is added to ``metadata``.

    ``dtype`` is fp16, bf16 or fp32. alpha is stored in it too: an int64 one, which sd-scripts'
    tools write, breaks loaders that cast it.

    Raises:
        UnknownName: another dtype.
        BadInput: a weight is outside the dtype's range, or as ``TensorWriter``.
    """
    tensors = weights.to_tensors(chosen_dtype(dtype))
    stamped = {**metadata, "sshs_model_hash": data_digest(tensors)}
    write_tensors(path, tensors, stamped, overwrite=overwrite)


def network_metadata(weights: LoraWeights, *, name: str, family: Family) -> dict[str, str]:
    """kohya's and modelspec's description of the network: what hosts read from any LoRA.

    ``ss_network_dim`` and ``ss_network_alpha`` are those of linear modules, "Dynamic" where they
    differ from module to module (kohya's word); kernels larger than 1x1 go into
    ``ss_network_args``. ``name`` becomes the alias that prompts can use.
    """
    linear = [delta for delta in weights.values() if not delta.is_conv]
    conv = [delta for delta in weights.values() if delta.is_conv]
    described = {
        **_STATEMENTS.get(family, {}),
        "ss_network_module": "networks.lora",
        "ss_network_dim": _uniform([delta.rank for delta in linear or conv]),
        "ss_network_alpha": _uniform([delta.alpha for delta in linear or conv]),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
    }
    if conv:
        arguments = {
            "conv_dim": _uniform([delta.rank for delta in conv]),
            "conv_alpha": _uniform([delta.alpha for delta in conv]),
        }
        described["ss_network_args"] = json.dumps(arguments)
    return described


def derived_metadata(
    sources: Sequence[LoraFile],
    weights: LoraWeights,
    out: str | os.PathLike[str],
    operation: Mapping[str, Any],
    extra: Mapping[str, str] | None,
) -> dict[str, str]:
    """Metadata of a LoRA made from ``sources``.

    What they say of their base is kept where they agree; the network is described anew;
    ``copier_operation`` is ``operation`` as JSON; ``extra`` comes last and wins.
    """
    described = network_metadata(weights, name=Path(out).stem, family=common_family(sources))
    return {
        **described,
        **_agreed(sources),
        "copier_operation": json.dumps(operation, sort_keys=True),
        **(extra or {}),
    }


def common_family(sources: Sequence[LoraFile]) -> Family:
    """The family that all LoRAs whose family is known belong to; raises BadInput if they differ."""
    known = {source.family: source for source in sources if source.family is not Family.UNKNOWN}
    if len(known) > 1:
        listed = ", ".join(
            f"{Path(source.path).name!r} is for {family.name}" for family, source in known.items()
        )
        raise BadInput(f"these LoRAs are of different families: {listed}; combine those of one")
    return next(iter(known), Family.UNKNOWN)


def _agreed(sources: Sequence[LoraFile]) -> dict[str, str]:
    agreed = {}
    for key in _ABOUT_THE_BASE:
        values = {source.metadata[key] for source in sources if key in source.metadata}
        if len(values) == 1:
            agreed[key] = values.pop()
    return agreed


def _uniform(values: Sequence[float]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "Dynamic"
