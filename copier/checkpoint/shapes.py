"""Shapes of the tensors of Stable Diffusion 1.x, 2.x and SDXL, which follow from a few widths.

With them a file is checked by its header alone, before anything is loaded. The names are those of the
LDM layout (``copier.checkpoint.names``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from copier.checkpoint import names
from copier.checkpoint.family import Family
from copier.checkpoint.header import Header
from copier.checkpoint.structure import STRUCTURES, TIME_ID_WIDTH, TIME_IDS, Structure, TextStructure

LATENT_CHANNELS = 4
VOCABULARY = 49408
POSITIONS = 77
_MOMENTS = 2 * LATENT_CHANNELS
_LISTED = 3
_NO_BIAS = (".to_q", ".to_k", ".to_v", "_embedding")
_FIRST_CONVOLUTION = f"{names.UNET_PREFIX}input_blocks.0.0.weight"
_UNREAD = ("position_ids", "logit_scale", "text_projection", "text_projection.weight", "attn_mask")
"""Ends of keys that files have beneath a text encoder's prefix, and that nothing needs."""

Shape = tuple[int, ...]
_Sized = Iterator[tuple[str, Shape]]
"""Modules and the shapes of their weights."""


@dataclass(frozen=True)
class TextSizes:
    """Of one text encoder: channels, those of the layer between, and the number of layers in the file."""

    width: int
    feed_forward: int
    layers: int


@dataclass(frozen=True)
class Sizes:
    """What tells one checkpoint of a family from another: channels by level, and the text encoders."""

    family: Family
    unet: tuple[int, ...]
    autoencoder: tuple[int, ...]
    text: tuple[TextSizes, ...]

    @property
    def structure(self) -> Structure:
        """What its family has in common."""
        return STRUCTURES[self.family]

    @property
    def context(self) -> int:
        """Features that cross attention reads of each token."""
        return sum(text.width for text in self.text)

    @property
    def label(self) -> int:
        """Features that the U-Net reads besides: the pooled text and the numbers of the size; or 0."""
        return self.text[-1].width + TIME_IDS * TIME_ID_WIDTH if self.structure.sized else 0


_KL_F8 = (128, 256, 512, 512)
REAL: Mapping[Family, Sizes] = MappingProxyType(
    {
        Family.SD1: Sizes(Family.SD1, (320, 640, 1280, 1280), _KL_F8, (TextSizes(768, 3072, 12),)),
        Family.SD2: Sizes(Family.SD2, (320, 640, 1280, 1280), _KL_F8, (TextSizes(1024, 4096, 24),)),
        Family.SDXL: Sizes(
            Family.SDXL, (320, 640, 1280), _KL_F8, (TextSizes(768, 3072, 12), TextSizes(1280, 5120, 32))
        ),
    }
)
"""The sizes of the checkpoints that were published."""


def checkpoint_shapes(sizes: Sizes) -> dict[str, Shape]:
    """The shape of every weight and bias by its key in the LDM layout."""
    shapes = {
        **_keys(names.UNET_PREFIX, _unet(sizes)),
        **_keys(names.VAE_PREFIX, _autoencoder(sizes.autoencoder)),
    }
    for text, size in zip(sizes.structure.text, sizes.text, strict=True):
        shapes |= _open_clip(text, size) if text.open_clip else _keys(text.prefix, _clip(size))
    return shapes


def autoencoder_shapes(widths: tuple[int, ...]) -> dict[str, Shape]:
    """Those of the autoencoder alone; ``widths`` from the outermost level on."""
    return _keys(names.VAE_PREFIX, _autoencoder(widths))


def autoencoder_widths(found: Mapping[str, Shape]) -> tuple[int, ...]:
    """The autoencoder's channels by level; raises KeyError or IndexError where a key or axis is missing."""
    prefix = f"{names.VAE_PREFIX}encoder.down."
    return tuple(found[f"{prefix}{level}.block.0.conv2.weight"][0] for level in range(names.LEVELS))


def sizes_of(found: Mapping[str, Shape], family: Family) -> Sizes:
    """The sizes that ``found``, the shapes by key, tell of a checkpoint of that family.

    Raises:
        KeyError, IndexError: it lacks a key that would tell, or an axis of it.
    """
    structure = STRUCTURES[family]
    step, blocks = names.LAYERS + 1, f"{names.UNET_PREFIX}input_blocks."
    return Sizes(
        family,
        unet=tuple(
            found[f"{blocks}{1 + step * level}.0.out_layers.3.weight"][0] for level in range(structure.levels)
        ),
        autoencoder=autoencoder_widths(found),
        text=tuple(_text_sizes(found, text) for text in structure.text),
    )


