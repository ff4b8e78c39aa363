"""Which family of models a file belongs to, told from the keys and shapes in its header.

Widths decide only where the names cannot: a narrow Stable Diffusion 1.x has the same keys as the
real one and is the same family. Hosts' flags are never asked (the refiner claims to be SDXL).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from copier.checkpoint.header import Header


class Family(enum.Enum):
    """A family of models whose LoRAs fit each other's checkpoints."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"
    SD3 = "sd3"
    FLUX = "flux"
    UNKNOWN = "unknown"


class Kind(enum.Enum):
    """What a file is for."""

    CHECKPOINT = "checkpoint"
    LORA = "lora"
    OTHER = "other"


@dataclass(frozen=True)
class Identity:
    """What ``detect`` found.

    ``layout`` names the convention of the keys: "ldm" (one file, with text encoder), "ldm-unet"
    (a transformer or U-Net alone, under LDM's or the maker's names), "diffusers"; of LoRAs "kohya",
    "peft" (``lora_A``/``lora_B``), "loha", "lokr"; "" for other files. ``details`` holds notes such
    as ``refiner``, ``conv``, ``dora`` or ``quantised``, each with a value for people.
    """

    family: Family
    kind: Kind
    layout: str
    details: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


_LORA_LAYOUTS = (
    ("kohya", (".lora_down.weight", ".lora_up.weight")),
    ("peft", (".lora_A.weight", ".lora_B.weight")),
    ("loha", (".hada_w1_a", ".hada_w2_a")),
    ("lokr", (".lokr_w1", ".lokr_w1_a", ".lokr_w2", ".lokr_w2_a")),
)
_CONTEXT_WIDTHS = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}
"""Width of the text encoder's output that the cross attention reads, in the real models."""
_DEEP_TRANSFORMER = re.compile(r"attentions_\d+_transformer_blocks_[1-9]")
_CROSS_KEY = re.compile(r"attn2[._]to_k[._]")
_TEXT_LAYER = re.compile(r"encoder_layers_(\d+)_")


def detect(header: Header) -> Identity:
    """Tell family, kind and layout from the header alone; never fails, may answer UNKNOWN."""
    keys = header.tensors
    for layout, suffixes in _LORA_LAYOUTS:
        if any(key.endswith(suffixes) for key in keys):
            return Identity(_lora_family(header), Kind.LORA, layout, _lora_details(header))
    return _detect_checkpoint(header)


def _has(header: Header, test: str) -> bool:
    return any(key.startswith(test) for key in header.tensors)


def _contains(header: Header, *tests: str) -> bool:
    return any(test in key for key in header.tensors for test in tests)


def _first_shape(header: Header, test: Callable[[str], object]) -> tuple[int, ...]:
    return next((info.shape for key, info in header.tensors.items() if test(key)), ())


def _detect_checkpoint(header: Header) -> Identity:
    details = {}
    if _contains(header, ".quant_state.", ".bitsandbytes__"):
        details["quantised"] = "bitsandbytes (NF4 or FP4): its weights cannot be changed"
    family, layout = _checkpoint_family(header)
    if family is Family.SDXL and layout == "ldm" and not _has(header, "conditioner.embedders.1."):
        details["refiner"] = "one text encoder only: the SDXL refiner"
    if layout == "":
        return Identity(Family.UNKNOWN, Kind.OTHER, "", MappingProxyType(details))
    if not _contains(header, "first_stage_model.", "vae."):
        details["vae"] = "none in the file"
    return Identity(family, Kind.CHECKPOINT, layout, MappingProxyType(details))


def _checkpoint_family(header: Header) -> tuple[Family, str]:
    if _contains(header, "double_blocks.0.img_attn."):
        return Family.FLUX, "ldm" if _has(header, "text_encoders.") else "ldm-unet"
    if _contains(header, "joint_blocks.0."):
        return Family.SD3, "ldm" if _has(header, "text_encoders.") else "ldm-unet"
    if _has(header, "model.diffusion_model.input_blocks."):
        if _has(header, "conditioner.embedders."):
            return Family.SDXL, "ldm"
        if _has(header, "cond_stage_model.model."):
            return Family.SD2, "ldm"
        if _has(header, "cond_stage_model.transformer."):
            return Family.SD1, "ldm"
        return _unet_family(header), "ldm-unet"
    if _has(header, "down_blocks.") and _has(header, "conv_in.") and _contains(header, "attn2.to_k"):
        return _unet_family(header), "diffusers"
    return Family.UNKNOWN, ""


