"""Where a single file keeps each weight of the modules that diffusers and transformers build from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from copier.checkpoint.names import UNET_PREFIX, ldm_from_diffusers_vae
from copier.checkpoint.rows import Rows, thirds
from copier.checkpoint.shapes import TextSizes
from copier.checkpoint.structure import TextStructure
from copier.checkpoint.text_paths import OPEN_CLIP_PARTS
from copier.checkpoint.unet_paths import diffusers_unet_paths

_PARAMETERS = ("weight", "bias")
_OPEN_CLIP_NORMS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


@dataclass(frozen=True)
class Source:
    """A tensor of the file: its key, those of its rows that are meant (None: all), and whether it lies the
    other way round."""

    key: str
    rows: Rows | None = None
    transposed: bool = False


def unet_sources(keys: Iterable[str]) -> Mapping[str, Source]:
    """Keys of ``UNet2DConditionModel``, of those among ``keys`` that are the U-Net's."""
    modules: dict[str, list[str]] = {}
    for key in keys:
        module, _, parameter = key.removeprefix(UNET_PREFIX).rpartition(".")
        if key.startswith(UNET_PREFIX) and parameter in _PARAMETERS:
            modules.setdefault(module, []).append(parameter)
    return {
        f"{ours}.{parameter}": Source(f"{UNET_PREFIX}{theirs}.{parameter}")
        for theirs, ours in diffusers_unet_paths(modules).items()
        for parameter in modules[theirs]
    }


def autoencoder_sources(keys: Iterable[str]) -> Mapping[str, Source]:
    """Those of the ``keys`` of ``AutoencoderKL``; its attention's weights lack two axes of size 1.

    Raises:
        UnknownName: a KL-f8 autoencoder has no such key.
    """
    return {key: Source(ldm_from_diffusers_vae(key)) for key in keys}


def text_sources(text: TextStructure, size: TextSizes, keys: Iterable[str]) -> Mapping[str, Source]:
    """Those of the ``keys`` of ``CLIPTextModel``, or ``CLIPTextModelWithProjection`` where it is pooled."""
    if not text.open_clip:
        return {key: Source(text.prefix + key) for key in keys}
    return _open_clip_sources(text, size)


def _open_clip_sources(text: TextStructure, size: TextSizes) -> Mapping[str, Source]:
    found = {ours: Source(text.prefix + theirs) for ours, theirs in _OPEN_CLIP_ENDS.items()}
    if text.pooled:
        found["text_projection.weight"] = Source(f"{text.prefix}text_projection", transposed=True)
    for number in range(size.layers):
        theirs, ours = f"{text.prefix}transformer.resblocks.{number}", f"text_model.encoder.layers.{number}"
        for norm, name in _OPEN_CLIP_NORMS.items():
            for parameter in _PARAMETERS:
                found[f"{ours}.{name}.{parameter}"] = Source(f"{theirs}.{norm}.{parameter}")
        for part, names in OPEN_CLIP_PARTS.items():
            stem = part.removesuffix("weight")
            for parameter in _PARAMETERS:
                rows = thirds(3 * size.width) if len(names) > 1 else (None,)
                for name, one in zip(names, rows, strict=True):
                    found[f"{ours}.{name}.{parameter}"] = Source(f"{theirs}.{stem}{parameter}", one)
    return found