def checkpoint_problem(header: Header, family: Family) -> str:
    """Why the file is no whole checkpoint of ``family``: a clause that follows its name; "" if it is one."""
    found = {key: info.shape for key, info in header.tensors.items()}
    structure = STRUCTURES[family]
    first = found.get(_FIRST_CONVOLUTION, ())
    if len(first) == 4 and first[1] != LATENT_CHANNELS:
        return f"takes {first[1]} latent channels (an inpainting checkpoint has 9), not {LATENT_CHANNELS}"
    try:
        wanted = checkpoint_shapes(sizes_of(found, family))
    except KeyError as error:
        return f"is incomplete: it lacks {error.args[0]!r}"
    except IndexError:
        return f"has a number where {structure.title} has a matrix"
    prefixes = (names.UNET_PREFIX, names.VAE_PREFIX, *(text.prefix for text in structure.text))
    theirs = {key: shape for key, shape in found.items() if key.startswith(prefixes)}
    return shape_problem(theirs, wanted, structure.title)


def shape_problem(found: Mapping[str, Shape], wanted: Mapping[str, Shape], title: str) -> str:
    """What is missing in ``found``, too much or of another shape: a clause, or ""."""
    if missing := [key for key in wanted if key not in found]:
        return f"is incomplete: it lacks {_listing(missing)}"
    if more := [key for key in found if key not in wanted and not key.endswith(_UNREAD)]:
        return f"also has {_listing(more)}, which {title} has not"
    for key, shape in wanted.items():
        squeezed = names.squeezed_in_diffusers(key) and found[key] == shape[:2]
        if found[key] != shape and not squeezed:
            return f"has {key!r} in the shape {list(found[key])}, not {list(shape)}"
    return ""


def _listing(keys: list[str]) -> str:
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(map(repr, keys[:_LISTED])) + rest


def _keys(prefix: str, modules: _Sized) -> dict[str, Shape]:
    shapes = {}
    for module, shape in modules:
        shapes[f"{prefix}{module}.weight"] = shape
        if not module.endswith(_NO_BIAS):
            shapes[f"{prefix}{module}.bias"] = shape[:1]
    return shapes


def _text_sizes(found: Mapping[str, Shape], text: TextStructure) -> TextSizes:
    if not text.open_clip:
        model = f"{text.prefix}text_model."
        width = found[f"{model}final_layer_norm.weight"][0]
        return TextSizes(width, found[f"{model}encoder.layers.0.mlp.fc1.weight"][0], text.layers)
    layers = f"{text.prefix}transformer.resblocks."
    return TextSizes(
        width=found[f"{text.prefix}ln_final.weight"][0],
        feed_forward=found[f"{layers}0.mlp.c_fc.weight"][0],
        layers=next(
            (
                count
                for count in range(text.layers, text.layers - text.spare, -1)
                if f"{layers}{count - 1}.ln_1.weight" in found
            ),
            text.layers - text.spare,
        ),
    )


def _unet(sizes: Sizes) -> _Sized:
    widths, structure = sizes.unet, sizes.structure
    first, last, time = widths[0], widths[-1], 4 * widths[0]
    yield "time_embed.0", (time, first)
    yield "time_embed.2", (time, time)
    if structure.sized:
        yield "label_emb.0.0", (time, sizes.label)
        yield "label_emb.0.2", (time, time)
    yield "input_blocks.0.0", (first, LATENT_CHANNELS, 3, 3)
    number, before, skips = 1, first, [first]
    for level, width in enumerate(widths):
        for _ in range(names.LAYERS):
            yield from _unet_resnet(f"input_blocks.{number}.0", before, width, time)
            yield from _transformer(f"input_blocks.{number}.1", width, structure.depths[level], sizes)
            number, before = number + 1, width
            skips.append(width)
        if level < structure.levels - 1:
            yield f"input_blocks.{number}.0.op", (width, width, 3, 3)
            number += 1
            skips.append(width)
    yield from _unet_resnet("middle_block.0", last, last, time)
    yield from _transformer("middle_block.1", last, structure.middle_depth, sizes)
    yield from _unet_resnet("middle_block.2", last, last, time)
    number = 0
    for level, width in reversed(list(enumerate(widths))):
        depth = structure.depths[level]
        for layer in range(names.LAYERS + 1):
            yield from _unet_resnet(f"output_blocks.{number}.0", before + skips.pop(), width, time)
            before = width
            yield from _transformer(f"output_blocks.{number}.1", width, depth, sizes)
            if layer == names.LAYERS and level > 0:
                yield f"output_blocks.{number}.{2 if depth else 1}.conv", (width, width, 3, 3)
            number += 1
    yield "out.0", (first,)
    yield "out.2", (LATENT_CHANNELS, first, 3, 3)


def _unet_resnet(name: str, before: int, width: int, time: int) -> _Sized:
    yield f"{name}.in_layers.0", (before,)
    yield f"{name}.in_layers.2", (width, before, 3, 3)
    yield f"{name}.emb_layers.1", (width, time)
    yield f"{name}.out_layers.0", (width,)
    yield f"{name}.out_layers.3", (width, width, 3, 3)
    if before != width:
        yield f"{name}.skip_connection", (width, before, 1, 1)


