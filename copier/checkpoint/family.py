"""Which family of models a file belongs to, told from the keys and shapes in its header.

Widths decide only where the names cannot: a narrow Stable Diffusion 1.x has the same keys as the
real one and is the same family. Hosts' flags are never asked (the refiner claims to be SDXL), and
what the metadata says counts only where the tensors leave it open.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from copier.checkpoint.header import Header
from copier.checkpoint.lora_keys import layout_of, without_adapter


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
    (a transformer or U-Net alone, under LDM's or the maker's names), "diffusers"; of LoRAs that of
    what is stored for a module: "kohya" (``lora_up``/``lora_down``), "peft" (``lora_A``/``lora_B``),
    "diffusers" (``lora.up``/``lora.down``, before peft), "loha", "lokr", "oft", "ia3", "full"; "" for
    other files. ``details`` holds notes such as ``refiner``, ``conv``, ``dora`` or ``quantised``,
    each with a value for people.
    """

    family: Family
    kind: Kind
    layout: str
    details: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


_UNREAD_LAYOUTS = (("oft", (".oft_blocks", ".oft_diag")), ("ia3", (".on_input",)))
"""LoRAs in a wider sense, of kinds that nothing here reads."""
_QUANTISED = (
    ((".quant_state.", ".bitsandbytes__", ".SCB"), "bitsandbytes (NF4, FP4 or int8)"),
    ((".scale_weight", ".weight_scale", "scaled_fp8", ".comfy_quant"), "factors beside its fp8 weights"),
    ((".qweight", ".wscales"), "packed integers (GPTQ, SVDQuant)"),
)
_CONTEXT_WIDTHS = {768: Family.SD1, 1024: Family.SD2, 2048: Family.SDXL}
"""Width of the text encoder's output that the cross attention reads, in the real models."""
_TRANSFORMER_WIDTHS = {3072: Family.FLUX, 1536: Family.SD3, 2432: Family.SD3}
"""Width of the real transformers: FLUX.1; SD3 and SD3.5 medium; SD3.5 large."""

_NAME = re.compile(
    r"(.+?)(?:\.(?:lora|hada|lokr|oft)_|[._]lora\.|\.(?:on_input|diff|diff_b|alpha|dora_scale)$)"
)
# The others are of names with "_" for ".".
_FLUX_NAME = re.compile(
    r"(single_transformer|single|double)_blocks_|_te2_encoder_block_|_encoder_2_encoder_block_"
)
_SD3_NAME = re.compile(r"joint_blocks_|^text_encoder_3_")
_TRANSFORMER_NAME = re.compile(
    r"(?:transformer_|base_model_model_|lora_transformer_|lycoris_)?transformer_blocks_(\d{1,4})_"
)
_FLUX_DOUBLE_BLOCKS = 19
"""Qwen-Image has FLUX's width and names of blocks, but more of them."""
_DOWN_ENDS = (
    *(".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight"),
    ".lora_linear_layer.down.weight",
)
_UNET_NAME = re.compile(r"unet_|(down|mid|up)_block|(input|output)_blocks_|middle_block_")
_SDXL_NAME = re.compile(
    r"(attentions_\d+|block(s_\d+)?_1)_transformer_blocks_[1-9]|up_blocks_0_attentions|label_emb_|add_embedding_"
    r"|output_blocks_[0-2]_1_(norm|proj|transformer)"
)
"""What SDXL's U-Net has and SD1's and SD2's have not: deep transformers, and at the innermost level."""
_EARLY_NAME = re.compile(
    r"down_blocks_0_attentions|up_blocks_2_attentions|(down|up)_blocks_3_|input_blocks_[12]_1_"
    r"|(input|output)_blocks_(9|10|11)_|output_blocks_[6-8]_1_(norm|proj|transformer)"
)
"""What SD1's and SD2's U-Nets have and SDXL's has not: four levels, transformers at the outermost."""
_CROSS_NAME = re.compile(r"attn2_(processor_)?to_[kv]$")
_TEXT_LAYER = re.compile(r"^lora_te_text_model_encoder_layers_(\d{1,4})_(?:self_attn_|mlp_fc1)")


