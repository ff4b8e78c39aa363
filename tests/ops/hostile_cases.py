"""Small LoRA and checkpoint files of every family, sound ones and damaged ones, from a seed."""

from __future__ import annotations

import functools
import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.ops.small_models import CROSS, WIDTH, Model, Module

RANK = 2
ITEM = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "U8": 1, "BOOL": 1,
}  # fmt: skip


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
    spaces: int = 0
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
        text = ("{" + ",".join(parts) + "}").encode() + b" " * self.spaces
        content = struct.pack("<Q", len(text)) + text + body
        for damage in self.damage:
            content = damage(content, draw)
        return content


POOL = 4096
"""Numbers of each dtype; a tensor takes some that lie side by side."""


@functools.cache
def _pool(dtype: str) -> bytes:
    """Numbers of about 1 of a floating dtype, small ones of any other."""
    draw = random.Random(dtype)
    numbers = [draw.uniform(-1, 1) for _ in range(POOL)]
    if dtype == "BF16":
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    if dtype in ("F64", "F32", "F16"):
        return struct.pack(f"<{POOL}{'dfe'[('F64', 'F32', 'F16').index(dtype)]}", *numbers)
    item = [0] * (ITEM[dtype] - 1)
    return b"".join(bytes([draw.randrange(2 if dtype == "BOOL" else 0x3F), *item]) for _ in range(POOL))


def tensor(draw: random.Random, shape: list[int], dtype: str = "F32") -> Entry:
    """A sound tensor."""
    count = math.prod(shape)
    start = ITEM[dtype] * draw.randrange(POOL - count)
    return Entry(dtype, shape, _pool(dtype)[start : start + ITEM[dtype] * count])


def checkpoint(draw: random.Random, model: Model) -> Spec:
    """The checkpoint of ``model``, in any dtype that users have."""
    dtype = draw.choice(["F32", "F16", "BF16", "F8_E4M3"])
    entries = [(key, tensor(draw, shape, dtype)) for key, shape in model.keys.items()]
    return Spec(entries, draw.choice([None, {"format": "pt"}]))


KOHYA_KINDS = ("lora", "lora", "lora", "no alpha", "loha", "lokr", "mid", "dora", "full", "diffusers")
DOTTED_KINDS = ("peft", "peft", "adapter", "diffusers")


def lora(draw: random.Random, model: Model) -> Spec:
    """A LoRA for ``model`` of one of the kinds that users have."""
    dtype = draw.choice(["F32", "F16", "BF16"])
    style, kinds = draw.choice([(model.kohya, KOHYA_KINDS), (model.dotted, DOTTED_KINDS)])
    kind = draw.choice(kinds)
    some = draw.sample(style, draw.randint(1, len(style)))
    shapes = {key: shape for module in some for key, shape in _parts(module, kind).items()}
    entries = [(key, tensor(draw, shape, dtype)) for key, shape in shapes.items()]
    return Spec(entries, draw.choice([None, {"ss_v2": "False"}]))


