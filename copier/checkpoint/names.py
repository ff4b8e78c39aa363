"""Names of Stable Diffusion 1.x's tensors in the layouts that are in use.

    LDM         one file: ``model.diffusion_model.``, ``first_stage_model.``, ``cond_stage_model.``
    diffusers   state dicts of ``UNet2DConditionModel``, ``AutoencoderKL``; text: ``CLIPTextModel``
    kohya       LoRA modules: the diffusers path with "." written "_", prefixed ``lora_unet_`` or
                ``lora_te_`` (sd-scripts' ``networks/lora.py``)

All names follow from the few numbers at the top. A *module* here is a leaf with a ``weight`` and
perhaps a ``bias``; a *key* is ``<module>.weight`` or ``<module>.bias``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from copier.errors import UnknownName

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer."

LEVELS = 4
LAYERS = 2
"""Residual blocks of a level on the way down; one more on the way up."""
ATTENTION_LEVELS = (0, 1, 2)
"""U-Net levels with transformer blocks, counted from the outermost."""
SHORTCUT_LEVELS = (1, 2)
"""Levels whose first block changes the width on the way down (SD 1.x: 320, 640, 1280, 1280)."""
VAE_UP_SHORTCUT_LEVELS = (0, 1)
"""The same for the autoencoder's decoder (LDM's numbering: level 0 is the outermost)."""
TEXT_LAYERS = 12

# LDM's name, diffusers' name; of the first one inside a block.
UNET_RESNET = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
UNET_ENDS = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_VAE_ENDS = (
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.norm_out", "encoder.conv_norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.norm_out", "decoder.conv_norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
)
_VAE_ATTENTION = (
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)
# The same in both layouts; those that kohya trains, and the norms that it does not.
_TRANSFORMER = (
    "proj_in",
    *(
        f"transformer_blocks.0.{attention}.{part}"
        for attention in ("attn1", "attn2")
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ),
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.ff.net.2",
    "proj_out",
)
_TRANSFORMER_NORMS = ("norm", *(f"transformer_blocks.0.norm{i}" for i in (1, 2, 3)))
_TEXT_LINEAR = (
    *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")),
    "mlp.fc1",
    "mlp.fc2",
)
_TEXT_NORMS = ("layer_norm1", "layer_norm2")
_TEXT_EMBEDDINGS = "text_model.embeddings."

_SQUEEZED = re.compile(re.escape(VAE_PREFIX) + r"(encoder|decoder)\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


@dataclass(frozen=True)
class ModuleName:
    """One module that a LoRA can change, under its three names.

    ``kohya`` is the name in LoRA files, ``diffusers`` the path of the module in the U-Net or text
    encoder, ``ldm`` the full key of its weight in a checkpoint.
    """

    kohya: str
    diffusers: str
    ldm: str


@dataclass(frozen=True)
class _Module:
    """A leaf: LDM's and diffusers' path without prefix, and its part in kohya's selection."""

    ldm: str
    diffusers: str
    part: str = ""
    """"attention" (kohya's default), "conv" (only with a conv rank) or "" (never trained)."""


def _unet_resnet(ldm: str, diffusers: str, *, shortcut: bool) -> Iterator[_Module]:
    for theirs, ours in UNET_RESNET:
        part = "" if ours.startswith("norm") else "conv"
        yield _Module(f"{ldm}.{theirs}", f"{diffusers}.{ours}", part)
    if shortcut:
        yield _Module(f"{ldm}.skip_connection", f"{diffusers}.conv_shortcut", "conv")


def _unet_transformer(ldm: str, diffusers: str) -> Iterator[_Module]:
    for name in _TRANSFORMER_NORMS:
        yield _Module(f"{ldm}.{name}", f"{diffusers}.{name}")
    for name in _TRANSFORMER:
        yield _Module(f"{ldm}.{name}", f"{diffusers}.{name}", "attention")


def _unet_down() -> Iterator[_Module]:
    number = 1  # input_blocks.0 is conv_in
    for level in range(LEVELS):
        for layer in range(LAYERS):
            ldm, block = f"input_blocks.{number}", f"down_blocks.{level}"
            shortcut = layer == 0 and level in SHORTCUT_LEVELS
            yield from _unet_resnet(f"{ldm}.0", f"{block}.resnets.{layer}", shortcut=shortcut)
            if level in ATTENTION_LEVELS:
                yield from _unet_transformer(f"{ldm}.1", f"{block}.attentions.{layer}")
            number += 1
        if level < LEVELS - 1:
            ldm, ours = f"input_blocks.{number}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            yield _Module(ldm, ours, "conv")
            number += 1


def _unet_middle() -> Iterator[_Module]:
    yield from _unet_resnet("middle_block.0", "mid_block.resnets.0", shortcut=False)
    yield from _unet_transformer("middle_block.1", "mid_block.attentions.0")
    yield from _unet_resnet("middle_block.2", "mid_block.resnets.1", shortcut=False)


