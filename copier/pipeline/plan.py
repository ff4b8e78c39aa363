"""From a request to its stages: pure, and the same for ``--dry-run`` and for the run.

A planned stage has a key: the digest of everything its outcome depends on (its kind and version, its
numbers, the digests of the files it reads and the keys of the stages it needs). Equal keys mean
equal outcomes, so the store may give back an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from copier.captioning import CAPTION_ENDING
from copier.codec import spec_to_json
from copier.digest import json_digest
from copier.errors import BadInput
from copier.fields import LARGEST_SEED
from copier.images.effects import effect_parameters
from copier.model_options import ModelOptions
from copier.recipe import (
    BaseLora,
    CaptionPolicy,
    CombineStage,
    DifferenceStage,
    EvaluateStage,
    FileStage,
    GateStage,
    PictureSet,
    Precision,
    Recipe,
    ResizeStage,
    StageSpec,
    SumRoute,
    TrainingSpec,
    TrainStage,
)
from copier.request import Edit, Fit, Generated, PictureFiles, RunRequest

VERSIONS = {
    "original": 2,
    "edited": 2,
    "derived": 1,
    "file": 1,
    "train": 1,
    "draw": 1,
    "gate": 1,
    "closeness": 1,
    "difference": 1,
    "combine": 1,
    "resize": 1,
    "evaluate": 1,
}
"""Kinds of planned stages; a number rises when the kind's outcome changes for equal ingredients."""

LATER_FIELDS = ("optimiser_arguments", "fp8_base", "masked_loss", "pair_mask", "mask_margin", "target", "eta")
"""Fields of a training that are younger than the keys in people's caches.

With its default such a field is left out of the key, which is then the one that the training always had.
"""

CHECK_SEEDS = 500_000
"""Added to the gate's seeds for the pictures of a check that draws its own."""

SMALLEST_SIDE = 128
"""Side of a generated original where neither the request nor the recipe says one, in pixels."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage to run or to restore.

    ``needs`` names the planned stages whose files it reads, by role; ``ingredients`` is all that
    ``key`` was made from; ``spec`` is the recipe's stage, None for what the plan added itself.
    """

    name: str
    kind: str
    key: str
    ingredients: Mapping[str, Any]
    needs: Mapping[str, str]
    spec: StageSpec | None = None


