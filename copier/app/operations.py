"""Operations from file to file, for every front end: what ``copier.ops`` does, with the device chosen.

Everything that can be refused is refused before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from copier.app.service import check_device, check_output
from copier.codec import recipe_from_text, recipe_to_json
from copier.digest import file_digest
from copier.errors import BadInput, CopierError
from copier.ops import combine as combining
from copier.ops import extract as extracting
from copier.ops import inspect as inspecting
from copier.ops import merge as merging
from copier.ops import resize as resizing
from copier.ops.extract import ExtractReport
from copier.ops.report import Digest, OperationReport
from copier.pipeline.results import RECIPE_KEY
from copier.progress import CancelToken, Observer, ignore

Weighted = Sequence[tuple[Path, float]]


def difference(
    minuend: Path,
    subtrahend: Path,
    out: Path,
    *,
    ratios: tuple[float, float] = (1.0, -1.0),
    rank: int | None = None,
    conv_rank: int | None = None,
    exact: bool = False,
    dtype: str = "fp16",
    device: str = "auto",
    overwrite: bool = False,
) -> OperationReport:
    """``copier.ops.combine.difference`` on ``device`` (auto, cpu, cuda)."""
    check_tensors_output(out, overwrite=overwrite)
    return combining.difference(
        minuend,
        subtrahend,
        out,
        ratios=ratios,
        rank=rank,
        conv_rank=conv_rank,
        exact=exact,
        dtype=dtype,
        device=chosen_device(device),
        overwrite=overwrite,
    )


def combine(
    loras: Weighted,
    out: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    exact: bool = False,
    dtype: str = "fp16",
    device: str = "auto",
    overwrite: bool = False,
) -> OperationReport:
    """``copier.ops.combine.combine`` on ``device`` (auto, cpu, cuda)."""
    check_tensors_output(out, overwrite=overwrite)
    return combining.combine(
        loras,
        out,
        rank=rank,
        conv_rank=conv_rank,
        exact=exact,
        dtype=dtype,
        device=chosen_device(device),
        overwrite=overwrite,
    )


def resize(
    lora: Path,
    out: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    sv_ratio: float | None = None,
    sv_fro: float | None = None,
    sv_cumulative: float | None = None,
    max_rank: int | None = None,
    dtype: str = "fp16",
    device: str = "auto",
    overwrite: bool = False,
) -> OperationReport:
    """``copier.ops.resize.resize`` on ``device`` (auto, cpu, cuda)."""
    check_tensors_output(out, overwrite=overwrite)
    return resizing.resize(
        lora,
        out,
        rank=rank,
        conv_rank=conv_rank,
        sv_ratio=sv_ratio,
        sv_fro=sv_fro,
        sv_cumulative=sv_cumulative,
        max_rank=max_rank,
        dtype=dtype,
        device=chosen_device(device),
        overwrite=overwrite,
    )


def merge(
    checkpoint: Path,
    loras: Weighted,
    out: Path,
    *,
    dtype: str = "keep",
    device: str = "auto",
    overwrite: bool = False,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> OperationReport:
    """``copier.ops.merge.merge`` on ``device`` (auto, cpu, cuda)."""
    check_tensors_output(out, overwrite=overwrite)
    return merging.merge(
        checkpoint,
        loras,
        out,
        dtype=dtype,
        device=chosen_device(device),
        overwrite=overwrite,
        observer=observer,
        cancel=cancel,
    )


def extract(
    tuned: Path,
    base: Path,
    out: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    sv_ratio: float | None = None,
    sv_fro: float | None = None,
    sv_cumulative: float | None = None,
    max_rank: int | None = None,
    dtype: str = "fp16",
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    digest: Digest = file_digest,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> ExtractReport:
    """``copier.ops.extract.extract`` on ``device`` (auto, cpu, cuda)."""
    check_tensors_output(out, overwrite=overwrite)
    return extracting.extract(
        tuned,
        base,
        out,
        rank=rank,
        conv_rank=conv_rank,
        sv_ratio=sv_ratio,
        sv_fro=sv_fro,
        sv_cumulative=sv_cumulative,
        max_rank=max_rank,
        dtype=dtype,
        device=chosen_device(device),
        threads=threads,
        overwrite=overwrite,
        digest=digest,
        observer=observer,
        cancel=cancel,
    )


def inspect(path: Path) -> dict[str, Any]:
    """``copier.ops.inspect.inspect``, and ``recipe``: the one that the file carries, or None.

    ``recipe_problem`` says why a recipe in the file cannot be read, or is "".
    """
    found = inspecting.inspect(path)
    text = found["metadata"].get(RECIPE_KEY)
    recipe, problem = None, ""
    if text is not None:
        try:
            recipe = recipe_to_json(recipe_from_text(text, f"the recipe in {path.name}"))
        except CopierError as error:
            problem = str(error)
    return {**found, "recipe": recipe, "recipe_problem": problem}


def check_tensors_output(out: Path, *, overwrite: bool) -> None:
    """Raise ``BadInput`` unless a .safetensors file can be written at ``out``."""
    if out.suffix != ".safetensors":
        raise BadInput(f"the output {out} is no .safetensors file: give a name with that ending")
    check_output(out, overwrite=overwrite)


def chosen_device(device: str) -> str:
    """cuda or cpu: ``auto`` takes CUDA where there is one. Raises ``BadInput`` as ``check_device``."""
    check_device(device)
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
