"""Operations from file to file, for every front end: what ``copier.ops`` does, with the device chosen.

Everything that can be refused is refused before the first byte is written.
"""

from __future__ import annotations

import functools
import inspect as inspection
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from copier.app.checks import check_tensors_output, chosen_device
from copier.codec import RECIPE_KEY, recipe_from_text, recipe_to_json
from copier.digest import file_digest
from copier.errors import CopierError
from copier.ops import combine as combining
from copier.ops import extract as extracting
from copier.ops import inspect as inspecting
from copier.ops import merge as merging
from copier.ops import resize as resizing
from copier.ops.report import OperationReport

log = logging.getLogger(__name__)

Given = ParamSpec("Given")
Report = TypeVar("Report", bound=OperationReport)


def _served(operation: Callable[Given, Report]) -> Callable[Given, Report]:
    """``operation`` with its output checked first and ``device`` chosen: auto (the default), cpu, cuda.

    With auto it is done on the processor where the card's memory does not suffice: a WebUI may hold it.
    """
    signature = inspection.signature(operation)

    @functools.wraps(operation)
    def served(*arguments: Given.args, **options: Given.kwargs) -> Report:
        given = signature.bind(*arguments, **options).arguments
        check_tensors_output(Path(given["out"]), overwrite=bool(given.get("overwrite")))
        wanted = str(given.get("device", "auto"))
        options["device"] = chosen_device(wanted)
        try:
            return operation(*arguments, **options)
        except torch.cuda.OutOfMemoryError:
            if wanted != "auto":
                raise
            log.warning("the card's memory did not suffice; computing on the processor")
        torch.cuda.empty_cache()
        options["device"] = "cpu"
        return operation(*arguments, **options)

    return served


difference = _served(combining.difference)
combine = _served(combining.combine)
resize = _served(resizing.resize)
merge = _served(merging.merge)
extract = _served(extracting.extract)


def inspect(path: Path, digest: Callable[[Path], str] = file_digest) -> dict[str, Any]:
    """``copier.ops.inspect.inspect`` with ``sha256``, and ``recipe``: the one that the file carries, or None.

    ``recipe_problem`` says why a recipe in the file cannot be read, or is "". ``digest`` may remember.
    """
    found = {**inspecting.inspect(path), "sha256": digest(path)}
    text = found["metadata"].get(RECIPE_KEY)
    recipe, problem = None, ""
    if text is not None:
        try:
            recipe = recipe_to_json(recipe_from_text(text, f"the recipe in {path.name}"))
        except CopierError as error:
            problem = str(error)
    return {**found, "recipe": recipe, "recipe_problem": problem}
