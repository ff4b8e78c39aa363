"""Names of dtypes: safetensors' (``F16``), the command line's (``fp16``), torch's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from copier.errors import BadCheckpoint, UnknownName

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}

CHOICES: Mapping[str, torch.dtype] = MappingProxyType(
    {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
)
"""The dtypes that a user can choose for a written file."""


def torch_dtype(name: str) -> torch.dtype:
    """safetensors' name -> torch dtype.

    Raises:
        BadCheckpoint: the installed torch has no such dtype (unsigned 16 to 64 bits before 2.3).
    """
    dtype = getattr(torch, _TORCH_NAMES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise BadCheckpoint(f"torch {torch.__version__} cannot hold the dtype {name}: use a newer one")
    return dtype


def dtype_name(dtype: torch.dtype | str) -> str:
    """torch dtype, or a name already -> safetensors' name; raises UnknownName."""
    if isinstance(dtype, str):
        if dtype not in _TORCH_NAMES:
            raise UnknownName("safetensors dtype", dtype, _TORCH_NAMES)
        return dtype
    plain = str(dtype).removeprefix("torch.")
    for name, theirs in _TORCH_NAMES.items():
        if theirs == plain:
            return name
    raise UnknownName("safetensors dtype for torch's", plain, _TORCH_NAMES.values())


def chosen_dtype(name: str) -> torch.dtype:
    """``fp16``, ``bf16`` or ``fp32`` -> torch dtype; raises UnknownName."""
    if name not in CHOICES:
        raise UnknownName("dtype", name, CHOICES)
    return CHOICES[name]
