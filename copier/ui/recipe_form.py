"""The form of a recipe: values in, values out, and what shows. Pure: no gradio here.

The recipe is the model; the form shows the recipe's own fields and those of one of its stages at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from copier.captioning import Policy
from copier.codec import recipe_from_json, recipe_to_json
from copier.errors import BadInput
from copier.fields import check_number
from copier.recipe import (
    OF_PICTURES,
    STAGE_KINDS,
    CaptionPolicy,
    ConceptAction,
    GateStage,
    LossWeighting,
    RankMethod,
    RankPolicy,
    Recipe,
    StageSpec,
    Target,
    Trainer,
    TrainStage,
)
from copier.ui.leaves import RECIPE, Leaf, leaves, understood, written

LEAVES: Mapping[str, Leaf] = {leaf.path: leaf for leaf in leaves()}
"""Every field of a recipe by its path."""

_KINDS = {spec: kind for kind, spec in STAGE_KINDS.items()}

EVERY_TRAINING = ("steps", "learning_rate", "rank", "alpha")
"""What "the same for every training" copies."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value of a field: its path, and one sentence with the remedy."""

    path: str
    message: str


def kind_of(stage: StageSpec) -> str:
    """The kind of a stage as paths begin with it."""
    return _KINDS[type(stage)]


def first_stage(recipe: Recipe) -> str:
    """The stage that a form shows first: the first training."""
    return next((one.name for one in recipe.trainings()), recipe.stages[0].name)


def paths_of(kind: str) -> tuple[str, ...]:
    """The paths of the fields of a kind of stage, or of the recipe."""
    return tuple(path for path, leaf in LEAVES.items() if leaf.kind == kind)