@dataclass(frozen=True)
class Draws:
    """The pictures of one ``draw`` stage: prompts and seeds in pairs, LoRAs beneath, weights of one.

    ``like`` is the set of originals whose size they have; ``loras`` are (planned stage, weight) merged
    at every weight; ``strip`` the planned stage whose LoRA is weighted by each of ``weights``, or "" for
    none.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    guidance: tuple[float, ...]
    steps: int
    like: str
    loras: tuple[tuple[str, float], ...] = ()
    strip: str = ""
    weights: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class Plan:
    """The stages of a request, in an order in which they can run.

    ``draws`` says what each stage of the kind ``draw`` draws, by name; ``changed`` are the sets of
    pictures that are changes of others; ``checkpoint`` is the checkpoint's SHA-256.
    """

    stages: tuple[PlannedStage, ...]
    draws: Mapping[str, Draws]
    changed: tuple[str, ...] = ()
    checkpoint: str = ""

    def __getitem__(self, name: str) -> PlannedStage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def depends_on(self, name: str, other: str) -> bool:
        """Whether the stage ``name`` is, or directly or indirectly needs, the stage ``other``."""
        return name == other or any(self.depends_on(need, other) for need in self[name].needs.values())

    def depends_on_change(self, name: str) -> bool:
        """Whether the stage ``name`` is, or directly or indirectly needs, a changed set of pictures."""
        return any(self.depends_on(name, changed) for changed in self.changed)


def paired(prompts: tuple[str, ...], seeds: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """Prompts and seeds in turn: as many pairs as the longer one has members."""
    count = max(len(prompts), len(seeds))
    return tuple((prompts[i % len(prompts)], seeds[i % len(seeds)]) for i in range(count))


def plan(request: RunRequest, digest: Callable[[Path], str], *, engine: str = "") -> Plan:
    """The stages of ``request``; ``digest`` gives the SHA-256 of a file.

    ``engine`` is what else of the trainer's installation changes the outcome, "" for the usual one. Nothing
    is written, and the answer depends on nothing but these and the request's files.

    Raises:
        OSError: a file of the request cannot be read.
        BadInput: there is no such edit, or it does not take its parameters.
    """
    builder = _Builder(request, digest, engine)
    for pictures in request.recipe.pictures:
        builder.pictures(pictures)
    # LoRA files first: a damaged one costs no training.
    for stage in sorted(request.recipe.stages, key=lambda stage: not isinstance(stage, FileStage)):
        builder.add(stage)
    changed = tuple(one.name for one in request.recipe.changed)
    return Plan(tuple(builder.stages.values()), builder.draws, changed, builder.checkpoint)


def original_side(recipe: Recipe, generated: Generated) -> int:
    """Side in pixels of a generated original."""
    largest = max((stage.training.resolution for stage in recipe.trainings()), default=0)
    return generated.size or largest or SMALLEST_SIDE


def drawing_precision(recipe: Recipe) -> Precision:
    """Number format in which pictures are drawn and reconstructed: that of the first training.

    So the worker need not load the checkpoint again between training and drawing. A generated
    original is drawn in fp32 all the same: no number of a training may change it.
    """
    return next((stage.training.precision for stage in recipe.trainings()), Precision.FP32)


class _Builder:
    """Gathers the planned stages; each method adds the stages that one part of the request needs."""

    def __init__(self, request: RunRequest, digest: Callable[[Path], str], engine: str) -> None:
        self.request = request
        self.digest = digest
        self.engine = engine
        self.checkpoint = digest(request.checkpoint)
        # What a stage that draws or reconstructs depends on, besides its own numbers.
        self.model = {
            "checkpoint": self.checkpoint,
            "precision": drawing_precision(request.recipe).value,
            **_model_numbers(request.model, digest),
        }
        self.stages: dict[str, PlannedStage] = {}
        self.draws: dict[str, Draws] = {}

    def pictures(self, spec: PictureSet) -> None:
        """Add the stage that draws, makes or takes over a set of pictures."""
        if spec.part_of:
            names = ("number", "views", "nearest", "views_seed") if spec.views else ("number",)
            made = {name: getattr(spec, name) for name in names}
            self._put(spec.name, "derived", made, {"set": spec.part_of})
            return
        source = self.request.pictures[spec.name]
        kind = "edited" if spec.of else "original"
        masks = {"masks": True} if _masked(self.request, spec) else {}
        if isinstance(source, PictureFiles):
            fit = {} if source.fit is Fit.NONE else {"fit": source.fit.value}
            files = [self.digest(path) for path in source.paths]
            self._put(spec.name, kind, {"files": files, **fit, **masks})
        elif isinstance(source, Edit):
            self._put(spec.name, kind, {**_edit_numbers(source), **masks}, {"a": spec.of})
        else:
            numbers = {
                "checkpoint": self.checkpoint,
                "prompt": source.prompt,
                "seed": source.seed,
                "steps": source.steps,
                "guidance": source.guidance,
                "side": original_side(self.request.recipe, source),
                **_model_numbers(self.request.model, self.digest),
            }
            self._put(spec.name, kind, numbers)

    def add(self, stage: StageSpec) -> None:
        """Add a stage of the recipe, with those that draw what it measures."""
        if isinstance(stage, FileStage):
            self._put(stage.name, "file", {"file": self.digest(self.request.loras[stage.name])}, spec=stage)
        elif isinstance(stage, TrainStage):
            self._train(stage)
        elif isinstance(stage, GateStage):
            self._gate(stage)
        elif isinstance(stage, DifferenceStage):
            needs = {"minuend": stage.minuend, "subtrahend": stage.subtrahend}
            self._put(stage.name, "difference", _without(spec_to_json(stage), *needs), needs, stage)
        elif isinstance(stage, CombineStage):
            needs = {f"lora{i}": term.lora for i, term in enumerate(stage.terms)}
            numbers = {
                "weights": list(stage.weights),
                "ranks": spec_to_json(stage.ranks),
            }
            if stage.route is not SumRoute.FACTORS:
                numbers |= {"route": stage.route.value, "checkpoint": self.checkpoint}
            self._put(stage.name, "combine", numbers, needs, stage)
        elif isinstance(stage, ResizeStage):
            needs = {"lora": stage.lora}
            self._put(stage.name, "resize", _without(spec_to_json(stage), *needs), needs, stage)
        else:
            self._evaluate(stage)

    def _train(self, stage: TrainStage) -> None:
        needs = {"set": stage.pictures} if stage.pictures else {}
        needs |= _base_needs(stage.base)
        if stage.training.of_pairs:
            needs["original"] = self.request.recipe.original_of(stage.pictures)
        if stage.start:
            needs["start"] = stage.start
        numbers: dict[str, Any] = {
            "trainer": self.request.recipe.trainer.value,
            "checkpoint": self.checkpoint,
            "training": _training_numbers(stage.training),
            "multipliers": [base.multiplier for base in stage.base],
            **_model_numbers(self.request.model, self.digest),
        }
        if self.engine:
            numbers["engine"] = self.engine
        if self.request.scripts.extra:
            # Not as they are: they may hold what is to stay out of files.
            numbers["extra"] = json_digest(list(self.request.scripts.extra))
        if stage.check_every:
            gate = self.request.recipe.gate_of(stage)
            needs["base_pictures"] = self._check_draws(stage, gate)
            numbers["check"] = {"every": stage.check_every, "seeds": list(gate.seeds), **_limits(gate)}
        if stage.concept.by_text:
            numbers |= {"concept": spec_to_json(stage.concept), "side": stage.training.resolution}
        captions = caption_texts(self.request, stage)
        if any(captions):
            numbers["captions"] = list(captions)
        self._put(stage.name, "train", numbers, needs, stage)

    def _gate(self, stage: GateStage) -> None:
        original = self.request.recipe.original_of(stage.pictures)
        common = self._gate_draws(stage)
        drawn = self._draw(f"{stage.name}.pictures", common, loras=stage.merged)
        limits = _limits(stage)
        needs = {"pictures": drawn, "set": stage.pictures}
        if original:
            needs |= {"a": original}
            self._put(stage.name, "closeness", {**self.model, **limits}, needs, stage)
        else:
            needs |= {"base": self._draw(f"{stage.name}.base", common)}
            self._put(stage.name, "gate", {**self.model, **limits}, needs, stage)

    def _check_draws(self, stage: TrainStage, gate: GateStage) -> str:
        """The base's pictures for the checks on the way; those of the gate, unless the stage asks for fewer.

        The fewer have seeds of their own: what ends a training must not be what judges it.
        """
        common = self._gate_draws(gate)
        steps = stage.check_sampling_steps or gate.sampling_steps
        count = stage.check_pictures
        if (count, steps) == (0, gate.sampling_steps):
            return self._draw(f"{gate.name}.base", common)
        places = range(count or len(common.prompts))
        seeds = tuple(common.seeds[i % len(common.seeds)] + CHECK_SEEDS for i in places)
        return self._draw(
            f"{stage.name}.base",
            replace(
                common,
                prompts=tuple(common.prompts[i % len(common.prompts)] for i in places),
                seeds=tuple(seed % LARGEST_SEED for seed in seeds),
                guidance=tuple(common.guidance[i % len(common.guidance)] for i in places),
                steps=steps,
            ),
        )

    def _gate_draws(self, stage: GateStage) -> Draws:
        original = self.request.recipe.original_of(stage.pictures)
        return _common_draws(stage, (1.0, stage.guidance), original or stage.pictures)

    def _evaluate(self, stage: EvaluateStage) -> None:
        original = self.request.recipe.original_of(stage.pictures)
        common = _common_draws(stage, (stage.guidance,), original)
        base = self._draw(f"{stage.name}.base", common)
        needs = {"base": base, "a": original, "b": stage.pictures}
        for role, lora in (("lora", stage.lora), ("control", stage.control)):
            if lora:
                name = f"{stage.name}.{role}"
                needs[role] = self._draw(name, common, strip=lora, weights=stage.weights)
        edit = self.request.edit_of(stage.pictures)
        copier = self._copier(original)
        if edit is None and copier is not None:
            # What the edit makes of other pictures is not known: it is measured on A, which the copier draws.
            name, weights = f"{stage.name}.original", tuple(sorted({0.0, *stage.weights}))
            needs["original"] = self._draw(
                name, common, loras=copier.merged, strip=stage.lora, weights=weights
            )
        numbers: dict[str, Any] = {**self.model, "floor": stage.floor}
        if edit is not None:
            numbers |= _edit_numbers(edit)
        self._put(stage.name, "evaluate", numbers, needs, stage)

    def _copier(self, original: str) -> GateStage | None:
        """The gate, planned already, of the LoRA that draws the set ``original``; None without one."""
        gates = (stage for stage in self.request.recipe.stages if isinstance(stage, GateStage))
        planned = (gate for gate in gates if gate.name in self.stages)
        return next((gate for gate in planned if gate.pictures == original), None)

    def _draw(
        self,
        name: str,
        common: Draws,
        *,
        loras: tuple[tuple[str, float], ...] = (),
        strip: str = "",
        weights: tuple[float, ...] = (0.0,),
    ) -> str:
        draws = replace(common, loras=loras, strip=strip, weights=weights)
        needs = {"like": draws.like, **{f"lora{i}": lora for i, (lora, _) in enumerate(loras)}}
        if strip:
            needs["strip"] = strip
        numbers = {
            **self.model,
            "prompts": list(draws.prompts),
            "seeds": list(draws.seeds),
            "guidance": list(draws.guidance),
            "steps": draws.steps,
            "multipliers": [weight for _, weight in loras],
            "weights": list(weights),
        }
        like = self.request.pictures.get(draws.like)
        if isinstance(like, Generated):
            # Only the size of the originals matters here, and a generated one's is known.
            numbers["side"] = original_side(self.request.recipe, like)
            del needs["like"]
        self._put(name, "draw", numbers, needs)
        self.draws[name] = draws
        return name

    def _put(
        self,
        name: str,
        kind: str,
        numbers: Mapping[str, Any],
        needs: Mapping[str, str] | None = None,
        spec: StageSpec | None = None,
    ) -> None:
        needs = dict(needs or {})
        ingredients = {
            "kind": kind,
            "version": VERSIONS[kind],
            **_without(numbers, "name", "kind"),
            "needs": {role: self.stages[other].key for role, other in needs.items()},
        }
        key = json_digest(ingredients)
        self.stages[name] = PlannedStage(name, kind, key, ingredients, needs, spec)


def _masked(request: RunRequest, spec: PictureSet) -> bool:
    """Whether a training asks for the masks of this set, or of one that an edit makes from it."""
    if request.files_of(spec.name) is None:
        return False  # what is drawn has none
    names = {spec.name, *(one.name for one in request.recipe.pictures if one.of == spec.name)}
    return any(
        stage.training.masked_loss and request.recipe.given_for(stage.pictures) in names
        for stage in request.recipe.trainings()
    )


def _model_numbers(model: ModelOptions, digest: Callable[[Path], str]) -> dict[str, Any]:
    """What differs from the defaults: without it the keys are those that people have in their caches."""
    default = ModelOptions()
    numbers: dict[str, Any] = {}
    if model.vae is not None:
        numbers["vae"] = digest(model.vae)
    for name in ("clip_skip", "prediction", "zero_terminal_snr"):
        if getattr(model, name) != getattr(default, name):
            numbers[name] = getattr(model, name)
    return numbers


def _training_numbers(training: TrainingSpec) -> dict[str, Any]:
    same = set(LATER_FIELDS).difference(training.other_than_default(*LATER_FIELDS))
    numbers = _without(spec_to_json(training), *same)
    # What captions keep shows in their texts, which are in the key; leaving them away is a later field.
    later = [] if training.captions.dropout else ["dropout"]
    return {**numbers, "captions": _without(numbers["captions"], "kept", "keep", *later)}


def caption_texts(request: RunRequest, stage: TrainStage) -> tuple[str, ...]:
    """What the stage is told of each picture, for the caption policy ``files``; else nothing.

    A caption file that is not there counts as an empty one.

    Raises:
        BadInput: a caption file cannot be read.
    """
    files = caption_files(request, stage)
    texts = ["" if path is None else read_captions(path) for path in files]
    return tuple(stage.training.captions.reduced(texts))


def caption_files(request: RunRequest, stage: TrainStage) -> tuple[Path | None, ...]:
    """The caption files of the stage's pictures, for the caption policy ``files``; else nothing.

    Each has the picture's name and the ending ``.txt``, beside the picture or in the request's folder: there
    in the folder that has the name of the set, or of its original, where there is one. An edited picture
    takes that of its original; None where there is none, and the caption is empty.
    """
    places = caption_places(request, stage)
    return tuple(path if path is not None and path.is_file() else None for path in places)


def read_captions(path: Path) -> str:
    """The text of a caption file, UTF-8 with or without a byte order mark.

    Raises:
        BadInput: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the caption file {path} cannot be read ({error}): save it as UTF-8 text") from error


