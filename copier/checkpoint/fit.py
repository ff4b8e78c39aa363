"""Which tensor of a checkpoint each module of a LoRA changes, and whether it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import Header, TensorInfo
from copier.checkpoint.names import kohya_modules
from copier.errors import BadCheckpoint, BadInput

FACTORS = (".lora_up.weight", ".lora_down.weight")
_SHOWN = 12


def require_lora_fits(lora: Header, checkpoint: Header) -> Mapping[str, str]:
    """Check a LoRA against a checkpoint; kohya module name -> LDM key of the weight it changes.

    Raises:
        BadInput: one of the two is something else, their families differ, the family is not
            supported yet, or modules match nothing or differ in shape; all of them are named.
        BadCheckpoint: the LoRA has a module with only one of its two factors.
    """
    require_same_family(lora, checkpoint)
    targets: dict[str, str] = {}
    problems: list[str] = []
    for name, (up, down) in _factors(lora).items():
        module = kohya_modules().get(name)
        info = checkpoint.tensors.get(module.ldm) if module else None
        if module is None or info is None:
            problems.append(f"{name}: the checkpoint has no such weight")
        elif problem := shape_problem(up.shape, down.shape, info.shape):
            problems.append(f"{name}: {problem}")
        else:
            targets[name] = module.ldm
    if problems:
        raise BadInput(misfit_message(problems))
    return MappingProxyType(targets)


def require_same_family(lora: Header, checkpoint: Header) -> None:
    """Raise BadInput unless the first is a LoRA, the second a checkpoint, both of family SD1."""
    theirs, ours = detect(lora), detect(checkpoint)
    if theirs.kind is not Kind.LORA:
        raise BadInput(f"the file given as LoRA is none (it is: {theirs.kind.value})")
    if ours.kind is not Kind.CHECKPOINT:
        raise BadInput(f"the file given as checkpoint is none (it is: {ours.kind.value})")
    unknown = Family.UNKNOWN in (theirs.family, ours.family)
    if theirs.family is not ours.family and not unknown:
        raise BadInput(
            f"the LoRA is for {theirs.family.name}, the checkpoint is {ours.family.name}: "
            "use a LoRA and a checkpoint of one family"
        )
    if ours.family is not Family.SD1:
        raise BadInput(f"the checkpoint is of the family {ours.family.name}: only SD1 is supported so far")
    if theirs.layout != "kohya":
        raise BadInput(
            f"the LoRA has the layout {theirs.layout!r}: only kohya's (lora_up, lora_down) is "
            "supported so far"
        )


def shape_problem(up: tuple[int, ...], down: tuple[int, ...], weight: tuple[int, ...]) -> str:
    """Why ``up @ down`` cannot be added to a weight of shape ``weight``; "" if it can.

    up (out, rank[, 1, 1]); down (rank, in[, height, width]); weight (out, in[, height, width]).
    Axes of size 1 at the end count for nothing: a 1x1 convolution may be stored as linear.
    """
    if len(up) < 2 or len(down) < 2 or up[1] != down[0]:
        return f"its factors {list(up)} and {list(down)} do not multiply"
    delta = (up[0], *down[1:])
    if _plain(delta) != _plain(weight):
        return f"it changes a weight of shape {list(delta)}, the checkpoint's is {list(weight)}"
    return ""


def misfit_message(problems: Iterable[str]) -> str:
    """One message that counts what does not fit and names it, the first dozen in full."""
    lines = list(problems)
    shown = "; ".join(lines[:_SHOWN])
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    plural = "module of the LoRA does" if len(lines) == 1 else "modules of the LoRA do"
    return (
        f"{len(lines)} {plural} not fit the checkpoint: {shown}{more}. "
        "Use a checkpoint of the LoRA's own kind, or the other way round"
    )


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def _factors(lora: Header) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    names = {
        key.removesuffix(suffix): None for key in lora.tensors for suffix in FACTORS if key.endswith(suffix)
    }
    pairs = {}
    for name in names:
        up, down = (lora.tensors.get(name + suffix) for suffix in FACTORS)
        if up is None or down is None:
            raise BadCheckpoint(f"the LoRA's {name!r} has only one of lora_up and lora_down")
        pairs[name] = (up, down)
    return pairs
