"""What each kind of planned stage does: reads earlier stages' files, writes its own into a folder.

A stage function gets a ``Context`` and returns its outcome: JSON values, the figures worth keeping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from copier.errors import BadPicture
from copier.evaluation.effect import target
from copier.images.effects import Picture, apply_effect, to_array
from copier.images.pairs import check_pair, check_size, read_picture
from copier.ops.combine import difference
from copier.ops.resize import resize
from copier.pipeline.files import IDEAL, LORA, LOSSES, PICTURE, load_picture, plain_pictures, weight_folder
from copier.pipeline.measure import (
    CEILING_WEIGHT,
    closeness_result,
    gate_result,
    has_ceiling,
    known_edit,
    strip_figures,
)
from copier.pipeline.plan import (
    Plan,
    PlannedStage,
    caption_place,
    drawing_precision,
    original_side,
)
from copier.pipeline.store import Entry
from copier.progress import CancelToken, Observer, ProgressEvent
from copier.recipe import (
    CaptionPolicy,
    DifferenceStage,
    EvaluateStage,
    GateStage,
    RankMethod,
    RankPolicy,
    ResizeStage,
    TrainStage,
)
from copier.request import Edit, Generated, RunRequest
from copier.training.protocol import (
    PicturesResult,
    ReconstructRequest,
    SampleRequest,
    TrainRequest,
    TrainResult,
)
from copier.writepoints import write_point

Json = dict[str, Any]


class Worker(Protocol):
    """Trains and draws: the builtin worker child, or what stands for it."""

    def train(self, request: TrainRequest, *, observer: Observer, cancel: CancelToken) -> TrainResult: ...

    def sample(
        self, request: SampleRequest, *, observer: Observer, cancel: CancelToken
    ) -> PicturesResult: ...

    def reconstruct(
        self, request: ReconstructRequest, *, observer: Observer, cancel: CancelToken
    ) -> PicturesResult: ...


@dataclass(frozen=True)
class Context:
    """What a stage may use. ``done`` holds the finished stages by name; ``worker`` starts on demand."""

    request: RunRequest
    plan: Plan
    stage: PlannedStage
    folder: Path
    done: Mapping[str, Entry]
    worker: Callable[[], Worker]
    observer: Observer
    cancel: CancelToken

    def needed(self, role: str) -> Entry:
        """The finished stage that this one needs in that role."""
        return self.done[self.stage.needs[role]]

    def lora(self, role: str) -> Path:
        """The LoRA file of the stage needed in that role."""
        return self.needed(role).path(LORA)

    def picture(self, role: str) -> Picture:
        """The picture of the stage needed in that role, (height, width, 3) in [0, 1]."""
        return load_picture(self.needed(role).path(PICTURE))

    def sample(self, request: SampleRequest) -> PicturesResult:
        """Let the worker draw."""
        return self.worker().sample(request, observer=self.observer, cancel=self.cancel)


def original(context: Context) -> Json:
    """Draw A from its prompt, or take over the user's picture."""
    a = context.request.a
    if not isinstance(a, Generated):
        return _take_over(context, a.path)
    side = original_side(context.request.recipe, a)
    drawn = context.sample(
        SampleRequest(
            checkpoint=context.request.checkpoint,
            prompts=(a.prompt,),
            seeds=(a.seed,),
            out=context.folder / "drawn",
            steps=a.steps,
            guidance=a.guidance,
            width=side,
            height=side,
            stage=context.stage.name,
        )
    )
    write_point("picture-write")
    drawn.pictures[0].rename(context.folder / PICTURE)
    shutil.rmtree(context.folder / "drawn")
    return {"width": side, "height": side, "prompt": a.prompt}


def edited(context: Context) -> Json:
    """Apply the edit to A, or take over the user's B."""
    b = context.request.b
    if not isinstance(b, Edit):
        return _take_over(context, b.path)
    with Image.open(context.needed("a").path(PICTURE)) as a:
        image = apply_effect(a, b.name, b.parameters)
        if np.array_equal(to_array(image), to_array(a)):
            raise BadPicture(
                f"the edit {b.name!r} changes nothing in this original: choose another edit or "
                "stronger parameters"
            )
    return _save(context, image)


