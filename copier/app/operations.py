"""Operations from file to file, for every front end: what ``copier.ops`` does, with the device chosen.

Everything that can be refused is refused before the first byte is written.
"""

from __future__ import annotations

import functools
import inspect as inspection
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from copier.app.service import check_device, check_output
from copier.codec import recipe_from_text, recipe_to_json
from copier.errors import BadInput, CopierError
from copier.ops import combine as combining
from copier.ops import extract as extracting
from copier.ops import inspect as inspecting
from copier.ops import merge as merging
from copier.ops import resize as resizing
from copier.ops.report import OperationReport
from copier.pipeline.results import RECIPE_KEY

Given = ParamSpec("Given")
Report = TypeVar("Report", bound=OperationReport)


def _served(operation: Callable[Given, Report]) -> Callable[Given, Report]:
    """``operation`` with its output checked first and ``device`` chosen: auto (the default), cpu, cuda."""
    signature = inspection.signature(operation)

    @functools.wraps(operation)
    def served(*arguments: Given.args, **options: Given.kwargs) -> Report:
        given = signature.bind(*arguments, **options).arguments
        check_tensors_output(Path(given["out"]), overwrite=bool(given.get("overwrite")))
        options["device"] = chosen_device(str(given.get("device", "auto")))
        return operation(*arguments, **options)

    return served


difference = _served(combining.difference)
combine = _served(combining.combine)
resize = _served(resizing.resize)
merge = _served(merging.merge)
extract = _served(extracting.extract)


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
