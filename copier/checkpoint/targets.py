"""Which tensor of a checkpoint, and which rows of it, each name in a LoRA file stands for.

LoRA files in the wild name one weight in many ways: by the maker's path or by diffusers', with dots
or with "_" for ".", behind one of a dozen prefixes. All names follow here from the keys and shapes of the
checkpoint itself; no table has a depth or a width.

Sources of the names: ``networks/lora.py``, ``lora_sd3.py`` and ``lora_flux.py`` of kohya-ss/sd-scripts;
the loaders of huggingface/diffusers, comfyanonymous/ComfyUI (which Forge uses) and AUTOMATIC1111's
``extensions-builtin/Lora``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from copier.checkpoint.blocks import TEXT_PREFIXES
from copier.checkpoint.family import Family, detect
from copier.checkpoint.header import Header
from copier.checkpoint.names import UNET_PREFIX, VAE_PREFIX
from copier.checkpoint.rows import Rows
from copier.checkpoint.text_paths import TEXT_ENCODERS, TextEncoder, text_parts
from copier.checkpoint.transformer_paths import diffusers_transformer_paths
from copier.checkpoint.unet_paths import diffusers_unet_paths

_NO_IMAGE_MODEL = (*TEXT_PREFIXES, VAE_PREFIX, "vae.")
_WEIGHT = ".weight"

_NATIVE_DOTTED = ("", "diffusion_model.", "model.diffusion_model.", "base_model.model.")
_NATIVE_FLAT = ("lora_unet_",)
_UNET_DOTTED = ("", "unet.", "base_model.model.")
_UNET_FLAT = ("lora_unet_", "lycoris_")
_EMBEDDING, _OLD_EMBEDDING = "add_embedding.", "class_embedding."
_TRANSFORMER_DOTTED = ("", "transformer.", "base_model.model.")
_TRANSFORMER_FLAT = ("lora_transformer_", "lycoris_")

_TRAINED_UNET = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers)\.")
_TRAINED_TRANSFORMER = re.compile(
    r"(double_blocks|single_blocks|joint_blocks|img_in|txt_in|time_in|vector_in|guidance_in"
    r"|(x|t|y|context)_embedder)\b|final_layer\.(linear|adaLN_modulation)\b"
)
_NOT_TRAINED_FLUX = "final_layer."
_TRAINED_TEXT = re.compile(
    r"text_model\.encoder\.layers\.(\d{1,4})\.(self_attn\.\w+_proj|mlp\.fc[12])"
    r"|encoder\.block\.\d+\.layer\.\d+\.(SelfAttention\.[qkvo]|DenseReluDense\.\w+)"
)
_PROJECTION = re.compile(r"self_attn\.(q|k|v|out)_proj$")
"""Projections of text encoders, which diffusers' first LoRAs name as the U-Net's."""
_SD2_TEXT_LAYERS = 23
"""SD2 reads the last but one of its 24 layers; kohya leaves the last one out (``model_util.py``)."""
_TRANSFORMER = re.compile(r"_transformer_blocks_|_proj_(in|out)$")


@dataclass(frozen=True)
class Target:
    """What one module of a LoRA changes: the tensor ``key`` of the checkpoint file.

    ``rows`` are the first row and the row after the last of the tensor's first axis, where the module
    is one of several that the checkpoint keeps in one tensor (q, k, v); None for the whole.
    """

    key: str
    rows: Rows | None = None


@dataclass(frozen=True)
class _Named:
    """A target, the names that LoRA files have for it, and the one that kohya gives it ("" if none)."""

    target: Target
    aliases: tuple[str, ...]
    written: str = ""


def module_targets(checkpoint: Header) -> Mapping[str, Target]:
    """Every name by which LoRA files call a weight of this checkpoint -> the target.

    Names are those of modules, without ``.lora_up.weight`` and the like. Weights are matrices and
    kernels; what has fewer axes (norms, biases) has no name here. A checkpoint of a family that is not
    known has what names its structure gives.
    """
    return MappingProxyType(
        {alias: named.target for named in _all_named(checkpoint) for alias in named.aliases}
    )


def written_names(checkpoint: Header) -> Mapping[str, Target]:
    """The one name of each weight in a LoRA that is made from this checkpoint, in the file's order.

    It is kohya's, which every host reads; only modules that kohya's networks can have are in it (linear
    layers and convolutions; of FLUX and SD3 also the embedders, of T5 its layers). OpenCLIP's fused
    ``in_proj_weight`` gives three names with rows, FLUX's and SD3's fused weights one name.
    """
    return MappingProxyType(
        {named.written: named.target for named in _all_named(checkpoint) if named.written}
    )


def trained_names(checkpoint: Header, *, conv: bool, text: bool, unet: bool = True) -> Mapping[str, Target]:
    """Those of ``written_names`` that a training of the U-Net (``unet``) and the text encoders changes.

    Without ``conv`` only the linear and 1x1 layers of the U-Net's transformers, as ``networks.lora`` of
    sd-scripts has it without a conv rank (``create_network`` in v0.10.1's ``lora.py``).
    """
    names = written_names(checkpoint)
    return MappingProxyType(
        {
            name: target
            for name, target in names.items()
            if (text if name.startswith("lora_te") else unet and (conv or _TRANSFORMER.search(name)))
        }
    )


def _all_named(checkpoint: Header) -> Iterator[_Named]:
    shapes = {key: info.shape for key, info in checkpoint.tensors.items() if len(info.shape) >= 2}
    family = detect(checkpoint).family
    image = _image_names(shapes, family)
    encoders = [one for one in TEXT_ENCODERS if one.family in (None, family)]
    for key, shape in shapes.items():
        encoder = next((one for one in encoders if key.startswith(one.prefix)), None)
        if encoder is not None:
            yield from _text_names(encoder, key, shape, family)
        else:
            yield from image.get(key, ())


def _text_names(encoder: TextEncoder, key: str, shape: tuple[int, ...], family: Family) -> Iterator[_Named]:
    for path, rows in text_parts(encoder, key.removeprefix(encoder.prefix), shape):
        aliases = [*_flat(encoder.kohya, path), *_dotted(encoder.dotted, path)]
        aliases += _dotted(encoder.dotted, _PROJECTION.sub(r"self_attn.to_\1", path))
        if rows is None:
            aliases.append(key.removesuffix(_WEIGHT))
        trained = _TRAINED_TEXT.fullmatch(path)
        unused = family is Family.SD2 and trained and int(trained[1]) >= _SD2_TEXT_LAYERS
        written = aliases[0] if trained and not unused else ""
        yield _Named(Target(key, rows), tuple(aliases), written)


def _image_names(shapes: Mapping[str, tuple[int, ...]], family: Family) -> dict[str, list[_Named]]:
    """Key -> the names of the U-Net's or transformer's weight."""
    prefix = UNET_PREFIX if any(key.startswith(UNET_PREFIX) for key in shapes) else ""
    native = {
        key.removeprefix(prefix).removesuffix(_WEIGHT): shape
        for key, shape in shapes.items()
        if key.startswith(prefix) and key.endswith(_WEIGHT) and not key.startswith(_NO_IMAGE_MODEL)
    }
    unet = diffusers_unet_paths(native)
    transformer = diffusers_transformer_paths(native)
    names = {}
    for path in native:
        key = f"{prefix}{path}{_WEIGHT}"
        aliases = [*_dotted(_NATIVE_DOTTED, path), *_flat(_NATIVE_FLAT, path)]
        if path in unet:
            aliases += _unet_names(unet[path])
        parts = transformer.get(path, ())
        names[key] = [
            _Named(Target(key, rows), _transformer_names(part)) for part, rows in parts if rows is not None
        ]
        for part, rows in parts:
            aliases += _transformer_names(part) if rows is None else ()
        written = _written_image_name(path, unet.get(path, ""), family)
        names[key].append(_Named(Target(key), tuple(aliases), written))
    return names


def _written_image_name(native: str, diffusers: str, family: Family) -> str:
    """kohya keeps diffusers' paths for SD1 and SD2 and the makers' own for what came later."""
    if diffusers:
        if not _TRAINED_UNET.search(diffusers):
            return ""
        return next(_flat(_NATIVE_FLAT, native if family is Family.SDXL else diffusers))
    unknown_to_flux = family is Family.FLUX and native.startswith(_NOT_TRAINED_FLUX)
    trained = _TRAINED_TRANSFORMER.match(native) and not unknown_to_flux
    return next(_flat(_NATIVE_FLAT, native)) if trained else ""


def _transformer_names(path: str) -> tuple[str, ...]:
    return (*_dotted(_TRANSFORMER_DOTTED, path), *_flat(_TRANSFORMER_FLAT, path))


def _unet_names(path: str) -> list[str]:
    names = [*_dotted(_UNET_DOTTED, path), *_flat(_UNET_FLAT, path)]
    if path.startswith(_EMBEDDING):  # what U-Nets before SDXL call the same layers
        names += _unet_names(_OLD_EMBEDDING + path.removeprefix(_EMBEDDING))
    if ".to_" in path:  # diffusers' first LoRAs belonged to the processor of an attention
        names += _dotted(("", "unet."), path.replace(".to_", ".processor.to_").removesuffix(".0"))
    return names


def _dotted(prefixes: tuple[str, ...], path: str) -> Iterator[str]:
    return (prefix + path for prefix in prefixes)


def _flat(prefixes: tuple[str, ...], path: str) -> Iterator[str]:
    return _dotted(prefixes, path.replace(".", "_"))
