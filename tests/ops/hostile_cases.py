"""Small LoRA and checkpoint files, sound ones and damaged ones, from a seed."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

WIDTH, CROSS, RANK = 6, 8, 2
ITEM = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "U8": 1,
    "BOOL": 1,
}
UNET = "model.diffusion_model.middle_block.1.transformer_blocks.0"
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj"
LORA = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
PEFT = "unet.mid_block.attentions.0.transformer_blocks.0"


@dataclass
class Entry:
    """One tensor as its header will tell it; ``offsets`` and ``data`` may be anything."""

    dtype: object
    shape: object
    data: bytes
    offsets: object = None


@dataclass
class Spec:
    """A file before it is written: entries in order (keys may come twice), metadata, later damage."""

    entries: list[tuple[str, Entry]]
    metadata: object = None
    damage: list[Callable[[bytes, random.Random], bytes]] = field(default_factory=list)

    def encode(self, draw: random.Random) -> bytes:
        """The bytes of the file."""
        parts, body, position = [], b"", 0
        if self.metadata is not None:
            parts.append(f'"__metadata__":{json.dumps(self.metadata)}')
        for key, entry in self.entries:
            offsets = entry.offsets or [position, position + len(entry.data)]
            position += len(entry.data)
            body += entry.data
            head = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
            parts.append(f"{json.dumps(key)}:{json.dumps(head)}")
        text = ("{" + ",".join(parts) + "}").encode()
        content = struct.pack("<Q", len(text)) + text + body
        for damage in self.damage:
            content = damage(content, draw)
        return content


def tensor(draw: random.Random, shape: list[int], dtype: str = "F32") -> Entry:
    """A sound tensor with numbers of about 1."""
    count = math.prod(shape)
    if dtype == "F32":
        data = struct.pack(f"<{count}f", *(draw.uniform(-1, 1) for _ in range(count)))
    elif dtype == "F16":
        data = struct.pack(f"<{count}e", *(draw.uniform(-1, 1) for _ in range(count)))
    else:
        data = bytes(draw.randrange(0x3F) for _ in range(count * ITEM[dtype]))
    return Entry(dtype, shape, data)


def checkpoint(draw: random.Random) -> Spec:
    """What is left of an SD 1.x checkpoint with three weights that LoRAs can change."""
    dtype = draw.choice(["F32", "F16", "BF16", "F8_E4M3"])
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": [4, 4, 3, 3],
        f"{UNET}.attn1.to_q.weight": [WIDTH, WIDTH],
        f"{UNET}.attn2.to_k.weight": [WIDTH, CROSS],
        "model.diffusion_model.middle_block.0.in_layers.2.weight": [WIDTH, WIDTH, 3, 3],
        f"{TEXT}.weight": [CROSS, CROSS],
        "first_stage_model.quant_conv.weight": [4, 4, 1, 1],
    }
    return Spec([(key, tensor(draw, shape, dtype)) for key, shape in shapes.items()], {"format": "pt"})


def lora(draw: random.Random) -> Spec:
    """A LoRA of one of the kinds that users have, for ``checkpoint``."""
    dtype = draw.choice(["F32", "F16", "BF16"])
    kind = draw.choice(["kohya", "kohya", "conv", "peft", "loha", "lokr", "mid", "dora"])
    shapes: dict[str, list[int]] = {}
    for part, across in (("attn1_to_q", WIDTH), ("attn2_to_k", CROSS)):
        name = f"{LORA}_{part}"
        if kind == "peft":
            dotted = f"{PEFT}.{part.replace('_to', '.to')}"
            shapes |= {f"{dotted}.lora_A.weight": [RANK, across], f"{dotted}.lora_B.weight": [WIDTH, RANK]}
        elif kind == "loha":
            shapes |= {f"{name}.hada_w{i}_a": [WIDTH, RANK] for i in (1, 2)}
            shapes |= {f"{name}.hada_w{i}_b": [RANK, across] for i in (1, 2)}
            shapes[f"{name}.alpha"] = []
        elif kind == "lokr":
            shapes |= {f"{name}.lokr_w1": [2, 2], f"{name}.lokr_w2_a": [WIDTH // 2, RANK]}
            shapes |= {f"{name}.lokr_w2_b": [RANK, across // 2], f"{name}.alpha": []}
        else:
            shapes |= {f"{name}.lora_up.weight": [WIDTH, RANK], f"{name}.lora_down.weight": [RANK, across]}
            shapes[f"{name}.alpha"] = []
            if kind == "dora":
                shapes[f"{name}.dora_scale"] = [WIDTH, 1]
    name = "lora_unet_mid_block_resnets_0_conv1"
    if kind == "conv":
        shapes |= {
            f"{name}.lora_up.weight": [WIDTH, RANK, 1, 1],
            f"{name}.lora_down.weight": [RANK, WIDTH, 3, 3],
        }
    if kind == "mid":
        shapes |= {f"{name}.lora_up.weight": [WIDTH, RANK], f"{name}.lora_down.weight": [RANK, WIDTH]}
        shapes[f"{name}.lora_mid.weight"] = [RANK, RANK, 3, 3]
    return Spec([(key, tensor(draw, shape, dtype)) for key, shape in shapes.items()], {"ss_v2": "False"})


def damaged(spec: Spec, draw: random.Random) -> Spec:
    """``spec`` with one to three kinds of damage (now and then with none)."""
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        draw.choice(MUTATIONS)(spec, draw)
    return spec


def _any(spec: Spec, draw: random.Random) -> Entry:
    return draw.choice(spec.entries)[1] if spec.entries else Entry("F32", [], b"\0\0\0\0")


ODD_NUMBERS = (
    -1,
    0,
    1,
    3,
    1 << 31,
    1 << 40,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
    1 << 70,
    1.5,
    True,
    None,
    "7",
    [1],
    1e300,
)


def odd_offsets(spec: Spec, draw: random.Random) -> None:
    entry, size = _any(spec, draw), sum(len(one.data) for _, one in spec.entries)
    near = [0, 1, size, size - 1, size + 1, size // 2, *ODD_NUMBERS]
    entry.offsets = draw.choice([
        [draw.choice(near), draw.choice(near)],
        *([0, len(entry.data)], [size, size], [], [0], [0, 1, 2], "x", {"a": 1}),
    ])  # fmt: skip


def odd_shape(spec: Spec, draw: random.Random) -> None:
    entry = _any(spec, draw)
    shape = list(entry.shape) if isinstance(entry.shape, list) else []
    if draw.random() < 0.5 and shape:
        shape[draw.randrange(len(shape))] = draw.choice(ODD_NUMBERS)
        entry.shape = shape
    else:
        entry.shape = draw.choice(
            [[], [0], [0, 4], [1] * 40, shape[::-1], [*shape, 1], [*shape, 1, 1], "6", None, 3]
        )


def resized(spec: Spec, draw: random.Random) -> None:
    """Another shape with the data that belongs to it: a header without fault, a module that does not fit."""
    entry = _any(spec, draw)
    sizes = [0, 1, 2, 3, WIDTH, CROSS]
    shape = draw.choice([[draw.choice(sizes) for _ in range(draw.randrange(5))], [0, RANK], [RANK, 0], []])
    new = tensor(draw, shape, draw.choice(["F32", "F16", "BF16"]))
    entry.dtype, entry.shape, entry.data = new.dtype, new.shape, new.data


def odd_dtype(spec: Spec, draw: random.Random) -> None:
    _any(spec, draw).dtype = draw.choice([*ITEM, "F4", "f32", "", "NF4", None, 7, [], "U64", "C64"])


def retyped(spec: Spec, draw: random.Random) -> None:
    """Another dtype with the data that belongs to it."""
    entry = _any(spec, draw)
    if isinstance(entry.shape, list) and all(isinstance(size, int) and size < 99 for size in entry.shape):
        new = tensor(draw, entry.shape, draw.choice(list(ITEM)))
        entry.dtype, entry.data = new.dtype, new.data


def odd_values(spec: Spec, draw: random.Random) -> None:
    entry = _any(spec, draw)
    kind = draw.randrange(4)
    if kind == 0:
        entry.data = bytes(draw.randrange(256) for _ in entry.data)
    elif entry.dtype == "F32":
        value = [math.nan, math.inf, 3e38][kind - 1]
        entry.data = struct.pack("<f", value) * (len(entry.data) // 4)
    else:
        entry.data = b"\xff\x7f" * (len(entry.data) // 2) + entry.data[: len(entry.data) % 2]


def dropped(spec: Spec, draw: random.Random) -> None:
    if spec.entries:
        spec.entries.pop(draw.randrange(len(spec.entries)))


def doubled(spec: Spec, draw: random.Random) -> None:
    if spec.entries:
        spec.entries.insert(draw.randrange(len(spec.entries)), draw.choice(spec.entries))


def renamed(spec: Spec, draw: random.Random) -> None:
    if not spec.entries:
        return
    number = draw.randrange(len(spec.entries))
    key, entry = spec.entries[number]
    other = draw.choice([
        *(key + "x", key[1:], "", ".", "__metadata__", key.upper(), "\ud800", "a" * 5000, "\x00"),
        key.replace("lora_up", "lora_down"), key.replace(".alpha", ".diff"), "bundle_emb.x.string_to_param.*",
        key.replace("unet", "te"), key.replace("_0_", "_9_"), key.replace("weight", "bias"),
    ])  # fmt: skip
    spec.entries[number] = (other, entry)


def odd_metadata(spec: Spec, draw: random.Random) -> None:
    spec.metadata = draw.choice([
        {}, [], "text", 7, {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"ss_network_args": "{"},
        {"a": "x" * 100_000}, {"copier_recipe": "{"}, {"modelspec.architecture": "flux-1-dev/lora"},
        {"ss_v2": "True"}, {"": ""},
    ])  # fmt: skip


def bad_bytes(spec: Spec, draw: random.Random) -> None:
    spec.damage.append(draw.choice([_cut, _extended, _flipped, _flipped, _other_length, _other_file]))


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice([0, 1, 7, 8, 9, len(content) - 1, draw.randrange(len(content) + 1)])]


def _extended(content: bytes, draw: random.Random) -> bytes:
    return content + bytes(draw.choice([1, 8, 1000]))


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if changed:
            changed[draw.randrange(min(len(changed), 2000))] = draw.randrange(256)
    return bytes(changed)


def _other_length(content: bytes, draw: random.Random) -> bytes:
    lengths = (0, 1, 2, len(content), 100_000_000, 100_000_001, 1 << 31, 1 << 62, (1 << 64) - 1)
    return struct.pack("<Q", draw.choice(lengths)) + content[8:]


def _other_file(content: bytes, draw: random.Random) -> bytes:
    return (
        draw.choice(
            [b"PK\x03\x04", b"\x80\x02}q\x00", b"GGUF", b"<!DOCTYPE html>", b"version https://git-lfs"]
        )
        + content
    )


MUTATIONS: tuple[Callable[[Spec, random.Random], None], ...] = (
    *(odd_offsets, odd_shape, resized, resized, odd_dtype, retyped, odd_values, odd_values),
    *(dropped, dropped, doubled, renamed, renamed, odd_metadata, bad_bytes),
)