def caption_places(request: RunRequest, stage: TrainStage) -> tuple[Path | None, ...]:
    """Where the caption file of each picture is looked for, whether it is there or not.

    None for a generated original, which has no name; nothing for another caption policy.
    """
    if stage.training.captions.policy is not CaptionPolicy.FILES:
        return ()
    files = request.files_of(stage.pictures)
    if files is None:
        return (None,) * request.count_of(stage.pictures)
    given = request.recipe.given_for(stage.pictures)
    names = (given, request.recipe.original_of(given))
    folder = request.captions and caption_folder(request.captions, *filter(None, names))
    return tuple((folder or path.parent) / f"{path.stem}{CAPTION_ENDING}" for path in files.paths)


def caption_folder(folder: Path, *names: str) -> Path:
    """Where in a folder of captions those of a set are: in the first folder of one of its ``names``, if any.

    Two sets may have pictures of the same names.
    """
    own = (folder / name for name in names)
    return next((one for one in own if one.is_dir()), folder)


def _common_draws(stage: GateStage | EvaluateStage, guidance: tuple[float, ...], like: str) -> Draws:
    """The checkpoint's own pictures for the stage; ``guidance`` alternates from picture to picture."""
    pairs = paired(stage.prompts, stage.seeds)
    return Draws(
        prompts=tuple(prompt for prompt, _ in pairs),
        seeds=tuple(seed for _, seed in pairs),
        guidance=tuple(guidance[i % len(guidance)] for i in range(len(pairs))),
        steps=stage.sampling_steps,
        like=like,
    )


def _limits(stage: GateStage) -> dict[str, float]:
    return {
        "median_limit": stage.median_limit,
        "single_limit": stage.single_limit,
        "share": stage.share,
    }


def _edit_numbers(edit: Edit) -> dict[str, Any]:
    """The edit with all its parameters: a default that changes is another edit."""
    return {"edit": edit.name, "parameters": effect_parameters(edit.name, edit.parameters)}


def _base_needs(base: tuple[BaseLora, ...]) -> dict[str, str]:
    return {f"base{i}": one.lora for i, one in enumerate(base)}


def _without(data: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}
