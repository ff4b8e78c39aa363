"""What each kind of planned stage does: reads earlier stages' files, writes its own into a folder.

A stage function gets a ``Context`` and returns its outcome: JSON values, the figures worth keeping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from copier.captioning import Policy
from copier.digest import file_digest
from copier.errors import BadInput, BadPicture
from copier.evaluation.effect import target
from copier.images.effects import apply_effect, to_array
from copier.images.framing import seen, views_of
from copier.images.pairs import change_mask, check_pair, check_size, fitted, read_mask, read_picture
from copier.images.sizes import by_size
from copier.ops.combine import agreement, combine, difference
from copier.ops.lora_file import read_lora
from copier.ops.processed import combine_by_checkpoint
from copier.ops.report import OperationReport
from copier.ops.resize import resize
from copier.pipeline.context import Context, draw_pictures, reconstruct
from copier.pipeline.early_stop import EarlyStop
from copier.pipeline.files import (
    IDEAL,
    LORA,
    LOSSES,
    MASKS,
    load_picture,
    mask_name,
    mask_paths,
    picture_name,
    picture_paths,
    plain_pictures,
    weight_folder,
)
from copier.pipeline.measure import (
    CEILING_WEIGHT,
    closeness_result,
    disagreements,
    gate_result,
    has_ceiling,
    known_edit,
    strip_figures,
)
from copier.pipeline.plan import (
    caption_places,
    original_side,
)
from copier.pipeline.store import Entry
from copier.progress import ProgressEvent
from copier.recipe import (
    CaptionPolicy,
    CombineStage,
    DifferenceStage,
    EvaluateStage,
    FileStage,
    GateStage,
    RankMethod,
    RankPolicy,
    Recipe,
    ResizeStage,
    SumRoute,
    Trainer,
    TrainStage,
)
from copier.request import Edit, Generated, PictureFiles
from copier.training.protocol import (
    SampleRequest,
    TrainRequest,
)
from copier.writepoints import write_point

Json = dict[str, Any]


def original(context: Context) -> Json:
    """Draw the original from its prompt, or take over the user's pictures."""
    a = context.request.pictures[context.stage.name]
    if isinstance(a, PictureFiles):
        return _take_over(context, a)
    assert isinstance(a, Generated)
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
            model=context.request.model,
            stage=context.stage.name,
        )
    )
    write_point("picture-write")
    drawn.pictures[0].rename(context.folder / picture_name(1))
    shutil.rmtree(context.folder / "drawn")
    return {"pictures": 1, "width": side, "height": side, "prompt": a.prompt}


def edited(context: Context) -> Json:
    """Apply the edit to the originals, or take over the user's changed pictures."""
    b = context.request.pictures[context.stage.name]
    if isinstance(b, PictureFiles):
        return _take_over(context, b)
    assert isinstance(b, Edit)
    images = []
    for path in picture_paths(context.needed("a")):
        with Image.open(path) as a:
            images.append(apply_effect(a, b.name, b.parameters))
            if np.array_equal(to_array(images[-1]), to_array(a)):
                raise BadPicture(
                    f"the edit {b.name!r} changes nothing in this original: choose another edit or "
                    "stronger parameters"
                )
    masks = [None if path is None else read_picture(path).convert("L") for path in _masks(context, "a")]
    return _save(context, images, masks)


def derived(context: Context) -> Json:
    """Take one picture of another set, or views of all of them; a mask is cut like its picture."""
    spec = context.request.recipe.picture_set(context.stage.name)
    paths, masks = picture_paths(context.needed("set")), mask_paths(context.needed("set"))
    places = [spec.number - 1] if spec.number else range(len(paths))
    images: list[Image.Image] = []
    cut: list[Image.Image | None] = []
    shown: list[str] = []
    for place in places:
        picture, path = read_picture(paths[place]), masks[place]
        mask = None if path is None else read_picture(path).convert("L")
        for view in views_of(spec, picture.size, place):
            images.append(seen(picture, view))
            cut.append(mask and seen(mask, view))
            shown.append(str(view))
    return {**_save(context, images, cut), **({"views": shown} if spec.views else {})}


def _masks(context: Context, role: str) -> list[Path | None]:
    """The masks of the set needed in that role, where this stage has to do with masks."""
    return mask_paths(context.needed(role)) if context.masked else []


def _take_over(context: Context, files: PictureFiles) -> Json:
    images, masks = [], []
    for path in files.paths:
        images.append(fitted(read_picture(path), files.fit))
        check_size(images[-1], path.name)
        mask = read_mask(path) if context.masked else None
        masks.append(mask and fitted(mask, files.fit))
    return _save(context, images, masks)