def form_values(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What the form shows of ``recipe`` and its stage of that name, by path."""
    data = recipe_to_json(recipe)
    shown = next(one for one in data["stages"] if one["name"] == stage)
    values = {path: _at(data, LEAVES[path].names) for path in paths_of(RECIPE)}
    values |= {path: _at(shown, LEAVES[path].names) for path in paths_of(shown["kind"])}
    return {path: written(LEAVES[path], value) for path, value in values.items()}


def _at(data: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        data = data[name]
    return data


def with_form(
    recipe: Recipe, stage: str, values: Mapping[str, Any]
) -> tuple[Recipe, str, tuple[Problem, ...]]:
    """``recipe`` with what the form holds, the name that the stage has now, and what could not be taken.

    Fields are taken one by one, so that each problem is said beside its own; where only several together
    are wrong (steps below the warm-up), it is said beside the last of them that was changed. With
    problems the recipe is the one that came in.
    """
    data = recipe_to_json(recipe)
    shown = next(one for one in data["stages"] if one["name"] == stage)
    kind = shown["kind"]
    changed: list[str] = []
    problems: list[Problem] = []
    for path in (*paths_of(RECIPE), *paths_of(kind)):
        if path not in values:
            continue
        leaf = LEAVES[path]
        target = data if leaf.kind == RECIPE else shown
        try:
            value = understood(leaf, values[path])
            if value != _at(target, leaf.names):
                _check_alone(leaf, value)
                _put(target, leaf.names, value)
                changed.append(path)
        except BadInput as error:
            problems.append(Problem(path, str(error)))
    _follow_names(data, stage, shown["name"])
    if problems:
        return recipe, stage, tuple(problems)
    try:
        return recipe_from_json(data), shown["name"], ()
    except BadInput as error:
        where = _blamed(str(error), changed) or (changed[-1] if changed else f"{RECIPE}.name")
        return recipe, stage, (Problem(where, str(error)),)


def _put(data: Any, names: tuple[str, ...], value: Any) -> None:
    for name in names[:-1]:
        data = data[name]
    data[names[-1]] = value


def _check_alone(leaf: Leaf, value: Any) -> None:
    """Bounds, as the spec itself would say them."""
    for number in value if isinstance(value, list) else (value,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            check_number(leaf.field.label, number, leaf.field)


def _blamed(message: str, changed: list[str]) -> str:
    """The changed field that a message about several names, if any."""
    return next((path for path in reversed(changed) if LEAVES[path].names[-1] in message), "")


def _follow_names(data: dict[str, Any], before: str, now: str) -> None:
    """A stage that was renamed keeps its place as the recipe's result."""
    if before != now and data["result"] == before:
        data["result"] = now


def visible_paths(recipe: Recipe, stage: str) -> frozenset[str]:
    """The fields that matter for ``recipe`` and its stage of that name, as both are now."""
    spec = recipe.stage(stage)
    hidden = set()
    if isinstance(spec, TrainStage):
        hidden |= _idle_in_training(recipe, spec)
    for ranks, path in _rank_policies(spec):
        hidden |= {f"{path}.{name}" for name in _idle_in_ranks(ranks)}
    shown = {*paths_of(RECIPE), *paths_of(kind_of(spec))}
    return frozenset(shown - hidden)


def _idle_in_training(recipe: Recipe, stage: TrainStage) -> set[str]:
    training, path = stage.training, "train.training"
    idle = set()
    captions = training.captions
    if captions.policy in (CaptionPolicy.EMPTY, CaptionPolicy.FILES):
        idle.add(f"{path}.captions.texts")
    if captions.policy is not CaptionPolicy.FILES:
        idle |= {f"{path}.captions.kept", f"{path}.captions.keep"}
    elif captions.kept is Policy.ALL and not captions.keep:
        idle.add(f"{path}.captions.keep")
    if training.captions.policy is CaptionPolicy.EMPTY:
        idle |= {f"{path}.captions.{name}" for name in ("shuffle", "keep_tokens", "dropout")}
    elif not training.captions.shuffle:
        idle.add(f"{path}.captions.keep_tokens")
    if training.loss_weighting is not LossWeighting.MIN_SNR:
        idle.add(f"{path}.min_snr_gamma")
    if not training.conv_rank:
        idle.add(f"{path}.conv_alpha")
    # A value that the trainer does not have stays in sight until it is taken out.
    if recipe.trainer is not Trainer.SD_SCRIPTS:
        unused = {"optimiser_arguments", "fp8_base"} - set(training.of_sd_scripts_only)
        idle |= {f"{path}.{name}" for name in unused}
    elif not stage.concept.by_text:
        idle |= {f"{path}.target"} - {f"{path}.{name}" for name in training.of_builtin_only}
        idle.add("train.concept.action")
    if not training.pair_mask:
        idle.add(f"{path}.mask_margin")
    if training.target is not Target.SEMANTIC:
        idle.add(f"{path}.eta")
    if not stage.check_every:
        idle |= {"train.check_pictures", "train.check_sampling_steps"}
    return idle | _idle_by_pictures(recipe, stage) | _idle_by_text(stage)


def _idle_by_pictures(recipe: Recipe, stage: TrainStage) -> set[str]:
    """What needs both pictures of a pair, of a training on originals; what needs a gate, of one without."""
    if stage.concept.by_text:
        return set()
    idle = set()
    if not recipe.original_of(stage.pictures):
        of_pairs = {"target", "pair_mask"} - set(stage.training.of_pairs)
        idle = {f"train.training.{name}" for name in of_pairs}
    gated = any(isinstance(one, GateStage) and one.lora == stage.name for one in recipe.stages)
    if not stage.check_every and (recipe.original_of(stage.pictures) or not gated):
        idle.add("train.check_every")
    return idle


def _idle_by_text(stage: TrainStage) -> set[str]:
    """What matters of a concept only, or of pictures only."""
    if not stage.concept.by_text:
        return {path for path in paths_of("train") if path.startswith("train.concept.")} - {
            "train.concept.action"
        }
    training = {f"train.training.{name}" for name in OF_PICTURES}
    training |= {path for path in paths_of("train") if path.startswith("train.training.captions.")}
    moved = stage.concept.action is ConceptAction.MOVE
    return training | {"train.pictures", "train.check_every", *(("train.concept.neutral",) if moved else ())}


def _rank_policies(stage: StageSpec) -> list[tuple[RankPolicy, str]]:
    ranks = getattr(stage, "ranks", None)
    return [(ranks, f"{kind_of(stage)}.ranks")] if ranks is not None else []


def _idle_in_ranks(ranks: RankPolicy) -> set[str]:
    if ranks.method is RankMethod.EXACT:
        return {"rank", "conv_rank", "threshold"}
    return {"threshold"} if ranks.method is RankMethod.RANK else set()


def has_several_trainings(recipe: Recipe) -> bool:
    """Whether there is something to be made the same."""
    return len(tuple(recipe.trainings())) > 1


def reads_captions(recipe: Recipe) -> bool:
    """Whether a training reads caption files."""
    return any(one.training.captions.policy is CaptionPolicy.FILES for one in recipe.trainings())


def with_caption_files(recipe: Recipe) -> Recipe:
    """``recipe`` with all trainings reading caption files; as it is where one does already."""
    if reads_captions(recipe):
        return recipe
    stages = tuple(_reading_files(one) if isinstance(one, TrainStage) else one for one in recipe.stages)
    return replace(recipe, stages=stages)


def _reading_files(stage: TrainStage) -> TrainStage:
    captions = replace(stage.training.captions, policy=CaptionPolicy.FILES, texts=())
    return replace(stage, training=replace(stage.training, captions=captions))


def with_all_trainings(recipe: Recipe, stage: str) -> Recipe:
    """``recipe`` with the essential numbers of its training ``stage`` in all its trainings."""
    chosen = recipe.stage(stage)
    if not isinstance(chosen, TrainStage):
        return recipe
    numbers = {name: getattr(chosen.training, name) for name in EVERY_TRAINING}
    stages = tuple(
        replace(one, training=replace(one.training, **numbers)) if isinstance(one, TrainStage) else one
        for one in recipe.stages
    )
    return replace(recipe, stages=stages)