def _transformer(name: str, width: int, depth: int, sizes: Sizes) -> _Sized:
    if not depth:
        return
    ends = (width, width) if sizes.structure.linear else (width, width, 1, 1)
    yield f"{name}.norm", (width,)
    yield f"{name}.proj_in", ends
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, read in (("attn1", width), ("attn2", sizes.context)):
            yield f"{block}.{attention}.to_q", (width, width)
            yield f"{block}.{attention}.to_k", (width, read)
            yield f"{block}.{attention}.to_v", (width, read)
            yield f"{block}.{attention}.to_out.0", (width, width)
        # The feed-forward part is gated: four times the width, and the gates.
        yield f"{block}.ff.net.0.proj", (8 * width, width)
        yield f"{block}.ff.net.2", (width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield f"{block}.{norm}", (width,)
    yield f"{name}.proj_out", ends


def _autoencoder(widths: tuple[int, ...]) -> _Sized:
    first, last = widths[0], widths[-1]
    yield "encoder.conv_in", (first, 3, 3, 3)
    before = first
    for level, width in enumerate(widths):
        for layer in range(names.LAYERS):
            yield from _vae_resnet(f"encoder.down.{level}.block.{layer}", before, width)
            before = width
        if level < names.LEVELS - 1:
            yield f"encoder.down.{level}.downsample.conv", (width, width, 3, 3)
    yield from _vae_middle("encoder.mid", last)
    yield "encoder.norm_out", (last,)
    yield "encoder.conv_out", (_MOMENTS, last, 3, 3)
    yield "quant_conv", (_MOMENTS, _MOMENTS, 1, 1)
    yield "post_quant_conv", (LATENT_CHANNELS, LATENT_CHANNELS, 1, 1)
    yield "decoder.conv_in", (last, LATENT_CHANNELS, 3, 3)
    yield from _vae_middle("decoder.mid", last)
    for level, width in reversed(list(enumerate(widths))):
        for layer in range(names.LAYERS + 1):
            yield from _vae_resnet(f"decoder.up.{level}.block.{layer}", before, width)
            before = width
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv", (width, width, 3, 3)
    yield "decoder.norm_out", (first,)
    yield "decoder.conv_out", (3, first, 3, 3)


def _vae_resnet(name: str, before: int, width: int) -> _Sized:
    yield f"{name}.norm1", (before,)
    yield f"{name}.conv1", (width, before, 3, 3)
    yield f"{name}.norm2", (width,)
    yield f"{name}.conv2", (width, width, 3, 3)
    if before != width:
        yield f"{name}.nin_shortcut", (width, before, 1, 1)


def _vae_middle(name: str, width: int) -> _Sized:
    yield from _vae_resnet(f"{name}.block_1", width, width)
    yield f"{name}.attn_1.norm", (width,)
    for part in ("q", "k", "v", "proj_out"):
        yield f"{name}.attn_1.{part}", (width, width, 1, 1)
    yield from _vae_resnet(f"{name}.block_2", width, width)


def _clip(size: TextSizes) -> _Sized:
    """OpenAI's CLIP, as transformers names it."""
    width, feed_forward = size.width, size.feed_forward
    yield "text_model.embeddings.token_embedding", (VOCABULARY, width)
    yield "text_model.embeddings.position_embedding", (POSITIONS, width)
    for number in range(size.layers):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.self_attn.{part}", (width, width)
        yield f"{layer}.mlp.fc1", (feed_forward, width)
        yield f"{layer}.mlp.fc2", (width, feed_forward)
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{norm}", (width,)
    yield "text_model.final_layer_norm", (width,)


def _open_clip(text: TextStructure, size: TextSizes) -> dict[str, Shape]:
    """OpenCLIP's keys: q, k and v in one weight, and parameters that belong to no module."""
    width, feed_forward = size.width, size.feed_forward
    shapes: dict[str, Shape] = {f"{text.prefix}positional_embedding": (POSITIONS, width)}
    if text.pooled:
        shapes[f"{text.prefix}text_projection"] = (width, width)
    modules: list[tuple[str, Shape]] = [("token_embedding", (VOCABULARY, width)), ("ln_final", (width,))]
    for number in range(size.layers):
        layer = f"transformer.resblocks.{number}"
        shapes[f"{text.prefix}{layer}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{text.prefix}{layer}.attn.in_proj_bias"] = (3 * width,)
        modules += [
            (f"{layer}.attn.out_proj", (width, width)),
            (f"{layer}.mlp.c_fc", (feed_forward, width)),
            (f"{layer}.mlp.c_proj", (width, feed_forward)),
            (f"{layer}.ln_1", (width,)),
            (f"{layer}.ln_2", (width,)),
        ]
    return shapes | _keys(text.prefix, iter(modules))