def detect(header: Header) -> Identity:
    """Tell family, kind and layout from the header alone; never fails, may answer UNKNOWN."""
    if any(".lora_" in key for key in header.tensors):
        plain = {without_adapter(key): info for key, info in header.tensors.items()}
        header = replace(header, tensors=plain)
    layout = layout_of(header.tensors) or _unread_layout(header)
    if layout:
        return Identity(_lora_family(header), Kind.LORA, layout, _lora_details(header))
    return _detect_checkpoint(header)


def _unread_layout(header: Header) -> str:
    return next(
        (layout for layout, ends in _UNREAD_LAYOUTS if any(key.endswith(ends) for key in header.tensors)), ""
    )


def _has(header: Header, test: str) -> bool:
    return any(key.startswith(test) for key in header.tensors)


def _contains(header: Header, *tests: str) -> bool:
    return any(test in key for key in header.tensors for test in tests)


def _first_shape(header: Header, test: Callable[[str], object]) -> tuple[int, ...]:
    return next((info.shape for key, info in header.tensors.items() if test(key)), ())


def _detect_checkpoint(header: Header) -> Identity:
    details = {}
    for marks, how in _QUANTISED:
        if _contains(header, *marks):
            details["quantised"] = f"{how}: its weights cannot be changed; use the fp16 or bf16 file"
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
    if _has(header, "model.diffusion_model.input_blocks.") or _has(header, "input_blocks."):
        if _has(header, "conditioner.embedders."):
            return Family.SDXL, "ldm"
        if _has(header, "cond_stage_model.model."):
            return Family.SD2, "ldm"
        if _has(header, "cond_stage_model.transformer."):
            return Family.SD1, "ldm"
        return _unet_family(header), "ldm-unet"
    if _has(header, "down_blocks.") and _has(header, "conv_in.") and _contains(header, "attn2.to_k"):
        return _unet_family(header), "diffusers"
    if _has(header, "transformer_blocks.0.attn.add_q_proj."):
        family = Family.FLUX if _has(header, "single_transformer_blocks.") else Family.SD3
        return family, "diffusers"
    return Family.UNKNOWN, ""


def _unet_family(header: Header) -> Family:
    """Of a U-Net alone: SDXL has extra conditioning, SD1 alone has 1x1 convolutions as proj_in."""
    if _contains(header, "label_emb.", "add_embedding."):
        return Family.SDXL
    projection = _first_shape(header, lambda key: key.endswith("proj_in.weight"))
    return {4: Family.SD1, 2: Family.SD2}.get(len(projection), Family.UNKNOWN)


def _lora_family(header: Header) -> Family:
    paths = _module_paths(header)
    names = [name.replace(".", "_") for name in paths]
    stated = _stated_family(header.metadata)
    if _any(_FLUX_NAME, names):
        return Family.FLUX
    if _any(_SD3_NAME, names) or all(_starts(names, f"lora_te{number}_") for number in (2, 3)):
        return Family.SD3
    blocks = [int(match[1]) for name in names if (match := _TRANSFORMER_NAME.match(name))]
    if blocks:
        return _transformer_family(header, paths, max(blocks)) or stated
    if _any(_UNET_NAME, names):
        return _unet_lora_family(header, paths, names) or stated
    return _text_lora_family(header, paths) or stated


def _module_paths(header: Header) -> list[str]:
    found = {match[1] for key in header.tensors if (match := _NAME.match(key))}
    return sorted(found)


def _any(pattern: re.Pattern[str], names: list[str]) -> bool:
    return any(pattern.search(name) for name in names)


def _starts(names: list[str], *starts: str) -> bool:
    return any(name.startswith(starts) for name in names)


