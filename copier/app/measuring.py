"""Measure a LoRA that exists: weight strip, effect and leakage, without training anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from copier.app.checks import check_device
from copier.app.crew import Crew
from copier.app.pictures import check_loras, usual_precision, usual_side
from copier.app.service import check_checkpoint, check_folders
from copier.app.settings import Settings
from copier.checkpoint.header import Header, read_header
from copier.codec import RECIPE_KEY, load_recipe, recipe_from_text
from copier.errors import CopierError
from copier.evaluation.effect import change_strip, effect_strip, target
from copier.evaluation.report import ReportFiles, write_report
from copier.evaluation.report_data import Draw, ReportData, Result, Strip
from copier.images.effects import Picture, Pictures
from copier.model_options import AS_IT_IS, ModelOptions
from copier.pipeline.files import load_folder
from copier.pipeline.measure import CEILING_WEIGHT, known_edit
from copier.pipeline.plan import SMALLEST_SIDE, paired
from copier.pipeline.results import prepare_folder
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ignore
from copier.recipe import EvaluateStage, Recipe
from copier.request import Edit
from copier.training.client import BuiltinWorker
from copier.training.protocol import ReconstructRequest, SampleRequest
from copier.version import program

_USUAL_RECIPE = "copier-quick"
_SMALL_RECIPE = "copier-quick-pocket"
"""Whose prompts and numbers are used for a LoRA that carries no recipe, by the checkpoint's size."""
_ROLES = ("lora", "control")


@dataclass(frozen=True)
class MeasureRequest:
    """One measurement. ``spec`` says prompts, seeds, weights and how is drawn; its ``lora`` is a label.

    With an ``edit``, what the LoRA should do, effect and leakage are measured; without one only
    magnitude and consistency of the change. ``control`` is a LoRA to compare with.
    """

    lora: Path
    checkpoint: Path
    out: Path
    spec: EvaluateStage
    edit: Edit | None = None
    control: Path | None = None
    device: str = "auto"
    threads: int | None = None
    model: ModelOptions = AS_IT_IS

    @property
    def loras(self) -> tuple[Path, ...]:
        """The one to measure, and the control where there is one."""
        return (self.lora,) if self.control is None else (self.lora, self.control)


def suggested_spec(lora: Path, checkpoint: Path) -> EvaluateStage:
    """How to measure ``lora``: as the recipe that it carries does, else as a built-in one.

    Raises:
        BadInput, BadCheckpoint: one of the files cannot be used.
    """
    header = check_checkpoint(checkpoint)
    text = read_header(lora).metadata.get(RECIPE_KEY)
    carried = None
    if text is not None:
        try:
            carried = _evaluation(recipe_from_text(text, lora.name))
        except CopierError:
            carried = None  # a newer recipe, or a damaged one: its numbers are a convenience only
    small = usual_side(header) == SMALLEST_SIDE
    spec = carried or _evaluation(load_recipe(_SMALL_RECIPE if small else _USUAL_RECIPE))
    assert spec is not None, "every built-in recipe measures its result"
    return replace(spec, control="")


def check(request: MeasureRequest, settings: Settings) -> Header:
    """The header of the checkpoint that is drawn with; refuses bad input, and writes nothing.

    Raises:
        BadInput and its kin: a file, the edit, the device or a folder cannot be used.
    """
    header = check_checkpoint(request.checkpoint, options=request.model)
    check_loras([(path, 1.0) for path in request.loras], header)
    known_edit(request.edit)
    check_device(request.device)
    check_folders(request.out, settings)
    return header


