"""Shapes of Stable Diffusion 1.x's tensors, which follow from a few widths.

With them a file is checked by its header alone, before anything is loaded. The names are those of the
LDM layout (``copier.checkpoint.names``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from copier.checkpoint import names
from copier.checkpoint.header import Header

LATENT_CHANNELS = 4
VOCABULARY = 49408
POSITIONS = 77
_MOMENTS = 2 * LATENT_CHANNELS
_LISTED = 3
_NO_BIAS = (".to_q", ".to_k", ".to_v", "_embedding")

Shape = tuple[int, ...]
_Sized = Iterator[tuple[str, Shape]]
"""Modules and the shapes of their weights."""


@dataclass(frozen=True)
class Widths:
    """What tells one SD 1.x from another: 320, 640, 1280, 1280 channels and so on in the real one."""

    unet: tuple[int, ...]
    autoencoder: tuple[int, ...]
    text: int
    feed_forward: int


REAL = Widths(unet=(320, 640, 1280, 1280), autoencoder=(128, 256, 512, 512), text=768, feed_forward=3072)


def sd1_shapes(widths: Widths) -> dict[str, Shape]:
    """The shape of every weight and bias by its key in the LDM layout."""
    shapes = {}
    for prefix, modules in (
        (names.UNET_PREFIX, _unet(widths.unet, widths.text)),
        (names.VAE_PREFIX, _autoencoder(widths.autoencoder)),
        (names.TEXT_PREFIX, _text(widths.text, widths.feed_forward)),
    ):
        for module, shape in modules:
            shapes[f"{prefix}{module}.weight"] = shape
            if not module.endswith(_NO_BIAS):
                shapes[f"{prefix}{module}.bias"] = shape[:1]
    return shapes


def sd1_problem(header: Header) -> str:
    """Why the file is no whole SD 1.x checkpoint: a clause that follows its name; "" if it is one."""
    found = {key: info.shape for key, info in header.tensors.items()}
    first = found.get(f"{names.UNET_PREFIX}input_blocks.0.0.weight", ())
    if len(first) == 4 and first[1] != LATENT_CHANNELS:
        return f"takes {first[1]} latent channels (an inpainting checkpoint has 9), not {LATENT_CHANNELS}"
    try:
        wanted = sd1_shapes(_widths(found))
    except KeyError as error:
        return f"is incomplete: it lacks {error.args[0]!r}"
    except IndexError:
        return "has a number where Stable Diffusion 1.x has a matrix"
    if missing := [key for key in wanted if key not in found]:
        return f"is incomplete: it lacks {_listing(missing)}"
    prefixes = (names.UNET_PREFIX, names.VAE_PREFIX, names.TEXT_PREFIX)
    known = {*wanted, *names.sd1_buffers()}
    if more := [key for key in found if key.startswith(prefixes) and key not in known]:
        return f"also has {_listing(more)}, which Stable Diffusion 1.x has not"
    for key, shape in wanted.items():
        squeezed = names.squeezed_in_diffusers(key) and found[key] == shape[:2]
        if found[key] != shape and not squeezed:
            return f"has {key!r} in the shape {list(found[key])}, not {list(shape)}"
    return ""


def _listing(keys: list[str]) -> str:
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(map(repr, keys[:_LISTED])) + rest


def _widths(found: Mapping[str, Shape]) -> Widths:
    text = f"{names.TEXT_PREFIX}text_model."
    levels, step = range(names.LEVELS), names.LAYERS + 1
    unet, autoencoder = f"{names.UNET_PREFIX}input_blocks.", f"{names.VAE_PREFIX}encoder.down."
    return Widths(
        unet=tuple(found[f"{unet}{1 + step * level}.0.out_layers.3.weight"][0] for level in levels),
        autoencoder=tuple(found[f"{autoencoder}{level}.block.0.conv2.weight"][0] for level in levels),
        text=found[f"{text}final_layer_norm.weight"][0],
        feed_forward=found[f"{text}encoder.layers.0.mlp.fc1.weight"][0],
    )


def _unet(widths: tuple[int, ...], context: int) -> _Sized:
    first, last, time = widths[0], widths[-1], 4 * widths[0]
    yield "time_embed.0", (time, first)
    yield "time_embed.2", (time, time)
    yield "input_blocks.0.0", (first, LATENT_CHANNELS, 3, 3)
    number, before, skips = 1, first, [first]
    for level, width in enumerate(widths):
        for _ in range(names.LAYERS):
            yield from _unet_resnet(f"input_blocks.{number}.0", before, width, time)
            if level in names.ATTENTION_LEVELS:
                yield from _transformer(f"input_blocks.{number}.1", width, context)
            number, before = number + 1, width
            skips.append(width)
        if level < names.LEVELS - 1:
            yield f"input_blocks.{number}.0.op", (width, width, 3, 3)
            number += 1
            skips.append(width)
    yield from _unet_resnet("middle_block.0", last, last, time)
    yield from _transformer("middle_block.1", last, context)
    yield from _unet_resnet("middle_block.2", last, last, time)
    number = 0
    for level, width in reversed(list(enumerate(widths))):
        attended = level in names.ATTENTION_LEVELS
        for layer in range(names.LAYERS + 1):
            yield from _unet_resnet(f"output_blocks.{number}.0", before + skips.pop(), width, time)
            before = width
            if attended:
                yield from _transformer(f"output_blocks.{number}.1", width, context)
            if layer == names.LAYERS and level > 0:
                yield f"output_blocks.{number}.{2 if attended else 1}.conv", (width, width, 3, 3)
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


def _transformer(name: str, width: int, context: int) -> _Sized:
    block = f"{name}.transformer_blocks.0"
    yield f"{name}.norm", (width,)
    yield f"{name}.proj_in", (width, width, 1, 1)
    for attention, read in (("attn1", width), ("attn2", context)):
        yield f"{block}.{attention}.to_q", (width, width)
        yield f"{block}.{attention}.to_k", (width, read)
        yield f"{block}.{attention}.to_v", (width, read)
        yield f"{block}.{attention}.to_out.0", (width, width)
    # The feed-forward part is gated: four times the width, and the gates.
    yield f"{block}.ff.net.0.proj", (8 * width, width)
    yield f"{block}.ff.net.2", (width, 4 * width)
    for number in (1, 2, 3):
        yield f"{block}.norm{number}", (width,)
    yield f"{name}.proj_out", (width, width, 1, 1)


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


def _text(width: int, feed_forward: int) -> _Sized:
    yield "text_model.embeddings.token_embedding", (VOCABULARY, width)
    yield "text_model.embeddings.position_embedding", (POSITIONS, width)
    for number in range(names.TEXT_LAYERS):
        layer = f"text_model.encoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.self_attn.{part}", (width, width)
        yield f"{layer}.mlp.fc1", (feed_forward, width)
        yield f"{layer}.mlp.fc2", (width, feed_forward)
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{norm}", (width,)
    yield "text_model.final_layer_norm", (width,)
