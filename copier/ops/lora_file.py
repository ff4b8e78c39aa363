"""LoRA files: whole in, whole out, with the metadata that hosts read; ``lora_reader`` reads any kind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights, has_alpha
from copier.checkpoint.dtypes import chosen_dtype
from copier.checkpoint.family import Family
from copier.checkpoint.shared_names import common_names
from copier.checkpoint.writer import data_digest, write_tensors
from copier.errors import BadInput
from copier.ops.lora_reader import LoraReader

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
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
"""What still holds of a LoRA that was made from others: on which checkpoint they were trained."""


@dataclass(frozen=True)
class _Statement:
    """What sd-scripts says of a LoRA for a family (``library/sai_model_spec.py``, the trainers)."""

    version: str
    architecture: str
    implementation: str
    module: str = "networks.lora"


# Forge shows a card's version badge by these: of SD1 and SDXL by the architecture, of SD2 by ss_v2, of FLUX
# by the implementation, whichever model of the family it is.
_STATEMENTS = {
    Family.SD1: _Statement("sd_v1", "stable-diffusion-v1", "diffusers"),
    Family.SD2: _Statement("sd_v2", "stable-diffusion-v2-512", "diffusers"),
    Family.SDXL: _Statement(
        "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"
    ),
    Family.SD3: _Statement("sd3", "stable-diffusion-3", "diffusers", "networks.lora_sd3"),
    Family.FLUX: _Statement(
        "flux1", "flux-1", "https://github.com/black-forest-labs/flux", "networks.lora_flux"
    ),
}
_VELOCITY = {"stable-diffusion-v2-512": "stable-diffusion-v2-768-v"}


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA as it was read: weights in float32 under the hosts' names, metadata, and family."""

    path: str
    weights: LoraWeights
    metadata: Mapping[str, str]
    family: Family


def read_lora(path: str | os.PathLike[str], *, device: str = "cpu") -> LoraFile:
    """Read a whole LoRA file of low-rank modules, in any layout, onto ``device``.

    Raises:
        BadInput: there is no such file, or it is no LoRA.
        BadCheckpoint: it is damaged, or has modules that are no products of two factors.
    """
    with LoraReader(path) as reader:
        reader.require_factors()
        deltas: dict[str, LowRankDelta] = {}
        for name in reader.modules:
            delta = reader.delta(name, device)
            assert isinstance(delta, LowRankDelta)
            deltas[name] = delta
        return LoraFile(str(path), LoraWeights(deltas), dict(reader.metadata), reader.family)


def write_lora(
    path: str | os.PathLike[str],
    weights: LoraWeights,
    metadata: Mapping[str, str],
    *,
    dtype: str = "fp16",
    overwrite: bool = False,
) -> None:
    """Write a LoRA; ``sshs_model_hash`` is added to ``metadata``.

    The layout goes by the modules' names: kohya's, or peft's for dotted ones (``transformer....``).
    ``dtype`` is fp16, bf16 or fp32. alpha is stored in it too: an int64 one, which sd-scripts'
    tools write, breaks loaders that cast it.

    Raises:
        UnknownName: another dtype.
        BadInput: a weight is outside the dtype's range, or as ``TensorWriter``.
    """
    tensors = weights.to_tensors(chosen_dtype(dtype))
    stamped = {**metadata, "sshs_model_hash": data_digest(tensors)}
    write_tensors(path, tensors, stamped, overwrite=overwrite)


def network_metadata(
    weights: LoraWeights, *, name: str, family: Family, velocity: bool = False
) -> dict[str, str]:
    """kohya's and modelspec's description of the network: what hosts read from any LoRA.

    ``ss_network_dim`` and ``ss_network_alpha`` are those of linear modules, "Dynamic" where they
    differ from module to module (kohya's word); kernels larger than 1x1 go into
    ``ss_network_args``. ``name`` becomes the alias that prompts can use. ``velocity``: the base
    predicts v, as SD 2.x for 768 pixels does.
    """
    linear = [item for item in weights.items() if not item[1].is_conv]
    conv = [item for item in weights.items() if item[1].is_conv]
    described = {
        "ss_network_module": "networks.lora",
        **_statement(family, velocity=velocity),
        "ss_network_dim": _uniform([delta.rank for _, delta in linear or conv]),
        "ss_network_alpha": _uniform([_stored_alpha(*item) for item in linear or conv]),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": name,
    }
    if conv:
        arguments = {
            "conv_dim": _uniform([delta.rank for _, delta in conv]),
            "conv_alpha": _uniform([_stored_alpha(*item) for item in conv]),
        }
        described["ss_network_args"] = json.dumps(arguments)
    return described


def _statement(family: Family, *, velocity: bool) -> dict[str, str]:
    known = _STATEMENTS.get(family)
    if known is None:
        return {}
    version, architecture = known.version, known.architecture
    if velocity and version.startswith("sd_"):
        version += "_v"
        architecture = _VELOCITY.get(architecture, architecture)
    return {
        "ss_base_model_version": version,
        "ss_v2": str(family is Family.SD2),
        "ss_network_module": known.module,
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": known.implementation,
    }


def _stored_alpha(name: str, delta: LowRankDelta) -> float:
    return delta.alpha if has_alpha(name) else float(delta.rank)


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
    described = network_metadata(
        weights,
        name=Path(out).stem,
        family=common_family(sources),
        velocity=any(says_velocity(source.metadata) for source in sources),
    )
    return {
        **described,
        **_agreed(sources),
        "copier_operation": json.dumps(operation, sort_keys=True),
        **(extra or {}),
    }


def plain_metadata(lora: LoraFile) -> dict[str, str]:
    """What a LoRA is, without what its trainer was told: its network, and what it was trained on."""
    described = network_metadata(
        lora.weights,
        name=Path(lora.path).stem,
        family=lora.family,
        velocity=says_velocity(lora.metadata),
    )
    return {**described, **_agreed([lora])}


def common_family(sources: Sequence[LoraFile]) -> Family:
    """The family that all LoRAs whose family is known belong to; raises BadInput if they differ."""
    known = {source.family: source for source in sources if source.family is not Family.UNKNOWN}
    if len(known) > 1:
        listed = ", ".join(
            f"{Path(source.path).name!r} is for {family.name}" for family, source in known.items()
        )
        raise BadInput(f"these LoRAs are of different families: {listed}; combine those of one")
    return next(iter(known), Family.UNKNOWN)


def says_velocity(metadata: Mapping[str, str]) -> bool:
    """Does a file's metadata say that its base predicts v?"""
    version = metadata.get("ss_base_model_version", "")
    return version in ("sd_v1_v", "sd_v2_v") or metadata.get("modelspec.prediction_type") == "v"


def aligned(sources: Sequence[LoraFile]) -> list[LoraFile]:
    """The LoRAs with one name for each module that several of them call differently.

    Raises:
        BadInput: they are of different families, or their modules are not the same parts of the model.
    """
    names = common_names([tuple(source.weights) for source in sources], common_family(sources))
    return [
        replace(source, weights=LoraWeights({new[name]: delta for name, delta in source.weights.items()}))
        for source, new in zip(sources, names, strict=True)
    ]


def _agreed(sources: Sequence[LoraFile]) -> dict[str, str]:
    agreed = {}
    for key in _ABOUT_THE_BASE:
        values = {source.metadata[key] for source in sources if key in source.metadata}
        if len(values) == 1:
            agreed[key] = values.pop()
    return agreed


def _uniform(values: Sequence[float]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "Dynamic"
