"""What each kind of planned stage does: reads earlier stages' files, writes its own into a folder.

A stage function gets a ``Context`` and returns its outcome: JSON values, the figures worth keeping.
Names of files in a stage's folder are the constants below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from copier.errors import BadPicture
from copier.evaluation.effect import (
    ChangeResult,
    StripResult,
    change_strip,
    effect_strip,
    target,
)
from copier.evaluation.gate import ClosenessResult, GateResult, closeness, gate
from copier.images.effects import EFFECTS, Picture, apply_effect, effect_parameters, to_array
from copier.images.pairs import check_pair, check_size, read_picture
from copier.ops.combine import difference
from copier.ops.resize import resize
from copier.pipeline.plan import Draws, Plan, PlannedStage, caption_file, original_side
from copier.pipeline.store import Entry
from copier.progress import CancelToken, Observer
from copier.recipe import (
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

PICTURE = "picture.png"
LORA = "lora.safetensors"
LOSSES = "losses.json"
CEILING_WEIGHT = 1.0
"""The weight at which the autoencoder's ceiling is measured."""

Json = dict[str, Any]


class Worker(Protocol):
    """Trains and draws: the builtin worker child, or what stands for it."""

    def train(
        self, request: TrainRequest, *, observer: Observer, cancel: CancelToken
    ) -> TrainResult: ...

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


def load_picture(path: Path) -> Picture:
    """A picture file as a float32 array (height, width, 3) in [0, 1]."""
    with Image.open(path) as image:
        return to_array(image)


def load_stack(folder: Path) -> Picture:
    """The numbered PNG files of a folder as a stack (n, height, width, 3) in [0, 1]."""
    return np.stack([load_picture(path) for path in sorted(folder.glob("*.png"))])


def weight_folder(weight: float) -> str:
    """Name of the folder that holds the pictures of one weight."""
    return f"{weight:+.3f}"


def strip_pictures(entry: Entry, draws: Draws) -> dict[float, Picture]:
    """The stacks of a finished ``draw`` stage by weight."""
    return {weight: load_stack(entry.path(weight_folder(weight))) for weight in draws.weights}


def original(context: Context) -> Json:
    """Draw A from its prompt, or take over the user's picture."""
    a = context.request.a
    if isinstance(a, Generated):
        side = original_side(context.request.recipe, a)
        drawn = context.worker().sample(
            SampleRequest(
                checkpoint=context.request.checkpoint,
                prompts=(a.prompt,),
                seeds=(a.seed,),
                out=context.folder / "drawn",
                steps=a.steps,
                guidance=a.guidance,
                width=side,
                height=side,
                stage="a",
            ),
            observer=context.observer,
            cancel=context.cancel,
        )
        drawn.pictures[0].rename(context.folder / PICTURE)
        (context.folder / "drawn").rmdir()
        return {"width": side, "height": side, "prompt": a.prompt}
    image = read_picture(a.path)
    check_size(image, a.path.name)
    image.save(context.folder / PICTURE)
    return {"width": image.width, "height": image.height}


def edited(context: Context) -> Json:
    """Apply the edit to A, or take over the user's B."""
    b = context.request.b
    if isinstance(b, Edit):
        with Image.open(context.needed("a").path(PICTURE)) as a:
            image = apply_effect(a, b.name, b.parameters)
            if np.array_equal(to_array(image), to_array(a)):
                raise BadPicture(
                    f"the edit {b.name!r} changes nothing in this original: choose another edit or "
                    "stronger parameters"
                )
    else:
        image = read_picture(b.path)
        check_size(image, b.path.name)
    image.save(context.folder / PICTURE)
    return {"width": image.width, "height": image.height}


def train(context: Context) -> Json:
    """Train a LoRA on one side of the pair."""
    stage = context.stage.spec
    assert isinstance(stage, TrainStage)
    needs = context.stage.needs
    picture = context.needed("picture").path(PICTURE)
    captions = caption_file(context.request, stage)
    write_point("lora-write")
    result = context.worker().train(
        TrainRequest(
            checkpoint=context.request.checkpoint,
            pictures=(picture,),
            output=context.folder / LORA,
            training=stage.training,
            captions=(captions.read_text(encoding="utf-8") if captions else "",)
            if stage.training.captions.policy.value == "files"
            else (),
            base=tuple(
                (context.lora(f"base{i}"), base.multiplier) for i, base in enumerate(stage.base)
            ),
            start=context.lora("start") if "start" in needs else None,
            stage=context.stage.name,
        ),
        observer=context.observer,
        cancel=context.cancel,
    )
    (context.folder / LOSSES).write_text(json.dumps(list(result.losses)), encoding="utf-8")
    return {"steps": len(result.losses), "seconds": result.seconds}


def draw(context: Context) -> Json:
    """Draw prompts and seeds, once for each weight of a strip."""
    draws = context.plan.draws[context.stage.name]
    beneath = tuple((context.lora(f"lora{i}"), weight) for i, (_, weight) in enumerate(draws.loras))
    with Image.open(context.done["a"].path(PICTURE)) as a:
        width, height = a.size
    for weight in draws.weights:
        strip = ((context.lora("strip"), weight),) if draws.strip else ()
        context.worker().sample(
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
                stage=context.stage.name,
            ),
            observer=context.observer,
            cancel=context.cancel,
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