def _save(
    context: Context, images: Sequence[Image.Image], masks: Sequence[Image.Image | None] = ()
) -> Json:
    write_point("picture-write")
    for number, image in enumerate(images, start=1):
        image.save(context.folder / picture_name(number))
    for number, mask in enumerate(masks, start=1):
        if mask is not None:
            mask.save(context.folder / mask_name(number))
    several = len(by_size(image.size for image in images)) > 1
    return {
        "pictures": len(images),
        "width": images[0].width,
        "height": images[0].height,
        **({"sizes": [list(image.size) for image in images]} if several else {}),
    }


def take_over_lora(context: Context) -> Json:
    """Copy the user's LoRA file, and read all of the copy.

    Raises:
        BadInput: the file is no longer the one that was planned.
    """
    assert isinstance(context.stage.spec, FileStage)
    source, copy = context.request.loras[context.stage.name], context.folder / LORA
    write_point("lora-write")
    shutil.copyfile(source, copy)
    if file_digest(copy) != context.stage.ingredients["file"]:
        raise BadInput(f"{source} was changed while the run began: run the same command again")
    return {"modules": len(read_lora(copy).weights)}


def train(context: Context) -> Json:
    """Train a LoRA on a set of pictures, or on a concept's prompts."""
    stage = context.stage.spec
    assert isinstance(stage, TrainStage)
    request, stop = _train_request(context, stage), None
    if stage.check_every:
        stop = EarlyStop(context, context.request.recipe.gate_of(stage))
        if context.request.recipe.trainer is Trainer.BUILTIN:
            request = replace(request, check=stop.prepare())
    result = context.trainer(
        request,
        observer=context.observer,
        cancel=context.cancel,
        on_saved=stop.saved if stop else None,
        on_drawn=stop.drawn if stop else None,
    )
    for name in (IDEAL, MASKS):  # of an early stop's checks, and of the pairs
        shutil.rmtree(context.folder / name, ignore_errors=True)
    write_point("losses-write")
    (context.folder / LOSSES).write_text(json.dumps(list(result.losses)), encoding="utf-8")
    measured = {} if result.memory is None else {"memory": result.memory}
    return {"steps": len(result.losses), "seconds": result.seconds, **measured}


def _train_request(context: Context, stage: TrainStage) -> TrainRequest:
    of_pairs = "original" in context.stage.needs
    return TrainRequest(
        checkpoint=context.request.checkpoint,
        pictures=tuple(picture_paths(context.needed("set"))) if stage.pictures else (),
        output=context.folder / LORA,
        training=stage.training,
        captions=_captions(context, stage),
        originals=tuple(picture_paths(context.needed("original"))) if of_pairs else (),
        masks=_training_masks(context, stage),
        concept=stage.concept if stage.concept.by_text else None,
        base=tuple((context.lora(f"base{i}"), base.multiplier) for i, base in enumerate(stage.base)),
        start=context.lora("start") if stage.start else None,
        save_every=stage.check_every,
        model=context.request.model,
        stage=context.stage.name,
    )


def _training_masks(context: Context, stage: TrainStage) -> tuple[Path | None, ...]:
    """Where the loss counts: as the pictures' alpha says, or where those of a pair differ."""
    if stage.training.masked_loss:
        return tuple(mask_paths(context.needed("set")))
    if not stage.training.pair_mask:
        return ()
    folder = context.folder / MASKS
    folder.mkdir()
    masks = _pair_masks(context.needed("original"), context.needed("set"), stage.training.mask_margin)
    places = [folder / mask_name(number) for number in range(1, len(masks) + 1)]
    for mask, place in zip(masks, places, strict=True):
        mask.save(place)
    return tuple(places)


def _pair_masks(originals: Entry, changed: Entry, margin: int) -> list[Image.Image]:
    pairs = zip(picture_paths(originals), picture_paths(changed), strict=True)
    return [change_mask(load_picture(a), load_picture(b), margin=margin) for a, b in pairs]


def _captions(context: Context, stage: TrainStage) -> tuple[str, ...]:
    """The texts of the caption files as they were planned, for the policy ``files``; else nothing."""
    if stage.training.captions.policy is not CaptionPolicy.FILES:
        return ()
    places = caption_places(context.request, stage)
    everything = stage.training.captions.kept is Policy.ALL
    texts = tuple(context.stage.ingredients.get("captions", ("",) * len(places)))
    for place, text in zip(places, texts, strict=True):
        if not text:
            kept = "there is no text in" if everything else "nothing is kept of"
            why = "the original is drawn" if place is None else f"{kept} a caption file {place}"
            message = f"trains with an empty caption: {why}"
            context.observer(ProgressEvent(context.stage.name, message=message))
    return texts


