"""What a checkpoint or LoRA file is and holds."""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from copier.algebra.delta import LowRankDelta
from copier.algebra.products import HadamardDelta, KroneckerDelta
from copier.checkpoint.blocks import block_of_module
from copier.checkpoint.family import Family, Identity, Kind, detect
from copier.checkpoint.header import Header, read_header
from copier.checkpoint.lora_keys import layout_of
from copier.errors import BadCheckpoint
from copier.ops.lora_reader import LoraReader
from copier.ops.report import kind_of

_PARTS = (
    (re.compile(r"(model\.diffusion_model|unet|transformer|diffusion_model)\."), "model"),
    (re.compile(r"(first_stage_model|vae)\."), "vae"),
    (re.compile(r"cond_stage_model\."), "text_encoder"),
    (re.compile(r"conditioner\.embedders\.(?P<number>\d+)\."), "text_encoder"),
    (re.compile(r"text_encoders\.(?P<name>[^.]+)\."), "text_encoder"),
    (re.compile(r"model_ema\."), "ema"),
)
"""Prefixes of the parts of a checkpoint that holds several."""


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe the file at ``path`` as plain data that ``json.dumps`` takes.

    Always: name, bytes, family, kind, layout, details, tensors (count), dtypes (count of each),
    metadata.

    Of a LoRA also: kinds (modules by "lora", "loha", "lokr", "full"), modules and ranks by place
    ("text", "linear", "conv"; ranks as {rank: count}), alphas as {alpha: count}, scales likewise
    (alpha / rank), norm (Frobenius, of the whole), norms (by block, as ``blocks.block_of`` names them),
    and problems: module or key -> why it cannot be used (DoRA, an incomplete module, NaN); such modules
    are in no count. One module is in memory at a time.

    Of a checkpoint also: parts ("unet" or "transformer", "vae", "text_encoder", with its number or name
    where there are several, "ema", "other") -> tensors, parameters and dtypes ({dtype: parameters}).

    Raises:
        BadInput: there is no such file.
        BadCheckpoint: it is no valid safetensors file.
    """
    header = read_header(path)
    identity = detect(header)
    layout = layout_of(header.tensors)
    found: dict[str, Any] = {
        "name": Path(path).name,
        "bytes": header.file_size,
        "family": identity.family.value,
        "kind": Kind.LORA.value if layout else identity.kind.value,
        "layout": layout or identity.layout,
        "details": dict(identity.details),
        "tensors": len(header.tensors),
        "dtypes": dict(Counter(info.dtype for info in header.tensors.values())),
        "metadata": dict(header.metadata),
    }
    if layout:
        with LoraReader(path) as reader:
            found.update(_describe(reader))
    elif identity.kind is Kind.CHECKPOINT:
        found["parts"] = _parts(header, identity)
    return found


def _describe(reader: LoraReader) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    places: Counter[str] = Counter()
    ranks: dict[str, Counter[int]] = defaultdict(Counter)
    alphas: Counter[float] = Counter()
    scales: Counter[float] = Counter()
    squares: dict[str, float] = defaultdict(float)
    problems = dict(reader.problems)
    for name in reader.outlines:
        try:
            delta = reader.delta(name)
        except BadCheckpoint as error:
            problems[name] = str(error)
            continue
        place = kind_of(name, delta)
        kinds[delta.kind] += 1
        places[place] += 1
        if delta.rank is not None:
            ranks[place][delta.rank] += 1
        if isinstance(delta, LowRankDelta | HadamardDelta | KroneckerDelta):
            alphas[delta.alpha] += 1
            scales[delta.scale] += 1
        squares[block_of_module(name, reader.family)] += delta.frobenius() ** 2
    return {
        "kinds": dict(kinds),
        "modules": dict(places),
        "ranks": {place: _texts(counts) for place, counts in ranks.items()},
        "alphas": _texts(alphas),
        "scales": _texts(scales),
        "norm": _root(sum(squares.values())),
        "norms": {block: _root(square) for block, square in sorted(squares.items())},
        "problems": problems,
    }


def _parts(header: Header, identity: Identity) -> dict[str, Any]:
    """Tensors, parameters and dtypes by part; a key without a known prefix is of the model that is alone."""
    model = "transformer" if identity.family in (Family.SD3, Family.FLUX) else "unet"
    alone = model if identity.layout != "ldm" else "other"
    tensors: Counter[str] = Counter()
    dtypes: dict[str, Counter[str]] = defaultdict(Counter)
    for key, info in header.tensors.items():
        part = _part_of(key) or alone
        part = model if part == "model" else part
        tensors[part] += 1
        dtypes[part][info.dtype] += math.prod(info.shape)
    return {
        part: {"tensors": count, "parameters": dtypes[part].total(), "dtypes": dict(dtypes[part])}
        for part, count in tensors.items()
    }


def _part_of(key: str) -> str:
    for pattern, part in _PARTS:
        if match := pattern.match(key):
            which = match.groupdict()
            if which.get("number"):
                return f"{part}_{int(which['number']) + 1}"
            return f"{part}_{which['name']}" if which.get("name") else part
    return ""


def _root(square: float) -> float | None:
    """None for what no number can say: factors that overflow float32, or are no numbers."""
    return math.sqrt(square) if math.isfinite(square) else None


def _texts(counts: Counter[Any]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(counts.items())}