def gate_result(done: Mapping[str, Entry], stage: PlannedStage, folder: Path) -> GateResult:
    """The gate's figures from the pictures of its finished stages."""
    base = weight_folder(0.0)
    return gate(
        load_stack(done[stage.needs["pictures"]].path(base)),
        load_stack(done[stage.needs["base"]].path(base)),
        load_stack(folder / "ideal")[0],
    )


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


def closeness_result(
    done: Mapping[str, Entry], stage: PlannedStage, folder: Path
) -> ClosenessResult:
    """The closeness to B from the pictures of its finished stages."""
    return closeness(
        load_stack(done[stage.needs["pictures"]].path(weight_folder(0.0))),
        load_stack(folder / "ideal")[0],
        load_picture(done[stage.needs["a"]].path(PICTURE)),
        load_picture(done[stage.needs["picture"]].path(PICTURE)),
    )


def run_difference(context: Context) -> Json:
    """Subtract two LoRAs."""
    spec = context.stage.spec
    assert isinstance(spec, DifferenceStage)
    ranks = spec.ranks
    exact = ranks.method is RankMethod.EXACT
    report = difference(
        context.lora("minuend"),
        context.lora("subtrahend"),
        context.folder / LORA,
        ratios=(spec.minuend_ratio, spec.subtrahend_ratio),
        rank=None if exact else ranks.rank,
        conv_rank=None if exact else ranks.conv_rank or None,
        exact=exact,
        dtype="fp32",
    )
    return {"residual": report.residual}


def run_resize(context: Context) -> Json:
    """Lower a LoRA's rank."""
    spec = context.stage.spec
    assert isinstance(spec, ResizeStage)
    report = resize(
        context.lora("lora"), context.folder / LORA, dtype="fp32", **rank_arguments(spec.ranks)
    )
    return {"residual": report.residual}


def rank_arguments(ranks: RankPolicy) -> dict[str, Any]:
    """The policy as keyword arguments of ``copier.ops.resize``."""
    conv = {"conv_rank": ranks.conv_rank} if ranks.conv_rank else {}
    if ranks.method is RankMethod.RANK:
        return {"rank": ranks.rank, **conv}
    if ranks.method is RankMethod.EXACT:
        return {"sv_fro": 1.0}
    return {ranks.method.value: ranks.threshold, "max_rank": ranks.rank, **conv}


def evaluate(context: Context) -> Json:
    """Measure effect and leakage, or the change where the edit is not known."""
    edit = known_edit(context.request)
    if edit is not None:
        base = load_stack(context.needed("base").path(weight_folder(0.0)))
        _reconstruct(context, [target(x, edit(x), CEILING_WEIGHT) for x in base])
    outcome: Json = {}
    for role in ("lora", "control"):
        if role in context.stage.needs:
            figures = strip_figures(context.request, context.plan, context.done, context.stage,
                                    context.folder, role)  # fmt: skip
            outcome[role] = [_figures_json(one) for one in figures.weights]
    return outcome


def strip_figures(
    request: RunRequest,
    plan: Plan,
    done: Mapping[str, Entry],
    stage: PlannedStage,
    folder: Path,
    role: str,
) -> StripResult | ChangeResult:
    """The figures of the LoRA or the control, from the pictures of the finished stages."""
    spec = stage.spec
    assert isinstance(spec, EvaluateStage)
    name = stage.needs[role]
    base = load_stack(done[stage.needs["base"]].path(weight_folder(0.0)))
    drawn = strip_pictures(done[name], plan.draws[name])
    edit = known_edit(request)
    if edit is None:
        return change_strip(base, drawn)
    ideals = {CEILING_WEIGHT: load_stack(folder / "ideal")} if CEILING_WEIGHT in drawn else {}
    return effect_strip(base, edit, drawn, spec.floor, ideals=ideals)


def known_edit(request: RunRequest) -> Callable[[Picture], Picture] | None:
    """The edit f of the request as a function of pictures; None for an edit by hand."""
    if not isinstance(request.b, Edit):
        return None
    function = EFFECTS[request.b.name].function
    parameters = effect_parameters(request.b.name, request.b.parameters)
    return lambda picture: function(picture, **parameters)


def check_the_pair(done: Mapping[str, Entry]) -> None:
    """Raise ``BadPicture`` unless A and B make a pair; before anything is trained."""
    with Image.open(done["a"].path(PICTURE)) as a, Image.open(done["b"].path(PICTURE)) as b:
        check_pair(a, b)


def _reconstruct(context: Context, pictures: list[Picture]) -> None:
    """decode(encode(x)) of each picture into the folder ``ideal``."""
    inputs = context.folder / "inputs"
    inputs.mkdir()
    paths = []
    for i, picture in enumerate(pictures):
        path = inputs / f"{i:04d}.npy"
        np.save(path, picture.astype(np.float32))
        paths.append(path)
    context.worker().reconstruct(
        ReconstructRequest(
            checkpoint=context.request.checkpoint,
            pictures=tuple(paths),
            out=context.folder / "ideal",
            stage=context.stage.name,
        ),
        observer=context.observer,
        cancel=context.cancel,
    )
    for path in paths:
        path.unlink()
    inputs.rmdir()


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