def _unet_up() -> Iterator[_Module]:
    number = 0
    for step in range(LEVELS):  # diffusers counts up blocks from the innermost
        attended = LEVELS - 1 - step in ATTENTION_LEVELS
        for layer in range(LAYERS + 1):
            ldm, block = f"output_blocks.{number}", f"up_blocks.{step}"
            # Every block on the way up reads a skip, so its width always changes.
            yield from _unet_resnet(f"{ldm}.0", f"{block}.resnets.{layer}", shortcut=True)
            if attended:
                yield from _unet_transformer(f"{ldm}.1", f"{block}.attentions.{layer}")
            if layer == LAYERS and step < LEVELS - 1:
                place = 2 if attended else 1
                ours = f"{block}.upsamplers.0.conv"
                yield _Module(f"{ldm}.{place}.conv", ours, "conv")
            number += 1


def _vae_resnet(ldm: str, diffusers: str, *, shortcut: bool) -> Iterator[_Module]:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield _Module(f"{ldm}.{name}", f"{diffusers}.{name}")
    if shortcut:
        yield _Module(f"{ldm}.nin_shortcut", f"{diffusers}.conv_shortcut")


def _vae_middle(side: str) -> Iterator[_Module]:
    ldm, ours = f"{side}.mid", f"{side}.mid_block"
    for number in (0, 1):
        yield from _vae_resnet(f"{ldm}.block_{number + 1}", f"{ours}.resnets.{number}", shortcut=False)
    for theirs, name in _VAE_ATTENTION:
        yield _Module(f"{ldm}.attn_1.{theirs}", f"{ours}.attentions.0.{name}")


def _vae_levels() -> Iterator[_Module]:
    for level in range(LEVELS):
        ldm, ours = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for layer in range(LAYERS):
            shortcut = layer == 0 and level in SHORTCUT_LEVELS
            yield from _vae_resnet(f"{ldm}.block.{layer}", f"{ours}.resnets.{layer}", shortcut=shortcut)
        if level < LEVELS - 1:
            yield _Module(f"{ldm}.downsample.conv", f"{ours}.downsamplers.0.conv")
    for level in range(LEVELS):
        ldm, ours = f"decoder.up.{level}", f"decoder.up_blocks.{LEVELS - 1 - level}"
        for layer in range(LAYERS + 1):
            shortcut = layer == 0 and level in VAE_UP_SHORTCUT_LEVELS
            yield from _vae_resnet(f"{ldm}.block.{layer}", f"{ours}.resnets.{layer}", shortcut=shortcut)
        if level > 0:
            yield _Module(f"{ldm}.upsample.conv", f"{ours}.upsamplers.0.conv")


@functools.cache
def _unet_modules() -> tuple[_Module, ...]:
    ends = tuple(_Module(*pair) for pair in UNET_ENDS)
    return (*ends, *_unet_down(), *_unet_middle(), *_unet_up())


@functools.cache
def _vae_modules() -> tuple[_Module, ...]:
    ends = tuple(_Module(*pair) for pair in _VAE_ENDS)
    return (*ends, *_vae_middle("encoder"), *_vae_middle("decoder"), *_vae_levels())


@functools.cache
def _text_paths() -> Mapping[str, bool]:
    """Module path in ``CLIPTextModel`` -> does kohya train it."""
    layers = [f"text_model.encoder.layers.{number}" for number in range(TEXT_LAYERS)]
    paths = {f"{_TEXT_EMBEDDINGS}{kind}_embedding": False for kind in ("token", "position")}
    paths.update({f"{layer}.{name}": True for layer in layers for name in _TEXT_LINEAR})
    paths.update({f"{layer}.{name}": False for layer in layers for name in _TEXT_NORMS})
    paths["text_model.final_layer_norm"] = False
    return MappingProxyType(paths)


@functools.cache
def _unet_tables() -> tuple[Mapping[str, str], Mapping[str, str]]:
    pairs = [(module.ldm, module.diffusers) for module in _unet_modules()]
    return dict(pairs), {ours: theirs for theirs, ours in pairs}


@functools.cache
def _vae_tables() -> tuple[Mapping[str, str], Mapping[str, str]]:
    pairs = [(module.ldm, module.diffusers) for module in _vae_modules()]
    return dict(pairs), {ours: theirs for theirs, ours in pairs}


def _translate(what: str, key: str, prefix: str, table: Mapping[str, str]) -> str:
    module, _, parameter = key.removeprefix(prefix).rpartition(".")
    if not key.startswith(prefix) or parameter not in ("weight", "bias") or module not in table:
        raise UnknownName(what, key, (f"{prefix}{name}.weight" for name in table))
    return f"{table[module]}.{parameter}"


def ldm_from_diffusers_unet(key: str) -> str:
    """diffusers' U-Net key -> the full LDM key (``model.diffusion_model.`` ...).

    Raises:
        UnknownName: SD 1.x's U-Net has no such key.
    """
    return UNET_PREFIX + _translate("diffusers U-Net key", key, "", _unet_tables()[1])


