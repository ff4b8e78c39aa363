"""Merges a LoRA into the modules of a loaded model, and takes it out again to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn

from copier.algebra.lora import LoraWeights
from copier.algebra.merging import Change, merged
from copier.checkpoint.fit import misfit_message, shape_problem
from copier.errors import BadInput

WeightOf = Callable[[str], nn.Parameter | None]


class MergedModules:
    """Undoes a merge: ``undo()``, or leaving its ``with`` block, restores the weights exactly.

    It keeps a copy of every weight that was changed. Several merges are undone in reverse order.
    """

    def __init__(self, originals: list[tuple[nn.Parameter, torch.Tensor]]) -> None:
        self._originals = originals

    def __enter__(self) -> MergedModules:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def undo(self) -> None:
        """Restore the weights; harmless when repeated."""
        with torch.no_grad():
            for parameter, original in reversed(self._originals):
                parameter.copy_(original)
        self._originals = []


def merge_into_modules(weight_of: WeightOf, lora: LoraWeights, weight: float = 1.0) -> MergedModules:
    """Add weight * delta to the weights of a model in memory, in place.

    ``weight_of`` gives the weight that a LoRA calls by a name, or None. Each weight is computed in float32
    and cast once to its own dtype, exactly as ``merge`` computes it in a file.

    Raises:
        BadInput: modules of the LoRA that match nothing in the model, or differ in shape
            (all are named), or values that a weight's dtype cannot hold; nothing is changed then.
    """
    pairs = _targets(weight_of, lora)
    changed: list[tuple[nn.Parameter, torch.Tensor]] = []
    undoable = MergedModules(changed)
    try:
        with torch.no_grad():
            for name, parameter in pairs.items():
                change = Change(lora[name].to(device=str(parameter.device)), weight)
                result = merged(parameter, [change], name)
                changed.append((parameter, parameter.detach().clone()))
                parameter.copy_(result)
    except BaseException:
        undoable.undo()
        raise
    return undoable


def _targets(weight_of: WeightOf, lora: LoraWeights) -> dict[str, nn.Parameter]:
    pairs: dict[str, nn.Parameter] = {}
    problems = []
    for name, delta in lora.items():
        parameter = weight_of(name)
        if parameter is None:
            problems.append(f"{name}: the model has no such module")
        elif problem := shape_problem(tuple(delta.up.shape), tuple(delta.down.shape), tuple(parameter.shape)):
            problems.append(f"{name}: {problem}")
        else:
            pairs[name] = parameter
    if problems:
        raise BadInput(misfit_message(problems))
    return pairs