def _parts(module: Module, kind: str) -> dict[str, list[int]]:
    """Key -> shape of what a file of the kind holds of a module."""
    name, (out, across, *kernel) = module.name, module.shape
    ones = [1] * len(kernel)
    up, down, alpha = [out, RANK, *ones], [RANK, across, *kernel], {f"{name}.alpha": list[int]()}
    if kind == "loha":
        flat = across * math.prod(kernel)
        a = {f"{name}.hada_w{i}_a": [out, RANK] for i in (1, 2)}
        return a | {f"{name}.hada_w{i}_b": [RANK, flat] for i in (1, 2)} | alpha
    if kind == "lokr":
        w2 = {f"{name}.lokr_w2_a": [out // 2, RANK], f"{name}.lokr_w2_b": [RANK, across // 2, *kernel]}
        return {f"{name}.lokr_w1": [2, 2]} | w2 | alpha
    if kind == "full":
        return {f"{name}.diff": [out, across, *kernel]}
    if kind == "mid" and kernel:
        up, down = [out, RANK, *ones], [RANK, across, *ones]
        alpha[f"{name}.lora_mid.weight"] = [RANK, RANK, *kernel]
    ends = {
        "peft": (".lora_B.weight", ".lora_A.weight"),
        "adapter": (".lora_B.default.weight", ".lora_A.default.weight"),
        "diffusers": (".lora.up.weight", ".lora.down.weight"),
    }.get(kind, (".lora_up.weight", ".lora_down.weight"))
    both = {name + ends[0]: up, name + ends[1]: down}
    if kind == "dora":
        both[f"{name}.dora_scale"] = [out, *[1] * (1 + len(kernel))]
    return both | (alpha if kind in ("lora", "mid", "dora") else {})


def damaged(spec: Spec, draw: random.Random) -> Spec:
    """``spec`` with one to three kinds of damage (now and then with none)."""
    for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
        draw.choice(MUTATIONS)(spec, draw)
    return spec


def _any(spec: Spec, draw: random.Random) -> Entry:
    return draw.choice(spec.entries)[1] if spec.entries else Entry("F32", [], b"\0\0\0\0")


ODD_NUMBERS = (
    *(-1, 0, 1, 3, 1 << 31, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1, 1 << 70, -(1 << 70)),
    *(1.5, -0.0, True, None, "7", [1], 1e300, math.nan, math.inf),
)


def odd_offsets(spec: Spec, draw: random.Random) -> None:
    entry, size = _any(spec, draw), sum(len(one.data) for _, one in spec.entries)
    near = [0, 1, size, size - 1, size + 1, size // 2, *ODD_NUMBERS]
    entry.offsets = draw.choice([
        [draw.choice(near), draw.choice(near)], [draw.choice(near), draw.choice(near)],
        *([0, len(entry.data)], [size, size], [len(entry.data), 0], [], [0], [0, 1, 2], "x", {"a": 1}),
        [size, size + len(entry.data)], [-len(entry.data), 0], [1 << 62, (1 << 62) + len(entry.data)],
    ])  # fmt: skip


def overlapping(spec: Spec, draw: random.Random) -> None:
    """Two tensors of one size on the same bytes, so that the file is too long, or is not."""
    one, other = _any(spec, draw), _any(spec, draw)
    one.offsets = [0, len(one.data)]
    other.offsets = [0, len(other.data)]
    if draw.random() < 0.5:
        one.data = b""


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
    shape = draw.choice([
        [draw.choice(sizes) for _ in range(draw.randrange(5))],
        *([0, RANK], [RANK, 0], [], [1] * 70, [0, 1 << 62], [1 << 62, 0, 1 << 62], [WIDTH, RANK]),
    ])  # fmt: skip
    new = tensor(draw, shape, draw.choice(["F32", "F16", "BF16"]))
    entry.dtype, entry.shape, entry.data = new.dtype, new.shape, new.data


def ranks(spec: Spec, draw: random.Random) -> None:
    """Another rank in one factor, or in all factors that have it, of any module."""
    rank = draw.choice([0, 1, 3, 7, 20])
    entries = [one for _, one in spec.entries if isinstance(one.shape, list) and RANK in one.shape]
    if entries and draw.random() < 0.5:
        entries = [draw.choice(entries)]
    for entry in entries:
        assert isinstance(entry.shape, list)
        shape = [rank if size == RANK else size for size in entry.shape]
        if all(isinstance(size, int) and size >= 0 for size in shape) and math.prod(shape) < POOL:
            new = tensor(draw, shape, "F16")
            entry.dtype, entry.shape, entry.data = new.dtype, new.shape, new.data


def odd_dtype(spec: Spec, draw: random.Random) -> None:
    _any(spec, draw).dtype = draw.choice(
        [*ITEM, "F4", "f32", "", "NF4", None, 7, [], "U64", "C64", "F8_E8M0"]
    )


def retyped(spec: Spec, draw: random.Random) -> None:
    """Another dtype with the data that belongs to it, of one tensor or of all."""
    dtype = draw.choice(list(ITEM))
    for entry in [_any(spec, draw)] if draw.random() < 0.5 else [one for _, one in spec.entries]:
        shape = entry.shape
        if isinstance(shape, list) and all(isinstance(size, int) and 0 <= size < 99 for size in shape):
            new = tensor(draw, shape, dtype)
            entry.dtype, entry.data = new.dtype, new.data


VALUES = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, 0.0, 65504.0, 1e20)


def odd_values(spec: Spec, draw: random.Random) -> None:
    """One number, or all, of a tensor."""
    entry = _any(spec, draw)
    code = {"F64": "d", "F32": "f", "F16": "e", "BF16": "f"}.get(str(entry.dtype))
    if code is None or draw.random() < 0.2:
        entry.data = draw.randbytes(len(entry.data))
        return
    value = draw.choice([one for one in VALUES if code != "e" or not 65504.0 < abs(one) < math.inf])
    number = struct.pack(f"<{code}", value)[-ITEM[str(entry.dtype)] :]
    count = len(entry.data) // len(number)
    if draw.random() < 0.5 and count:
        start = len(number) * draw.randrange(count)
        entry.data = entry.data[:start] + number + entry.data[start + len(number) :]
    else:
        entry.data = number * count


def odd_alpha(spec: Spec, draw: random.Random) -> None:
    alphas = [number for number, (key, _) in enumerate(spec.entries) if key.endswith(".alpha")]
    if not alphas:
        return
    number = draw.choice(alphas)
    key, entry = spec.entries[number]
    value = draw.choice([*VALUES, -1.0, 1e-30, -3.3, 257.0])
    entry.dtype, entry.shape, entry.data = "F32", draw.choice([[], [1], [1, 1]]), struct.pack("<f", value)
    if draw.random() < 0.3:
        del spec.entries[number]
    elif draw.random() < 0.1:
        spec.entries = [(key, entry)]


def dropped(spec: Spec, draw: random.Random) -> None:
    if spec.entries:
        spec.entries.pop(draw.randrange(len(spec.entries)))


def doubled(spec: Spec, draw: random.Random) -> None:
    if spec.entries:
        spec.entries.insert(draw.randrange(len(spec.entries)), draw.choice(spec.entries))


def shuffled(spec: Spec, draw: random.Random) -> None:
    """No damage: the order of the keys is free."""
    draw.shuffle(spec.entries)


def renamed(spec: Spec, draw: random.Random) -> None:
    if not spec.entries:
        return
    number = draw.randrange(len(spec.entries))
    key, entry = spec.entries[number]
    other = draw.choice([
        *(key + "x", key[1:], "", ".", "__metadata__", key.upper(), "\ud800", "a" * 5000, "\x00"),
        key.replace("lora_up", "lora_down"), key.replace(".alpha", ".diff"), "bundle_emb.x.string_to_param.*",
        key.replace("unet", "te"), key.replace("_0_", "_9_"), key.replace("weight", "bias"),
        key.replace("0", "9" * 5000), key.replace("to_q", "to_k"), key.replace("lora_unet_", "lycoris_"),
        key.replace("lora_A", "lora_A.x"), key.replace(".lora", ".lora.lora"), key.rpartition(".")[0],
    ])  # fmt: skip
    spec.entries[number] = (other, entry)


EXTRA = (
    *("scaled_fp8", "x.quant_state.bitsandbytes__nf4", "x.scale_weight", "x.qweight", "../../etc/passwd"),
    *("lora_unet_x.oft_blocks", "lora_unet_x.on_input", "lora_unet_x.diff_b", "lora_unet_x.alpha", ".alpha"),
    *("joint_blocks.0.x", "double_blocks.0.img_attn.x", "conditioner.embedders.0.x", "model_ema.decay"),
    *("lora_te2_text_model_x.lora_up.weight", "lora_unet_x.w_norm", "x.lora_magnitude_vector", "lora_te_"),
)


def joined(spec: Spec, draw: random.Random) -> None:
    """A tensor that belongs to another kind of file."""
    new = tensor(draw, draw.choice([[], [1], [WIDTH], [WIDTH, WIDTH]]), draw.choice(["F32", "F16", "U8"]))
    spec.entries.insert(draw.randint(0, len(spec.entries)), (draw.choice(EXTRA), new))


def odd_metadata(spec: Spec, draw: random.Random) -> None:
    spec.metadata = draw.choice([
        {}, [], "text", 7, {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"ss_network_args": "{"},
        {"a": "x" * 100_000}, {"copier_recipe": "{"}, {"modelspec.architecture": "flux-1-dev/lora"},
        {"ss_v2": "True"}, {"": ""}, {"copier_operation": "x"}, {"modelspec.prediction_type": "v"},
        {"ss_base_model_version": "sdxl_base_v1-0"}, {"a": "\ud800"}, {"sshs_model_hash": "0"},
    ])  # fmt: skip


def bad_bytes(spec: Spec, draw: random.Random) -> None:
    kinds = (_cut, _cut, _extended, _flipped, _flipped, _other_length, _other_file, _nested)
    spec.damage.append(draw.choice(kinds))


def padded(spec: Spec, draw: random.Random) -> None:
    """Spaces after the header's JSON, as other writers have; one in a thousand times as many as allowed."""
    spec.spaces = draw.choice([1, 7, 5000]) if draw.random() < 0.999 else 99_990_000 + draw.randrange(15_000)


def _cut(content: bytes, draw: random.Random) -> bytes:
    ends = [0, 1, 7, 8, 9, len(content) - 1, draw.randrange(len(content) + 1)]
    return content[: draw.choice([*ends, len(content) - draw.randrange(min(300, len(content) + 1))])]


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
    starts = [b"PK\x03\x04", b"\x80\x02}q\x00", b"GGUF", b"<!DOCTYPE html>", b"version https://git-lfs"]
    return draw.choice(starts) + content


def _nested(content: bytes, draw: random.Random) -> bytes:
    """JSON that is deep, or long, or nothing that a header may be."""
    text = draw.choice([
        b"{" + b'"a":{' * 100_000, b'{"a":' + b"[" * 100_000, b'{"a":' + b"9" * 100_000 + b"}", b"{}", b"{",
        b'{"__metadata__":{}}', b'{"a":[]}', b'{"a":1e999}', b"{\xff}", b'{"a":NaN}', b'{"a":"' + b"x" * 9999,
    ])  # fmt: skip
    return struct.pack("<Q", len(text)) + text + content[: draw.choice([0, 8])]


MUTATIONS: tuple[Callable[[Spec, random.Random], None], ...] = (
    *(odd_offsets, overlapping, odd_shape, resized, resized, ranks, ranks, odd_dtype, retyped, retyped),
    *(odd_values, odd_values, odd_values, odd_alpha, odd_alpha, dropped, dropped, doubled, shuffled, renamed),
    *(renamed, joined, odd_metadata, bad_bytes, bad_bytes, padded),
)