def _take_over(context: Context, path: Path) -> Json:
    image = read_picture(path)
    check_size(image, path.name)
    return _save(context, image)


def _save(context: Context, image: Image.Image) -> Json:
    write_point("picture-write")
    image.save(context.folder / PICTURE)
    return {"width": image.width, "height": image.height}


def train(context: Context) -> Json:
    """Train a LoRA on one side of the pair."""
    stage = context.stage.spec
    assert isinstance(stage, TrainStage)
    write_point("lora-write")
    result = context.worker().train(
        TrainRequest(
            checkpoint=context.request.checkpoint,
            pictures=(context.needed("picture").path(PICTURE),),
            output=context.folder / LORA,
            training=stage.training,
            captions=_captions(context, stage),
            base=tuple((context.lora(f"base{i}"), base.multiplier) for i, base in enumerate(stage.base)),
            start=context.lora("start") if stage.start else None,
            stage=context.stage.name,
        ),
        observer=context.observer,
        cancel=context.cancel,
    )
    write_point("losses-write")
    (context.folder / LOSSES).write_text(json.dumps(list(result.losses)), encoding="utf-8")
    return {"steps": len(result.losses), "seconds": result.seconds}


def _captions(context: Context, stage: TrainStage) -> tuple[str, ...]:
    """The text of the picture's caption file as it was planned, for the policy ``files``; else nothing."""
    if stage.training.captions.policy is not CaptionPolicy.FILES:
        return ()
    if "captions" in context.stage.ingredients:
        return (context.stage.ingredients["captions"],)
    place = caption_place(context.request, stage)
    why = "A is generated and has no caption file" if place is None else f"there is no caption file {place}"
    context.observer(ProgressEvent(context.stage.name, message=f"trains with an empty caption: {why}"))
    return ("",)


def draw(context: Context) -> Json:
    """Draw prompts and seeds, once for each weight of a strip."""
    draws = context.plan.draws[context.stage.name]
    beneath = tuple((context.lora(f"lora{i}"), weight) for i, (_, weight) in enumerate(draws.loras))
    with Image.open(context.done["a"].path(PICTURE)) as a:
        width, height = a.size
    for weight in draws.weights:
        strip = ((context.lora("strip"), weight),) if draws.strip else ()
        context.sample(
            SampleRequest(
                checkpoint=context.request.checkpoint,
                prompts=draws.prompts,
                seeds=draws.seeds,
                out=context.folder / weight_folder(weight),
                loras=(*beneath, *strip),
                steps=draws.steps,
                guidance=draws.guidance,
                width=width,
                height=height,
                precision=drawing_precision(context.request.recipe),
                stage=context.stage.name,
            )
        )
    return {"pictures": len(draws.prompts) * len(draws.weights)}


def run_gate(context: Context) -> Json:
    """Measure the copier gate."""
    spec = context.stage.spec
    assert isinstance(spec, GateStage)
    _reconstruct(context, [context.picture("picture")])
    result = gate_result(context.done, context.stage, context.folder)
    return {
        "median": result.median,
        "within": result.within(spec.single_limit),
        "count": len(result.distances),
        "passed": result.passed(spec),
        "distances": list(result.distances),
    }


def run_closeness(context: Context) -> Json:
    """Measure how near the second training comes to B."""
    spec = context.stage.spec
    assert isinstance(spec, GateStage)
    _reconstruct(context, [context.picture("picture")])
    result = closeness_result(context.done, context.stage, context.folder)
    return {
        "median": result.median,
        "passed": result.median <= spec.median_limit,
        "distances": list(result.distances),
    }


