"""A WD14 tagger of a few hundred bytes, written by hand: it tells the mean colours of a picture.

Its input and output are those of the real ones: (n, 448, 448, 3), blue, green and red from 0 to 255, and a
probability for each row of the table of tags. A tag is certain where its colour's mean is above half of 255,
over the whole picture or over its upper half, and impossible below. ``^_^`` and the character it always sees.
"""

from __future__ import annotations

import struct
from pathlib import Path

RATINGS = ("general", "sensitive", "questionable", "explicit")
COLOURS = ("blue", "green", "red")
GENERAL = (*(f"{colour}_picture" for colour in COLOURS), *(f"{colour}_above" for colour in COLOURS), "^_^")
CHARACTERS = ("alice_(wonderland)",)
_SIDE = 448
_STEEP = 0.2
_FLOAT, _INT64 = 1, 7
_ALWAYS, _NEVER = 20.0, -20.0


def write_tiny_tagger(folder: Path) -> Path:
    """Both files of the model, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(name, 9) for name in RATINGS] + [(name, 0) for name in GENERAL] + [(n, 4) for n in CHARACTERS]
    table = "".join(f"{number},{name},{category},1\n" for number, (name, category) in enumerate(rows))
    (folder / "selected_tags.csv").write_text(f"tag_id,name,category,count\n{table}", encoding="utf-8")
    (folder / "model.onnx").write_bytes(_model())
    return folder


def _model() -> bytes:
    """A ModelProto of IR version 8, opset 13.

    probabilities = sigmoid(means @ weights + bias), where means (n, 6) are those of the three channels over
    the picture, then over its upper half.
    """
    tags = [*RATINGS, *GENERAL, *CHARACTERS]
    weights = [0.0] * (6 * len(tags))
    bias = [_ALWAYS if name in ("general", "^_^", *CHARACTERS) else _NEVER for name in tags]
    for channel in range(6):
        tag = len(RATINGS) + channel
        weights[channel * len(tags) + tag], bias[tag] = _STEEP, -127.5 * _STEEP
    nodes = [
        _node("Slice", ("picture", "zero", "half", "rows"), "upper"),
        _node("ReduceMean", ("picture",), "whole_means", axes=(1, 2), keepdims=0),
        _node("ReduceMean", ("upper",), "upper_means", axes=(1, 2), keepdims=0),
        _node("Concat", ("whole_means", "upper_means"), "means", axis=1),
        _node("MatMul", ("means", "weights"), "product"),
        _node("Add", ("product", "bias"), "logits"),
        _node("Sigmoid", ("logits",), "probabilities"),
    ]
    initialisers = [
        _tensor("zero", (1,), _INT64, struct.pack("<q", 0)),
        _tensor("half", (1,), _INT64, struct.pack("<q", _SIDE // 2)),
        _tensor("rows", (1,), _INT64, struct.pack("<q", 1)),
        _tensor("weights", (6, len(tags)), _FLOAT, struct.pack(f"<{6 * len(tags)}f", *weights)),
        _tensor("bias", (len(tags),), _FLOAT, struct.pack(f"<{len(tags)}f", *bias)),
    ]
    graph = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _bytes(2, b"tagger"),
            *(_bytes(5, one) for one in initialisers),
            _bytes(11, _value("picture", ("n", _SIDE, _SIDE, 3))),
            _bytes(12, _value("probabilities", ("n", len(tags)))),
        ]
    )
    opset = _bytes(1, b"") + _number(2, 13)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _node(kind: str, inputs: tuple[str, ...], output: str, **attributes: int | tuple[int, ...]) -> bytes:
    found = b"".join(_bytes(1, name.encode()) for name in inputs) + _bytes(2, output.encode())
    found += _bytes(4, kind.encode())
    for name, value in attributes.items():
        found += _bytes(5, _attribute(name, value))
    return found


def _attribute(name: str, value: int | tuple[int, ...]) -> bytes:
    if isinstance(value, int):
        return _bytes(1, name.encode()) + _number(3, value) + _number(20, 2)
    return _bytes(1, name.encode()) + b"".join(_number(8, one) for one in value) + _number(20, 7)


def _tensor(name: str, shape: tuple[int, ...], kind: int, raw: bytes) -> bytes:
    sides = b"".join(_number(1, side) for side in shape)
    return sides + _number(2, kind) + _bytes(8, name.encode()) + _bytes(9, raw)


def _value(name: str, shape: tuple[str | int, ...]) -> bytes:
    sides = b"".join(
        _bytes(1, _bytes(2, side.encode()) if isinstance(side, str) else _number(1, side)) for side in shape
    )
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, sides)))