def diffusers_unet_from_ldm(key: str) -> str:
    """Full LDM key of the U-Net -> diffusers' key; raises UnknownName."""
    return _translate("LDM U-Net key", key, UNET_PREFIX, _unet_tables()[0])


def ldm_from_diffusers_vae(key: str) -> str:
    """diffusers' autoencoder key -> the full LDM key (``first_stage_model.`` ...).

    Where ``squeezed_in_diffusers`` is true of the result, LDM's shape is diffusers' (out, in)
    with two axes of size 1 appended.

    Raises:
        UnknownName: SD 1.x's autoencoder has no such key.
    """
    return VAE_PREFIX + _translate("diffusers autoencoder key", key, "", _vae_tables()[1])


def diffusers_vae_from_ldm(key: str) -> str:
    """Full LDM key of the autoencoder -> diffusers' key; raises UnknownName."""
    return _translate("LDM autoencoder key", key, VAE_PREFIX, _vae_tables()[0])


def squeezed_in_diffusers(ldm_key: str) -> bool:
    """Is this LDM weight a 1x1 convolution (out, in, 1, 1) that diffusers keeps as (out, in)?

    True of q, k, v and proj_out of the autoencoder's two attention blocks, and of nothing else in
    SD 1.x (the U-Net's proj_in and proj_out are 1x1 convolutions in both layouts).
    """
    return _SQUEEZED.fullmatch(ldm_key) is not None


def ldm_from_transformers_text(key: str) -> str:
    """Key of transformers' ``CLIPTextModel`` -> the full LDM key; raises UnknownName."""
    module, _, parameter = key.rpartition(".")
    if TEXT_PREFIX + key in sd1_buffers():
        return TEXT_PREFIX + key
    if module not in _text_paths() or parameter not in ("weight", "bias"):
        known = (f"{name}.weight" for name in _text_paths())
        raise UnknownName("text encoder key", key, known)
    return TEXT_PREFIX + key


def transformers_text_from_ldm(key: str) -> str:
    """Full LDM key of the text encoder -> transformers' key; raises UnknownName."""
    inner = key.removeprefix(TEXT_PREFIX)
    if not key.startswith(TEXT_PREFIX):
        known = (f"{TEXT_PREFIX}{name}.weight" for name in _text_paths())
        raise UnknownName("LDM text encoder key", key, known)
    ldm_from_transformers_text(inner)
    return inner


def sd1_buffers() -> tuple[str, ...]:
    """LDM keys of SD 1.5's file that are no weights: ``position_ids``, int64, (1, 77), 0 to 76."""
    return (f"{TEXT_PREFIX}{_TEXT_EMBEDDINGS}position_ids",)


@functools.cache
def kohya_modules_unet(*, conv: bool) -> tuple[ModuleName, ...]:
    """The U-Net modules that kohya trains, in the order of the forward pass.

    Without ``conv`` the 192 linear and 1x1 layers of the transformer blocks (12 in each of 16);
    with it also the 86 layers of residual blocks and samplers that a LoRA with a conv rank has
    (``time_emb_proj`` among them is linear, ``conv_shortcut`` 1x1, the others 3x3).
    """
    parts = ("attention", "conv") if conv else ("attention",)
    return tuple(
        ModuleName(
            kohya="lora_unet_" + module.diffusers.replace(".", "_"),
            diffusers=module.diffusers,
            ldm=f"{UNET_PREFIX}{module.ldm}.weight",
        )
        for module in _unet_modules()
        if module.part in parts
    )


@functools.cache
def kohya_modules_text() -> tuple[ModuleName, ...]:
    """The 72 linear layers of the text encoder that kohya trains (6 in each of 12 layers)."""
    return tuple(
        ModuleName(
            kohya="lora_te_" + path.replace(".", "_"),
            diffusers=path,
            ldm=f"{TEXT_PREFIX}{path}.weight",
        )
        for path, trained in _text_paths().items()
        if trained
    )


@functools.cache
def kohya_modules() -> Mapping[str, ModuleName]:
    """All 350 modules that a LoRA for SD 1.x can have, by kohya's name: text encoder, U-Net."""
    modules = (*kohya_modules_text(), *kohya_modules_unet(conv=True))
    return MappingProxyType({module.kohya: module for module in modules})


def module_from_kohya(name: str) -> ModuleName:
    """All names of the module that LoRA files call ``name``; raises UnknownName."""
    module = kohya_modules().get(name)
    if module is None:
        raise UnknownName("LoRA module of SD 1.x", name, kohya_modules())
    return module


def module_from_ldm(key: str) -> ModuleName | None:
    """The module whose weight has the LDM key ``key``, or None where no LoRA can change it."""
    return _modules_by_ldm().get(key)


@functools.cache
def _modules_by_ldm() -> Mapping[str, ModuleName]:
    return {module.ldm: module for module in kohya_modules().values()}