def draw(context: Context) -> Json:
    """Draw prompts and seeds, once for each weight of a strip."""
    draws = context.plan.draws[context.stage.name]
    beneath = tuple((context.lora(f"lora{i}"), weight) for i, (_, weight) in enumerate(draws.loras))
    for weight in draws.weights:
        strip = ((context.lora("strip"), weight),) if draws.strip else ()
        draw_pictures(context, draws, context.folder / weight_folder(weight), (*beneath, *strip))
    return {"pictures": len(draws.prompts) * len(draws.weights)}


def run_gate(context: Context) -> Json:
    """Measure the copier gate."""
    spec = context.stage.spec
    assert isinstance(spec, GateStage)
    reconstruct(context, context.pictures("set"))
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
    reconstruct(context, context.pictures("set"))
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
    add = partial(difference, *loras, ratios=(spec.minuend_ratio, spec.subtrahend_ratio))
    return _sum(context, add, spec.ranks)


def run_combine(context: Context) -> Json:
    """Add LoRAs by their weights, and truncate the result as the stage's rank policy says."""
    spec = context.stage.spec
    assert isinstance(spec, CombineStage)
    terms = [(context.lora(f"lora{i}"), weight) for i, weight in enumerate(spec.weights)]
    if spec.route is SumRoute.FACTORS:
        outcome = _sum(context, partial(combine, terms), spec.ranks)
    else:
        outcome = _by_checkpoint(context, terms, spec)
    found = agreement([path for path, _ in terms])
    for text in disagreements(spec, found):
        context.observer(ProgressEvent(context.stage.name, message=text))
    return {**outcome, "cosines": found}


def _by_checkpoint(context: Context, terms: Sequence[tuple[Path, float]], spec: CombineStage) -> Json:
    exact = spec.ranks.method is RankMethod.EXACT
    report = combine_by_checkpoint(
        context.request.checkpoint,
        terms,
        context.folder / LORA,
        work=context.folder,
        processed=spec.route.value.removeprefix("checkpoint-"),
        dtype="fp32",
        observer=context.observer,
        cancel=context.cancel,
        **({} if exact else rank_arguments(spec.ranks)),
    )
    return {"residual": report.residual}


def _sum(context: Context, add: Callable[..., OperationReport], ranks: RankPolicy) -> Json:
    """The stage's LoRA by ``add``, ``difference`` or ``combine`` of the LoRAs that it adds."""
    out = context.folder / LORA
    write_point("lora-write")
    if ranks.method is RankMethod.EXACT:
        report = add(out=out, exact=True, dtype="fp32")
    elif ranks.method is RankMethod.RANK:
        report = add(out=out, dtype="fp32", **rank_arguments(ranks))
    else:
        whole = context.folder / "exact.safetensors"
        add(out=whole, exact=True, dtype="fp32")
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
    edit = known_edit(context.request.edit_of(stage.spec.pictures))
    if edit is not None and has_ceiling(context.request, stage.spec):
        base = plain_pictures(context.needed("base"))
        reconstruct(context, [target(x, edit(x), CEILING_WEIGHT) for x in base])
    outcome: Json = {}
    for role in ("lora", "control"):
        if role in stage.needs:
            figures = strip_figures(context.request, context.plan, context.done, stage, context.folder, role)
            outcome[role] = [_figures_json(one) for one in figures.weights]
    return outcome


def check_the_pairs(done: Mapping[str, Entry], recipe: Recipe, changed: str) -> None:
    """Raise ``BadPicture`` unless the set of that name makes pairs with its originals, and masks where they
    are wanted; before anything is trained.

    A view may show nothing of what changed, but has no mask then.
    """
    original, made = recipe.original_of(changed), recipe.picture_set(changed).part_of
    pairs = zip(picture_paths(done[original]), picture_paths(done[changed]), strict=True)
    for first, second in pairs:
        with Image.open(first) as a, Image.open(second) as b:
            check_pair(a, b)
            if not made and np.array_equal(to_array(a), to_array(b)):
                raise BadPicture("A and B are identical: there is nothing to learn; edit B")
    for stage in recipe.trainings():
        if stage.training.pair_mask and stage.pictures == changed:
            _pair_masks(done[original], done[changed], stage.training.mask_margin)


def _figures_json(figures: Any) -> Json:
    names = ("weight", "effect", "leakage", "projection", "ceiling", "magnitude", "consistency")
    return {name: getattr(figures, name) for name in names if hasattr(figures, name)}


KINDS: Mapping[str, Callable[[Context], Json]] = {
    "original": original,
    "edited": edited,
    "derived": derived,
    "file": take_over_lora,
    "train": train,
    "draw": draw,
    "gate": run_gate,
    "closeness": run_closeness,
    "difference": run_difference,
    "combine": run_combine,
    "resize": run_resize,
    "evaluate": evaluate,
}
"""The function of every kind of planned stage."""