def measure(
    request: MeasureRequest,
    settings: Settings,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> ReportFiles:
    """Draw the strips, measure them, and write the report into the request's folder.

    Raises:
        BadInput and its kin: as ``check``, before anything is drawn or written.
        TrainingFailed, Cancelled: nothing was written.
    """
    header = check(request, settings)
    edit = known_edit(request.edit)
    with StageStore(settings.stages).scratch("measure") as folder:
        with Crew(settings, device=request.device, threads=request.threads) as crew:
            drawing = _Drawing(request, header, crew.worker(), folder, observer, cancel)
            base = drawing.drawn("base", None, 0.0)
            strips = [drawing.strip(name, lora) for name, lora in zip(_ROLES, request.loras, strict=False)]
            ideals = {}
            if edit is not None and CEILING_WEIGHT in request.spec.weights:
                ideals[CEILING_WEIGHT] = drawing.reconstructed(
                    [target(x, edit(x), CEILING_WEIGHT) for x in base]
                )
        data = _report(request, base, strips, edit, ideals)
    prepare_folder(request.out)
    return write_report(data, request.out)


def _evaluation(recipe: Recipe) -> EvaluateStage | None:
    return next((stage for stage in recipe.stages if isinstance(stage, EvaluateStage)), None)


@dataclass(frozen=True)
class _Drawing:
    """Draws the pictures of one measurement into a temporary folder."""

    request: MeasureRequest
    header: Header
    worker: BuiltinWorker
    folder: Path
    observer: Observer
    cancel: CancelToken | None

    def drawn(self, name: str, lora: Path | None, weight: float) -> list[Picture]:
        spec, side = self.request.spec, usual_side(self.header, self.request.model)
        pairs = paired(spec.prompts, spec.seeds)
        out = self.folder / f"{name}{weight:+g}"
        self.worker.sample(
            SampleRequest(
                checkpoint=self.request.checkpoint,
                prompts=tuple(prompt for prompt, _ in pairs),
                seeds=tuple(seed for _, seed in pairs),
                out=out,
                loras=((lora, weight),) if lora is not None else (),
                steps=spec.sampling_steps,
                guidance=spec.guidance,
                width=side,
                height=side,
                model=self.request.model,
                precision=usual_precision(self.header),
                stage=name if lora is None else f"{name} at {weight:+g}",
            ),
            observer=self.observer,
            cancel=self.cancel,
        )
        return load_folder(out)

    def strip(self, name: str, lora: Path) -> dict[float, list[Picture]]:
        return {weight: self.drawn(name, lora, weight) for weight in self.request.spec.weights}

    def reconstructed(self, pictures: Pictures) -> list[Picture]:
        paths = []
        for i, picture in enumerate(pictures):
            paths.append(self.folder / f"ideal-{i:04d}.npy")
            np.save(paths[-1], picture.astype(np.float32))
        out = self.folder / "ideal"
        self.worker.reconstruct(
            ReconstructRequest(
                self.request.checkpoint,
                tuple(paths),
                out,
                model=self.request.model,
                precision=usual_precision(self.header),
                stage="ceiling",
            ),
            observer=self.observer,
            cancel=self.cancel,
        )
        return load_folder(out)


def _report(
    request: MeasureRequest,
    base: list[Picture],
    strips: list[dict[float, list[Picture]]],
    edit: Callable[[Picture], Picture] | None,
    ideals: dict[float, list[Picture]],
) -> ReportData:
    """The report of the measurement; A is the base's first picture, for there is no pair."""
    spec = request.spec
    shown = [
        Strip(
            label=path.stem if path is request.lora else f"control: {path.stem}",
            pictures=pictures,
            figures=change_strip(base, pictures)
            if edit is None
            else effect_strip(base, edit, pictures, spec.floor, ideals=ideals),
        )
        for path, pictures in zip(request.loras, strips, strict=True)
    ]
    pairs = paired(spec.prompts, spec.seeds)
    first = base[0]
    if edit is None:
        b = strips[0][min(spec.weights, key=lambda weight: abs(weight - 1.0))][0]
        what = "No edit was named, so the report gives size and consistency of the change, and no effect"
    else:
        b = target(first, edit(first), 1.0)
        what = "Effect and leakage are measured against the edit itself"
    result = Result(
        name="lora",
        title=request.lora.stem,
        b=b,
        draws=tuple(Draw(prompt, seed, spec.guidance) for prompt, seed in pairs),
        base=base,
        strip=shown[0],
        control=shown[1] if len(shown) > 1 else None,
        ideals=None if edit is None else [np.clip(edit(x), 0, 1) for x in base],
        files=(request.lora.name,),
    )
    return ReportData(
        title=f"What {request.lora.stem} does",
        summary=(
            f"{request.lora.name} was measured on {request.checkpoint.name}, with {len(pairs)} prompts "
            f"and seeds. {what}."
        ),
        a=first,
        results=(result,),
        a_prompt=pairs[0][0],
        checkpoint=request.checkpoint.name,
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        program=program(),
        notes=(
            "There is no pair here: A is the checkpoint's picture of the first prompt, B what the "
            f"{'LoRA makes' if edit is None else 'edit makes'} of it.",
            "Whether the LoRA's training saw these prompts is known only for one that carries its recipe.",
        ),
    )
