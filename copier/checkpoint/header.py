"""The header of a safetensors file, read and checked without torch.

A file is: the header's length N as an unsigned 64-bit little-endian integer, N bytes of JSON, the
tensors' bytes. The JSON maps each key to ``dtype``, ``shape`` and ``data_offsets`` (begin and end,
counted from the end of the header), and ``__metadata__`` to a map from text to text. The bytes of
all tensors cover the rest of the file exactly, without gap or overlap.

Source: https://github.com/huggingface/safetensors (README, "Format"). The checks here are as strict
as its reader's, so that a file that passes here loads in every host.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from copier.errors import BadCheckpoint, BadInput

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "U16": 2,
        "I16": 2,
        "F16": 2,
        "BF16": 2,
        "U32": 4,
        "I32": 4,
        "F32": 4,
        "U64": 8,
        "I64": 8,
        "F64": 8,
    }
)
"""Bytes of one element of each known dtype, by its name in the header."""

FLOATS = ("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64")
"""The dtypes of weights, among the known ones."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library; SD 1.5's header has 125,000 bytes."""

_CONVERT = (
    "open the WebUI's Checkpoint Merger tab, choose it as model A, 'No interpolation' and "
    "'safetensors', press Merge, and use the file it writes"
)


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor; ``start`` and ``end`` count from ``data_start``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """A checked header; ``tensors`` are in the order of their bytes in the file."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read and check the header of the safetensors file at ``path``; no tensor is read.

    Raises:
        BadInput: there is no such file, or it cannot be opened.
        BadCheckpoint: it is not a whole, valid safetensors file; the message says what it is
            instead, where that can be told, and what to do.
    """
    with open_checkpoint(path) as file:
        return parse_header(file, Path(path))


def open_checkpoint(path: str | os.PathLike[str]) -> BinaryIO:
    """Open ``path`` for reading, unbuffered; raises BadInput where that fails."""
    place = Path(path)
    if not place.exists():
        raise BadInput(f"there is no file {str(place)!r}: check the path")
    if not place.is_file():
        raise BadInput(f"{str(place)!r} is not a file: give the path of a .safetensors file")
    try:
        return open(place, "rb", buffering=0)
    except OSError as error:
        raise BadInput(f"{str(place)!r} cannot be opened ({error.strerror})") from error


def parse_header(file: BinaryIO, path: Path) -> Header:
    """The header of the open file; ``path`` only names it in messages. Raises BadCheckpoint."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    first = file.read(64)
    if first[8:9] != b"{":
        # Only then: the length of a sound header may begin with the bytes of another format.
        _refuse_other_formats(first, path)
    if len(first) < 10:
        raise BadCheckpoint(f"{_name(path)} has {size} bytes: no safetensors file is that short")
    (length,) = struct.unpack("<Q", first[:8])
    if first[8:9] != b"{":
        raise BadCheckpoint(
            f"{_name(path)} is not a safetensors file (its bytes are no header): "
            "give a .safetensors checkpoint or LoRA"
        )
    if length > MAX_HEADER_BYTES:
        raise BadCheckpoint(
            f"{_name(path)} declares a header of {length} bytes; at most {MAX_HEADER_BYTES} are "
            "allowed: it is damaged or no safetensors file"
        )
    if 8 + length > size:
        raise BadCheckpoint(
            f"{_name(path)} is truncated: its header needs {8 + length} bytes, the file has "
            f"{size}; download or copy it again"
        )
    file.seek(8)
    text = _read_exactly(file, length)
    if len(text) < length:
        raise BadCheckpoint(f"{_name(path)} ended while its header was read; try again")
    tensors, metadata = _parse_text(text, path)
    _check_layout(tensors, size - 8 - length, path)
    return Header(
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(metadata),
        data_start=8 + length,
        file_size=size,
    )


def _name(path: Path) -> str:
    return repr(path.name)


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = file.read(count - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def _refuse_other_formats(first: bytes, path: Path) -> None:
    """Say what a file is that people mistake for safetensors."""
    if first[:4] == b"PK\x03\x04" or (first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05"):
        raise BadCheckpoint(
            f"{_name(path)} is a pickle (.ckpt, .pt): such files can run code, so they are never "
            f"opened here; {_CONVERT}"
        )
    if first[:4] == b"GGUF":
        raise BadCheckpoint(
            f"{_name(path)} is a GGUF file: its weights are quantised in blocks and cannot be "
            "changed; use the fp16 or bf16 .safetensors of the model"
        )
    if first.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise BadCheckpoint(
            f"{_name(path)} is a web page: the download was answered with one (a login page, "
            "perhaps); download the file again"
        )
    if first.startswith(b"version https://git-lfs"):
        raise BadCheckpoint(f"{_name(path)} is a Git LFS pointer, not the file itself: run 'git lfs pull'")


class _Duplicate(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
    return table


def _parse_text(text: bytes, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _Duplicate as error:
        raise BadCheckpoint(f"{_name(path)} has the key {str(error)!r} twice in its header") from None
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"{_name(path)}: its header is not valid JSON ({error}); it is damaged or no safetensors file"
        ) from None
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadCheckpoint(f"{_name(path)}: __metadata__ must map text to text")
    _check_unicode([*table, *metadata, *metadata.values()], path)
    infos = {key: _tensor_info(key, entry, path) for key, entry in table.items()}
    ordered = sorted(infos.items(), key=lambda item: (item[1].start, item[1].end))
    return dict(ordered), metadata


def _check_unicode(texts: list[str], path: Path) -> None:
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadCheckpoint(f"{_name(path)}: its header has text that is no Unicode") from error


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor_info(key: str, entry: object, path: Path) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadCheckpoint(
            f"{_name(path)}: the entry of {key!r} must have dtype, shape and data_offsets only"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BadCheckpoint(
            f"{_name(path)}: {key!r} has the dtype {dtype!r}; known are {', '.join(ITEM_BYTES)}"
        )
    if not isinstance(shape, list) or not all(map(_natural, shape)):
        raise BadCheckpoint(f"{_name(path)}: {key!r} has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise BadCheckpoint(f"{_name(path)}: {key!r} has the data_offsets {offsets!r}")
    start, end = offsets
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if end - start != nbytes:
        raise BadCheckpoint(
            f"{_name(path)}: {key!r} spans {end - start} bytes, its shape {shape} in {dtype} needs {nbytes}"
        )
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _check_layout(tensors: Mapping[str, TensorInfo], available: int, path: Path) -> None:
    position = 0
    for key, info in tensors.items():
        if info.start != position:
            kind = "overlaps the tensor before it" if info.start < position else "follows a gap"
            raise BadCheckpoint(
                f"{_name(path)}: {key!r} {kind} (it starts at {info.start}, not at {position})"
            )
        position = info.end
    if position > available:
        raise BadCheckpoint(
            f"{_name(path)} is truncated: its tensors need {position} bytes after the header, the "
            f"file has {available}; download or copy it again"
        )
    if position < available:
        raise BadCheckpoint(
            f"{_name(path)} has {available - position} bytes after its last tensor that belong to "
            "nothing: it is damaged; download or copy it again"
        )
