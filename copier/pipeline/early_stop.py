"""Ends a training as soon as the gate holds for what it saved on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

from copier.evaluation.gate import gate
from copier.pipeline.context import Context, draw_pictures, reconstruct
from copier.pipeline.files import IDEAL, load_folder, plain_pictures
from copier.progress import ProgressEvent
from copier.recipe import GateStage


class EarlyStop:
    """Called with each LoRA that was saved: whether the checkpoint with it draws the originals every time.

    It draws while the training goes on, so that two checkpoints are in memory.
    """

    def __init__(self, context: Context, spec: GateStage) -> None:
        """
        Args:
            context: of the training, which needs the base's pictures as ``base_pictures``.
            spec: the gate, its prompts and limits.
        """
        self._context = context
        self._spec = spec
        self._base = plain_pictures(context.needed("base_pictures"))

    def __call__(self, lora: Path, step: int) -> bool:
        """The verdict on the LoRA of that step, which is told as an event too."""
        context, spec = self._context, self._spec
        ideals, folder = context.folder / IDEAL, context.folder / "check"
        if not ideals.exists():
            reconstruct(context, context.pictures("set"))
        beneath = [(context.lora(f"base{i}"), base.multiplier) for i, base in enumerate(spec.base)]
        draws = context.plan.draws[f"{spec.name}.pictures"]
        draw_pictures(context, draws, folder, [*beneath, (lora, 1.0)])
        result = gate(load_folder(folder), self._base, load_folder(ideals))
        shutil.rmtree(folder)
        message = f"gate after {step} steps: median {result.median:.2f}, limit {spec.median_limit:g}"
        context.observer(ProgressEvent(context.stage.name, message=message))
        return result.passed(spec)