def _transformer_family(header: Header, paths: list[str], last: int) -> Family | None:
    """FLUX or SD3, of a LoRA with diffusers' names for blocks that both have."""
    if any("_attn2_to_" in path.replace(".", "_") for path in paths):
        return Family.SD3
    readers = (path for path in paths if path.endswith(("to_q", "to_k", "to_v", "proj")))
    family = _by_width(header, readers, _TRANSFORMER_WIDTHS)
    return None if family is Family.FLUX and last >= _FLUX_DOUBLE_BLOCKS else family


def _unet_lora_family(header: Header, paths: list[str], names: list[str]) -> Family | None:
    if _any(_SDXL_NAME, names) or _starts(names, "lora_te2_", "text_encoder_2_"):
        return Family.SDXL
    cross = (path for path in paths if _CROSS_NAME.search(path.replace(".", "_")))
    by_width = _by_width(header, cross, _CONTEXT_WIDTHS)
    if by_width is not None:
        return by_width
    if not _any(_EARLY_NAME, names) and _starts(names, "lora_te1_", "lora_unet_input", "lora_unet_output"):
        return Family.SDXL
    projections = [_downs(header, path) for path in paths if path.endswith("proj_in")]
    axes = {len(shape) for shapes in projections for shape in shapes}
    if axes == {4}:
        return Family.SD1
    if axes == {2} and _any(_EARLY_NAME, names):
        return Family.SD2
    return _text_lora_family(header, paths)


def _text_lora_family(header: Header, paths: list[str]) -> Family | None:
    """SD1 or SD2 of kohya's names for a single text encoder; any other encoder is of many families."""
    layers = {path: int(match[1]) for path in paths if (match := _TEXT_LAYER.match(path))}
    if max(layers.values(), default=0) >= 12:
        return Family.SD2
    return _by_width(header, layers, {768: Family.SD1, 1024: Family.SD2})


def _by_width(header: Header, paths: Iterable[str], widths: Mapping[int, Family]) -> Family | None:
    """The family whose width the first of the modules that tells its own reads."""
    for path in paths:
        family = widths.get(_input_width(header, path))
        if family is not None:
            return family
    return None


def _downs(header: Header, path: str) -> list[tuple[int, ...]]:
    """Shapes of the module's factors that read its input: (rank, in[, height, width])."""
    infos = (header.tensors.get(path + end) for end in _DOWN_ENDS)
    return [info.shape for info in infos if info is not None and len(info.shape) >= 2]


def _input_width(header: Header, path: str) -> int:
    """How many features the linear module reads, 0 where that cannot be told."""

    def width(*ends: str) -> int:
        infos = (header.tensors.get(path + end) for end in ends)
        return next((info.shape[1] for info in infos if info is not None and len(info.shape) >= 2), 0)

    kronecker = width(".lokr_w1", ".lokr_w1_b") * width(".lokr_w2", ".lokr_w2_b")
    return width(*_DOWN_ENDS, ".hada_w1_b") or kronecker


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
    for starts, family in (
        ("sd_v1", Family.SD1),
        ("sd_v2", Family.SD2),
        ("sdxl", Family.SDXL),
        ("sd3", Family.SD3),
        ("flux", Family.FLUX),
    ):
        if version.startswith(starts):
            return family
    return Family.UNKNOWN


def _lora_details(header: Header) -> Mapping[str, str]:
    details = {}
    kernels = {
        info.shape[2:]
        for key, info in header.tensors.items()
        if key.endswith(_DOWN_ENDS) and len(info.shape) == 4
    }
    if kernels - {(1, 1)}:
        details["conv"] = "has convolutions (LoCon)"
    if _contains(header, "dora_scale"):
        details["dora"] = "DoRA: its magnitude depends on the checkpoint's weights"
    if _contains(header, "lora_mid."):
        details["tucker"] = "convolutions in three factors (lora_mid)"
    paths = _module_paths(header)
    text = [path for path in paths if path.startswith(("lora_te", "text_encoder"))]
    if not text:
        details["parts"] = "U-Net or transformer only"
    elif len(text) == len(paths):
        details["parts"] = "text encoder only"
    return MappingProxyType(details)