def _unet_family(header: Header) -> Family:
    """Of a U-Net alone: SDXL has extra conditioning, SD1 alone has 1x1 convolutions as proj_in."""
    if _contains(header, "label_emb.", "add_embedding."):
        return Family.SDXL
    projection = _first_shape(header, lambda key: key.endswith("proj_in.weight"))
    return {4: Family.SD1, 2: Family.SD2}.get(len(projection), Family.UNKNOWN)


def _lora_family(header: Header) -> Family:
    if _contains(header, "single_blocks_", "single_blocks.", "single_transformer_blocks"):
        return Family.FLUX
    if _contains(header, "double_blocks_", "double_blocks."):
        return Family.FLUX
    if _contains(header, "joint_blocks_", "joint_blocks.", "transformer.transformer_blocks."):
        return Family.SD3
    if _has(header, "lora_te1_") or _has(header, "lora_te2_") or _contains(header, "text_encoder_2."):
        return Family.SDXL
    if _contains(header, "lora_unet_input_blocks_", "lora_unet_output_blocks_"):
        return Family.SDXL
    if any(_DEEP_TRANSFORMER.search(key) for key in header.tensors):
        return Family.SDXL
    return _early_lora_family(header)


def _early_lora_family(header: Header) -> Family:
    """SD1 or SD2, whose LoRAs have the same names: by shapes, then by what the file says."""

    def down_of(part: str) -> Callable[[str], object]:
        return lambda key: part in key and key.endswith((".lora_down.weight", ".lora_A.weight"))

    cross = _first_shape(header, lambda key: _CROSS_KEY.search(key) and down_of("attn2")(key))
    if len(cross) >= 2 and cross[1] in _CONTEXT_WIDTHS:
        return _CONTEXT_WIDTHS[cross[1]]
    projection = _first_shape(header, down_of("proj_in"))
    if projection:
        return Family.SD1 if len(projection) == 4 else Family.SD2
    text = _first_shape(header, down_of("self_attn"))
    layers = [int(match[1]) for key in header.tensors if (match := _TEXT_LAYER.search(key))]
    if text[1:2] == (1024,) or max(layers, default=0) >= 12:
        return Family.SD2
    if text[1:2] == (768,):
        return Family.SD1
    return _stated_family(header.metadata)


def _stated_family(metadata: Mapping[str, str]) -> Family:
    architecture = metadata.get("modelspec.architecture", "")
    version = metadata.get("ss_base_model_version", "")
    for starts, family in (
        ("stable-diffusion-v1", Family.SD1),
        ("stable-diffusion-v2", Family.SD2),
        ("stable-diffusion-xl", Family.SDXL),
        ("stable-diffusion-3", Family.SD3),
        ("flux", Family.FLUX),
    ):
        if architecture.lower().startswith(starts):
            return family
    for starts, family in (("sd_v1", Family.SD1), ("sd_v2", Family.SD2), ("sdxl", Family.SDXL)):
        if version.startswith(starts):
            return family
    return Family.UNKNOWN


def _lora_details(header: Header) -> Mapping[str, str]:
    details = {}
    kernels = {
        info.shape[2:]
        for key, info in header.tensors.items()
        if key.endswith(".lora_down.weight") and len(info.shape) == 4
    }
    if kernels - {(1, 1)}:
        details["conv"] = "has convolutions (LoCon)"
    if _contains(header, "dora_scale"):
        details["dora"] = "DoRA: its magnitude depends on the checkpoint's weights"
    if _contains(header, "lora_mid."):
        details["tucker"] = "convolutions in three factors (lora_mid)"
    if not _contains(header, "lora_unet_", "unet.", "transformer."):
        details["parts"] = "text encoder only"
    elif not _contains(header, "lora_te", "text_encoder"):
        details["parts"] = "U-Net or transformer only"
    return MappingProxyType(details)
