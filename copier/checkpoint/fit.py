"""Whether a LoRA fits a checkpoint, and which tensor each of its modules changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from copier.checkpoint.family import Family, Identity, Kind, detect
from copier.checkpoint.header import Header
from copier.checkpoint.targets import Target, module_targets
from copier.errors import BadInput

Shape = tuple[int, ...]

_NO_SUCH_WEIGHT = "the checkpoint has no such weight"


def require_modules_fit(
    shapes: Mapping[str, Shape], lora_family: Family, checkpoint: Header
) -> Mapping[str, Target]:
    """Check the modules of a LoRA of any kind against a checkpoint; module's name -> what it changes.

    ``shapes`` are those of the changes, (out, in) or (out, in, height, width), by the names in the
    LoRA file. Axes of size 1 at the end count for nothing, and a change of (out, in * height * width)
    fits a kernel: LoHa and LoKr keep kernels so. A LoRA whose family is UNKNOWN is taken if every
    module fits.

    Raises:
        BadInput: as ``require_same_family``; or modules match nothing or differ in shape: all of them
            are named, each with its shape and the reason.
    """
    require_same_family(lora_family, checkpoint)
    known = module_targets(checkpoint)
    targets: dict[str, Target] = {}
    problems: list[str] = []
    for name, shape in shapes.items():
        target = known.get(name)
        if target is None:
            problems.append(f"{name} {list(shape)}: {_NO_SUCH_WEIGHT}")
        elif problem := _misfit(shape, target, checkpoint):
            problems.append(f"{name}: {problem}")
        else:
            targets[name] = target
    if problems:
        raise BadInput(misfit_message(problems))
    return MappingProxyType(targets)


def require_single_file(checkpoint: Header, what: str) -> Identity:
    """What the checkpoint is; raises BadInput, which calls it ``what``, unless its weights can be used.

    It is no checkpoint, or one in diffusers' layout, or quantised.
    """
    ours = detect(checkpoint)
    if ours.kind is not Kind.CHECKPOINT:
        raise BadInput(f"{what} is none (it is: {ours.kind.value})")
    if ours.layout == "diffusers":
        raise BadInput(
            f"{what} has diffusers' layout, where a folder of files makes a model: use the model's single "
            ".safetensors file"
        )
    if quantised := ours.details.get("quantised"):
        raise BadInput(f"{what} is quantised with {quantised}")
    return ours


def require_same_family(lora_family: Family, checkpoint: Header) -> None:
    """Raise BadInput unless a LoRA of that family can be merged into the checkpoint.

    It is no checkpoint, or one in diffusers' layout, or quantised, or of another family.
    """
    ours = require_single_file(checkpoint, "the file given as checkpoint")
    if lora_family is not ours.family and Family.UNKNOWN not in (lora_family, ours.family):
        raise BadInput(
            f"the LoRA is for {lora_family.name}, the checkpoint is {ours.family.name}: "
            "use a LoRA and a checkpoint of one family"
        )


def shape_problem(up: Shape, down: Shape, weight: Shape) -> str:
    """Why ``up @ down`` cannot be added to a weight of shape ``weight``; "" if it can.

    up (out, rank[, 1, 1]); down (rank, in[, height, width]); weight (out, in[, height, width]).
    Axes of size 1 at the end count for nothing: a 1x1 convolution may be stored as linear.
    """
    if not _multiply(up, down):
        return f"its factors {list(up)} and {list(down)} do not multiply"
    return _difference((up[0], *down[1:]), weight)


def misfit_message(problems: Iterable[str]) -> str:
    """One message that counts what does not fit and names all of it, one module a line."""
    lines = list(problems)
    plural = "module of the LoRA does" if len(lines) == 1 else "modules of the LoRA do"
    return "\n  ".join(
        [
            f"{len(lines)} {plural} not fit the checkpoint; use a checkpoint of the LoRA's own kind, or the "
            "other way round:",
            *lines,
        ]
    )


def _misfit(delta: Shape, target: Target, checkpoint: Header) -> str:
    whole = checkpoint.tensors[target.key].shape
    if target.rows is None:
        return _difference(delta, whole)
    first, end = target.rows
    problem = _difference(delta, (end - first, *whole[1:]))
    return problem and f"{problem} (rows {first} to {end - 1} of {target.key})"


def _difference(delta: Shape, weight: Shape) -> str:
    if _plain(delta) == _plain(weight) or delta == (weight[0], math.prod(weight[1:])):
        return ""
    return f"it changes a weight of shape {list(delta)}, the checkpoint's is {list(weight)}"


def _multiply(up: Shape, down: Shape) -> bool:
    return len(up) >= 2 and len(down) >= 2 and up[1] == down[0]


def _plain(shape: Shape) -> Shape:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape
