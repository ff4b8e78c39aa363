"""Ends a training as soon as the gate holds for what it made so far."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from copier.evaluation.gate import gate
from copier.pipeline.context import (
    Context,
    SizedRequest,
    draw_pictures,
    draw_requests,
    gather,
    reconstruct,
)
from copier.pipeline.files import IDEAL, load_folder, plain_pictures
from copier.progress import ProgressEvent
from copier.recipe import GateStage
from copier.training.protocol import SampleRequest

DRAWN = "check"
"""Folder of the pictures of one check."""


class EarlyStop:
    """Whether the checkpoint with a LoRA that is still trained draws the originals every time.

    sd-scripts saves LoRAs on the way: ``saved`` draws while the training goes on, so that two checkpoints
    are in memory. The builtin trainer draws by itself, with what it has in memory, and ``drawn`` looks.
    """

    def __init__(self, context: Context, spec: GateStage) -> None:
        """
        Args:
            context: of the training, which needs the base's pictures as ``base_pictures``.
            spec: the gate, its limits.
        """
        self._context = context
        self._spec = spec
        self._draws = context.plan.draws[context.stage.needs["base_pictures"]]
        self._base = plain_pictures(context.needed("base_pictures"))
        self._requests: Sequence[SizedRequest] = ()

    def prepare(self) -> tuple[SampleRequest, ...]:
        """Reconstruct the originals, which the builtin trainer cannot do in between; what it draws."""
        reconstruct(self._context, self._context.pictures("set"))
        self._requests = draw_requests(self._context, self._draws, self._context.folder / DRAWN, ())
        return tuple(request for request, _ in self._requests)

    def saved(self, lora: Path, step: int) -> bool:
        """The verdict on a LoRA that was saved after ``step`` steps, which is told as an event too."""
        context, spec = self._context, self._spec
        if not (context.folder / IDEAL).exists():
            reconstruct(context, context.pictures("set"))
        beneath = [(context.lora(f"base{i}"), base.multiplier) for i, base in enumerate(spec.base)]
        draw_pictures(context, self._draws, context.folder / DRAWN, [*beneath, (lora, 1.0)])
        return self._passed(step)

    def drawn(self, step: int) -> bool:
        """The same of what the requests of ``prepare`` drew."""
        gather(self._requests, self._context.folder / DRAWN)
        return self._passed(step)

    def _passed(self, step: int) -> bool:
        """Measures what lies in the folder ``DRAWN``, and deletes it."""
        context, spec, folder = self._context, self._spec, self._context.folder / DRAWN
        result = gate(load_folder(folder), self._base, load_folder(context.folder / IDEAL))
        shutil.rmtree(folder)
        message = f"gate after {step} steps: median {result.median:.2f}, limit {spec.median_limit:g}"
        context.observer(ProgressEvent(context.stage.name, message=message))
        return result.passed(spec)