def run_difference(context: Context) -> Json:
    """Subtract two LoRAs, and truncate the result as the stage's rank policy says."""
    spec = context.stage.spec
    assert isinstance(spec, DifferenceStage)
    loras = context.lora("minuend"), context.lora("subtrahend")
    ratios = (spec.minuend_ratio, spec.subtrahend_ratio)
    out, ranks = context.folder / LORA, spec.ranks
    write_point("lora-write")
    if ranks.method is RankMethod.EXACT:
        report = difference(*loras, out, ratios=ratios, exact=True, dtype="fp32")
    elif ranks.method is RankMethod.RANK:
        report = difference(*loras, out, ratios=ratios, dtype="fp32", **rank_arguments(ranks))
    else:
        whole = context.folder / "exact.safetensors"
        difference(*loras, whole, ratios=ratios, exact=True, dtype="fp32")
        report = resize(whole, out, dtype="fp32", **rank_arguments(ranks))
        whole.unlink()
    return {"residual": report.residual}


def run_resize(context: Context) -> Json:
    """Lower a LoRA's rank."""
    spec = context.stage.spec
    assert isinstance(spec, ResizeStage)
    write_point("lora-write")
    report = resize(context.lora("lora"), context.folder / LORA, dtype="fp32", **rank_arguments(spec.ranks))
    return {"residual": report.residual}


def rank_arguments(ranks: RankPolicy) -> dict[str, Any]:
    """The policy as keyword arguments of ``copier.ops.resize.resize``."""
    conv = {"conv_rank": ranks.conv_rank} if ranks.conv_rank else {}
    if ranks.method is RankMethod.RANK:
        return {"rank": ranks.rank, **conv}
    if ranks.method is RankMethod.EXACT:
        return {"sv_fro": 1.0}
    return {ranks.method.value: ranks.threshold, "max_rank": ranks.rank, **conv}


def evaluate(context: Context) -> Json:
    """Measure effect and leakage, or the change where the edit is not known."""
    stage = context.stage
    assert isinstance(stage.spec, EvaluateStage)
    edit = known_edit(context.request)
    if edit is not None and has_ceiling(context.request, stage.spec):
        base = plain_pictures(context.needed("base"))
        _reconstruct(context, [target(x, edit(x), CEILING_WEIGHT) for x in base])
    outcome: Json = {}
    for role in ("lora", "control"):
        if role in stage.needs:
            figures = strip_figures(context.request, context.plan, context.done, stage, context.folder, role)
            outcome[role] = [_figures_json(one) for one in figures.weights]
    return outcome


def check_the_pair(done: Mapping[str, Entry]) -> None:
    """Raise ``BadPicture`` unless A and B make a pair; before anything is trained."""
    with Image.open(done["a"].path(PICTURE)) as a, Image.open(done["b"].path(PICTURE)) as b:
        check_pair(a, b)
        if np.array_equal(to_array(a), to_array(b)):
            raise BadPicture("A and B are identical: there is nothing to learn; edit B")


def _reconstruct(context: Context, pictures: list[Picture]) -> None:
    """decode(encode(x)) of each picture into the stage's folder ``IDEAL``."""
    inputs = context.folder / "inputs"
    inputs.mkdir()
    paths = tuple(inputs / f"{i:04d}.npy" for i in range(len(pictures)))
    for path, picture in zip(paths, pictures, strict=True):
        np.save(path, picture.astype(np.float32))
    context.worker().reconstruct(
        ReconstructRequest(
            checkpoint=context.request.checkpoint,
            pictures=paths,
            out=context.folder / IDEAL,
            precision=drawing_precision(context.request.recipe),
            stage=context.stage.name,
        ),
        observer=context.observer,
        cancel=context.cancel,
    )
    shutil.rmtree(inputs)


def _figures_json(figures: Any) -> Json:
    names = ("weight", "effect", "leakage", "projection", "ceiling", "magnitude", "consistency")
    return {name: getattr(figures, name) for name in names if hasattr(figures, name)}


KINDS: Mapping[str, Callable[[Context], Json]] = {
    "original": original,
    "edited": edited,
    "train": train,
    "draw": draw,
    "gate": run_gate,
    "closeness": run_closeness,
    "difference": run_difference,
    "resize": run_resize,
    "evaluate": evaluate,
}
"""The function of every kind of planned stage."""
