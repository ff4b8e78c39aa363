"""A recipe: the whole method as a value, a small graph of stages with all their numbers.

Every spec is frozen and checks itself when it is made (bounds come from ``copier.fields``). A stage
refers to an earlier one by its name, so that a new variant of the method is a new file of data.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum

from copier import fields as field_table
from copier.captioning import Policy, captions_by
from copier.errors import BadInput, UnknownName


class CaptionPolicy(str, Enum):
    """Where the training prompts come from."""

    EMPTY = "empty"
    FIXED = "fixed"
    VARIED = "varied"
    FILES = "files"


class Optimiser(str, Enum):
    """Optimisers that both trainers know."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw8bit"


class Schedule(str, Enum):
    """How the learning rate goes after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"


class LossWeighting(str, Enum):
    """Weights of the timesteps: min-SNR (Hang et al. 2023) or debiased, as sd-scripts has them."""

    NONE = "none"
    MIN_SNR = "min_snr"
    DEBIASED = "debiased"


class Target(str, Enum):
    """What a training on pictures should predict (``copier.training.objectives`` has the formulas).

    ``noise``: the noise of its pictures, the ordinary training. ``pair``: that of the changed picture at
    weight +1 and that of its original at -1, as image sliders do (Gandikota et al. 2023, arXiv 2311.12092).
    ``semantic``: on the original noise + eta (A - B), as PairEdit does (Lu et al. 2025, arXiv 2506.07992).
    """

    NOISE = "noise"
    PAIR = "pair"
    SEMANTIC = "semantic"


class ConceptAction(str, Enum):
    """What a training by text alone does to a concept; ``none``: it is one on pictures."""

    NONE = "none"
    ERASE = "erase"
    ENHANCE = "enhance"
    MOVE = "move"


class Precision(str, Enum):
    """Number format of the frozen weights; the LoRA itself is always trained in float32."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class RankMethod(str, Enum):
    """How the rank of a sum of LoRAs, or of a resized one, is chosen."""

    EXACT = "exact"
    RANK = "rank"
    SV_RATIO = "sv_ratio"
    SV_FRO = "sv_fro"
    SV_CUMULATIVE = "sv_cumulative"


class SumRoute(str, Enum):
    """How LoRAs are added: their factors, or by a checkpoint that has all of them, in that number format."""

    FACTORS = "factors"
    CHECKPOINT_FP32 = "checkpoint-fp32"
    CHECKPOINT_FP16 = "checkpoint-fp16"


class Trainer(str, Enum):
    """Who trains: our own child process, or kohya's sd-scripts."""

    BUILTIN = "builtin"
    SD_SCRIPTS = "sd-scripts"


class Spec:
    """Base of all specs: checks every field against the field table when made."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            field_table.check(self, field.name, getattr(self, field.name))
        self._check()

    def _check(self) -> None:
        """What concerns more than one field."""


@dataclass(frozen=True)
class CaptionSpec(Spec):
    """The prompts of a training."""

    policy: CaptionPolicy = CaptionPolicy.EMPTY
    texts: tuple[str, ...] = ()
    shuffle: bool = False
    keep_tokens: int = 0
    dropout: float = 0.0
    kept: Policy = Policy.ALL
    keep: tuple[str, ...] = ()

    def _check(self) -> None:
        count = len(self.texts)
        if self.policy is CaptionPolicy.FIXED and count != 1:
            raise BadInput(f"the caption policy 'fixed' has {count} texts: give exactly one")
        if self.policy is CaptionPolicy.VARIED and count < 2:
            raise BadInput(
                f"the caption policy 'varied' has {count} texts: give two or more, both at once, as in "
                """training.captions={"policy": "varied", "texts": ["one", "two"]}"""
            )
        if self.policy in (CaptionPolicy.EMPTY, CaptionPolicy.FILES) and count:
            raise BadInput(
                f"the caption policy {self.policy.value!r} takes no texts, but {count} are given: set both "
                """at once, as in training.captions={"policy": "empty"}"""
            )
        self.reduced(())

    def reduced(self, texts: Sequence[str]) -> list[str]:
        """What training is told of the ``texts`` of a set's caption files (``captioning.captions_by``)."""
        return captions_by(self.kept, texts, self.keep or None)


_OWN_ARGUMENTS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Arguments of optimisers that are fields of a training."""


@dataclass(frozen=True)
class TrainingSpec(Spec):
    """One LoRA training. The defaults are those of the beginner's article (copier-quick)."""

    steps: int = 500
    batch_size: int = 1
    learning_rate: float = 1e-3
    rank: int = 16
    alpha: float = 16.0
    conv_rank: int = 0
    conv_alpha: float = 1.0
    text_encoder: bool = False
    optimiser: Optimiser = Optimiser.ADAMW_8BIT
    optimiser_arguments: tuple[str, ...] = ()
    weight_decay: float = 0.01
    schedule: Schedule = Schedule.COSINE
    warmup_steps: int = 0
    captions: CaptionSpec = CaptionSpec()
    loss_weighting: LossWeighting = LossWeighting.NONE
    min_snr_gamma: float = 5.0
    noise_offset: float = 0.0
    min_timestep: int = 0
    max_timestep: int = 1000
    resolution: int = 512
    precision: Precision = Precision.FP32
    fp8_base: bool = False
    gradient_checkpointing: bool = False
    masked_loss: bool = False
    pair_mask: bool = False
    mask_margin: int = 8
    target: Target = Target.NOISE
    eta: float = 1.0
    seed: int = 1

    def _check(self) -> None:
        if self.min_timestep >= self.max_timestep:
            raise BadInput(
                f"min_timestep is {self.min_timestep}: it must be below max_timestep, "
                f"which is {self.max_timestep}"
            )
        if self.warmup_steps > self.steps:
            raise BadInput(f"warmup_steps is {self.warmup_steps}: at most the number of steps, {self.steps}")
        if self.resolution % 64:
            raise BadInput(
                f"resolution is {self.resolution}: it must be a multiple of 64, or 0 for the "
                "picture's own size"
            )
        if self.fp8_base and self.precision is Precision.FP32:
            raise BadInput("fp8_base is for a precision of fp16 or bf16, but it is fp32: first set that one")
        if self.masked_loss and self.pair_mask:
            raise BadInput(
                "masked_loss and pair_mask are both set: choose the pictures' own masks, or what differs "
                "between the pictures of a pair"
            )
        for argument in self.optimiser_arguments:
            _check_argument(argument)

    @property
    def masked(self) -> bool:
        """Whether the loss counts by a mask, whatever it is made of."""
        return self.masked_loss or self.pair_mask

    @property
    def of_pairs(self) -> tuple[str, ...]:
        """The fields that ask for the originals of the pictures that are trained on."""
        wanted = {"pair_mask": self.pair_mask, "target": self.target is not Target.NOISE}
        return tuple(name for name, asked in wanted.items() if asked)

    def other_than_default(self, *names: str) -> tuple[str, ...]:
        """Those of the fields ``names`` whose values are not the default ones."""
        default = TrainingSpec()
        return tuple(name for name in names if getattr(self, name) != getattr(default, name))

    @property
    def of_sd_scripts_only(self) -> tuple[str, ...]:
        """The fields, among those that differ from their default, that the builtin trainer does not have."""
        return self.other_than_default("optimiser_arguments", "fp8_base")

    @property
    def of_builtin_only(self) -> tuple[str, ...]:
        """The fields, among those that differ from their default, that sd-scripts does not have."""
        return self.other_than_default("target")


def _check_argument(argument: str) -> None:
    """A name and numbers. No texts: in a recipe from elsewhere they could name files or modules."""
    name, _, text = argument.partition("=")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    values = value if isinstance(value, tuple) else (value,)
    plain = all(one is None or isinstance(one, (bool, int, float)) for one in values)
    if not (plain and name.isidentifier()):
        raise BadInput(
            f"the optimiser's argument {argument!r} is not understood: write name=value with a number, a "
            "tuple of numbers, True, False or None, as in betas=(0.9,0.99)"
        )
    if name in _OWN_ARGUMENTS:
        raise BadInput(f"the optimiser's argument {argument!r} is a field: set {_OWN_ARGUMENTS[name]}")


CONTEXT_PLACE = "{}"
"""Where a context has the concept's prompt."""

OF_PICTURES = ("captions", "masked_loss", "pair_mask", "target", "noise_offset", "text_encoder")
"""Fields of a training that mean nothing where it is by text alone."""


@dataclass(frozen=True)
class ConceptSpec(Spec):
    """A concept that a training changes by its prompts alone, on the checkpoint's own predictions.

    ``copier.training.concept`` has the formulas, which are those of ESD (Gandikota et al. 2023, arXiv
    2303.07345) and LECO. ``contexts`` are frames for the prompts, another one at every step.
    """

    action: ConceptAction = ConceptAction.NONE
    target: str = ""
    positive: str = ""
    neutral: str = ""
    contexts: tuple[str, ...] = (CONTEXT_PLACE,)
    guidance: float = 1.0
    sampling_steps: int = 20
    drawing_guidance: float = 3.0

    def _check(self) -> None:
        for context in self.contexts:
            if context.count(CONTEXT_PLACE) != 1:
                raise BadInput(
                    f"the context {context!r} must have {CONTEXT_PLACE} once, where the concept's prompt "
                    "goes, as in '{} on white background'"
                )
        if self.by_text and not self.leading:
            raise BadInput(
                f"there is no prompt of a concept to {self.action.value}: set concept.target, or "
                "concept.positive"
            )
        if self.action is ConceptAction.MOVE and self.target == self.leading:
            raise BadInput(
                f"the concept {self.target!r} is to be moved to itself: set target to what is asked for, and "
                "positive to what is drawn instead"
            )

    @property
    def by_text(self) -> bool:
        """Whether the training is by text alone."""
        return self.action is not ConceptAction.NONE

    @property
    def leading(self) -> str:
        """The prompt whose concept is added or taken away: ``positive``, or without one ``target``."""
        return self.positive or self.target

    def in_contexts(self, prompt: str) -> tuple[str, ...]:
        """``prompt`` in each of the contexts."""
        return tuple(context.replace(CONTEXT_PLACE, prompt).strip() for context in self.contexts)


@dataclass(frozen=True)
class RankPolicy(Spec):
    """How far a LoRA is truncated."""

    method: RankMethod = RankMethod.RANK
    rank: int = 8
    conv_rank: int = 0
    threshold: float = 0.0

    def _check(self) -> None:
        if self.method in (RankMethod.SV_FRO, RankMethod.SV_CUMULATIVE) and not 0.0 < self.threshold <= 1.0:
            name = self.method.value
            raise BadInput(
                f"the threshold of {name} is {self.threshold:g}: first set it above 0, at most to 1"
            )
        if self.method is RankMethod.SV_RATIO and self.threshold < 1.0:
            raise BadInput(f"the threshold of sv_ratio is {self.threshold:g}: first set it to 1 or more")


@dataclass(frozen=True)
class PictureSet(Spec):
    """One or more pictures that a run is given, or draws, or makes from another set, under this name.

    ``of`` names the set whose pictures these are with one thing changed, one for one. With ``part_of`` they
    are made from that set: its picture of the ``number``, counted from 1 (0: all of them), and of each as
    many ``views``, crops and zooms that keep at least the share ``nearest`` of its sides
    (``copier.images.framing``); 0 takes it as it is. Each picture of a set ``one_by_one`` goes through the
    stages by itself (``copier.expansion``).
    """

    name: str
    of: str = ""
    part_of: str = ""
    number: int = 0
    views: int = 0
    nearest: float = 0.5
    views_seed: int = 1
    one_by_one: bool = False

    @property
    def making(self) -> tuple[int, int, float, int]:
        """How it is made from ``part_of``: the same for the two sets of pairs."""
        return self.number, self.views, self.nearest, self.views_seed


@dataclass(frozen=True)
class BaseLora(Spec):
    """A LoRA merged into the checkpoint, in memory, before a training."""

    lora: str
    multiplier: float = 1.0


@dataclass(frozen=True)
class WeightedLora(Spec):
    """One term of a sum of LoRAs."""

    lora: str
    weight: float = 1.0


@dataclass(frozen=True)
class FileStage(Spec):
    """A LoRA file that a run is given under this name."""

    name: str

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return ()


@dataclass(frozen=True)
class TrainStage(Spec):
    """Train a LoRA on a set of pictures, or on a concept's prompts alone.

    ``check_pictures`` and ``check_sampling_steps`` are what a check on the way draws, 0 as the gate does.
    """

    name: str
    pictures: str = ""
    base: tuple[BaseLora, ...] = ()
    start: str = ""
    training: TrainingSpec = TrainingSpec()
    check_every: int = 0
    check_pictures: int = 0
    check_sampling_steps: int = 0
    concept: ConceptSpec = ConceptSpec()

    def _check(self) -> None:
        if not self.concept.by_text:
            if not self.pictures:
                raise BadInput(
                    f"the training {self.name!r} has neither pictures nor a concept: name a set of pictures, "
                    "or set concept.action"
                )
            return
        if self.pictures:
            raise BadInput(
                f"the training {self.name!r} is to {self.concept.action.value} a concept by text alone, but "
                f"has the pictures {self.pictures!r}: leave one of the two out"
            )
        names = self.training.other_than_default(*OF_PICTURES)
        if names:
            raise BadInput(
                f"the training {self.name!r} is by text alone and sets {', '.join(names)}, which "
                "means nothing without pictures: leave it out"
            )
        if not self.training.resolution:
            raise BadInput(
                f"the training {self.name!r} is by text alone and has the resolution 0, the pictures' own: "
                "set the side in pixels that it draws"
            )

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return (*(base.lora for base in self.base), *((self.start,) if self.start else ()))


@dataclass(frozen=True)
class GateStage(Spec):
    """Is it a picture of the set every time? Distances over prompts and seeds that training never saw.

    Of a set of originals they are in units of what the base draws, of a changed one in units of the
    change (``copier.evaluation.gate``).
    """

    name: str
    lora: str
    prompts: tuple[str, ...]
    pictures: str = "a"
    base: tuple[BaseLora, ...] = ()
    seeds: tuple[int, ...] = tuple(range(1001, 1017))
    sampling_steps: int = 20
    guidance: float = 7.0
    median_limit: float = 0.2
    single_limit: float = 0.35
    share: float = 0.875

    @property
    def merged(self) -> tuple[tuple[str, float], ...]:
        """The stages whose LoRAs its pictures are drawn with, and their weights: base LoRAs, then its own."""
        return (*((base.lora, base.multiplier) for base in self.base), (self.lora, 1.0))

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return (*(base.lora for base in self.base), self.lora)


@dataclass(frozen=True)
class DifferenceStage(Spec):
    """minuend_ratio * B + subtrahend_ratio * A of two LoRAs."""

    name: str
    minuend: str
    subtrahend: str
    minuend_ratio: float = 1.0
    subtrahend_ratio: float = -1.0
    ranks: RankPolicy = RankPolicy()

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return (self.minuend, self.subtrahend)


@dataclass(frozen=True)
class CombineStage(Spec):
    """The weighted sum of any number of LoRAs; with ``average`` it is divided by their number.

    LoRAs the cosine of whose deltas is below ``agreement`` are reported: they do not make the same change.
    With -1 none is, for sums of LoRAs that need not.
    """

    name: str
    terms: tuple[WeightedLora, ...]
    ranks: RankPolicy = RankPolicy()
    average: bool = False
    route: SumRoute = SumRoute.FACTORS
    agreement: float = -1.0

    @property
    def weights(self) -> tuple[float, ...]:
        """With which each LoRA is added."""
        share = len(self.terms) if self.average else 1
        return tuple(term.weight / share for term in self.terms)

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return tuple(term.lora for term in self.terms)


@dataclass(frozen=True)
class ResizeStage(Spec):
    """The same LoRA at a lower rank."""

    name: str
    lora: str
    ranks: RankPolicy = RankPolicy()

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return (self.lora,)


@dataclass(frozen=True)
class EvaluateStage(Spec):
    """Weight strip, effect and leakage of a LoRA on the checkpoint, beside a control's.

    ``pictures`` is the changed set whose change the LoRA should make.
    """

    name: str
    lora: str
    prompts: tuple[str, ...]
    pictures: str = "b"
    control: str = ""
    seeds: tuple[int, ...] = tuple(range(2001, 2017))
    weights: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0, 1.5)
    sampling_steps: int = 20
    guidance: float = 4.0
    floor: float = 0.02

    def _check(self) -> None:
        if len({round(weight, 3) for weight in self.weights}) < len(self.weights):
            raise BadInput(
                f"the weights of {self.name!r} are {self.weights}: give each once (three decimals count)"
            )

    @property
    def references(self) -> tuple[str, ...]:
        """The stages whose LoRAs it needs."""
        return (self.lora, *((self.control,) if self.control else ()))


StageSpec = FileStage | TrainStage | GateStage | DifferenceStage | CombineStage | ResizeStage | EvaluateStage

STAGE_KINDS: dict[str, type[StageSpec]] = {
    "file": FileStage,
    "train": TrainStage,
    "gate": GateStage,
    "difference": DifferenceStage,
    "combine": CombineStage,
    "resize": ResizeStage,
    "evaluate": EvaluateStage,
}
"""The kinds of stages by the name that files use."""

LORA_STAGES = (FileStage, TrainStage, DifferenceStage, CombineStage, ResizeStage)
"""Stages whose outcome is a LoRA."""

PAIR = (PictureSet("a"), PictureSet("b", of="a"))
"""The pictures of most recipes: an original, and the same with one thing changed."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Recipe(Spec):
    """The method as a graph of stages; ``result`` names the stage whose LoRA is the outcome.

    What a run has to be given are the ``pictures``, and the LoRAs of the file stages.
    """

    name: str
    title: str
    stages: tuple[StageSpec, ...]
    result: str
    explanation: str = ""
    trainer: Trainer = Trainer.BUILTIN
    pictures: tuple[PictureSet, ...] = PAIR

    def _check(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadInput(f"the recipe's name is {self.name!r}: use letters, digits, '-' and '_' only")
        self._check_pictures()
        seen: dict[str, StageSpec] = {}
        for stage in self.stages:
            self._check_name(stage)
            if stage.name in seen:
                raise BadInput(f"two stages have the name {stage.name!r}: give each its own")
            _check_references(stage, seen)
            seen[stage.name] = stage
        if self.result not in seen:
            raise UnknownName("stage (the recipe's result)", self.result, seen)
        if not isinstance(seen[self.result], LORA_STAGES):
            raise BadInput(f"the recipe's result {self.result!r} is a stage that makes no LoRA")
        if isinstance(seen[self.result], FileStage):
            raise BadInput(
                f"the recipe's result {self.result!r} is the LoRA file itself: name a stage that makes a "
                "LoRA; `copier evaluate` measures a file"
            )
        self._check_prompts()
        self._check_trainer()
        for stage in self.trainings():
            if stage.check_every:
                self.gate_of(stage)
            if stage.training.of_pairs and not self.original_of(stage.pictures):
                raise BadInput(
                    f"the training {stage.name!r} sets {', '.join(stage.training.of_pairs)}, which needs "
                    f"both pictures of a pair, but {stage.pictures!r} are originals: set it for a training "
                    "on a changed set only"
                )

    def gate_of(self, stage: TrainStage) -> GateStage:
        """The gate by which a training ends early: on its LoRA, and on what it is trained on.

        Raises:
            BadInput: there is none.
        """
        wanted = (stage.name, stage.pictures, stage.base)
        for one in self.stages if not self.original_of(stage.pictures) else ():
            if isinstance(one, GateStage) and (one.lora, one.pictures, one.base) == wanted:
                return one
        raise BadInput(
            f"the training {stage.name!r} is to end when a gate holds (check_every {stage.check_every}), but "
            "the recipe has no gate for its LoRA on its originals: add one, or set check_every to 0"
        )

    def _check_trainer(self) -> None:
        for stage in self.trainings():
            if self.trainer is Trainer.BUILTIN:
                names, has_not = stage.training.of_sd_scripts_only, "the builtin trainer does not have"
                other = "sd-scripts (trainer=sd-scripts)"
            else:
                names, has_not = stage.training.of_builtin_only, "sd-scripts does not have"
                names += ("concept",) if stage.concept.by_text else ()
                other = "the builtin trainer (trainer=builtin)"
            if names:
                raise BadInput(
                    f"the training {stage.name!r} sets {', '.join(names)}, which {has_not}: leave it out, or "
                    f"train with {other}"
                )

    def _check_pictures(self) -> None:
        """Sets before those that are changes of them; every stage works on one that is there."""
        originals: set[str] = set()
        names: set[str] = set()
        for one in self.pictures:
            if not _NAME.fullmatch(one.name):
                raise BadInput(f"a set of pictures is called {one.name!r}: use letters, digits, '-' and '_'")
            if one.name.casefold() == "sheet":
                raise BadInput("a set of pictures is called 'sheet', like the report's: choose another name")
            if one.name in names:
                raise BadInput(f"two sets of pictures have the name {one.name!r}: give each its own")
            if one.of and one.of not in originals:
                raise UnknownName(f"earlier set of originals (needed by {one.name!r})", one.of, originals)
            _check_making(one)
            if one.part_of:
                self._check_part(one, names)
            names.add(one.name)
            if not one.of:
                originals.add(one.name)
        for stage in self.stages:
            if isinstance(stage, TrainStage) and stage.concept.by_text:
                continue
            if isinstance(stage, (TrainStage, GateStage)) and stage.pictures not in names:
                raise UnknownName(f"set of pictures (needed by {stage.name!r})", stage.pictures, names)
            changed, what = names - originals, f"changed set of pictures (needed by {stage.name!r})"
            if isinstance(stage, EvaluateStage) and stage.pictures not in changed:
                raise UnknownName(what, stage.pictures, changed)

    def _check_part(self, one: PictureSet, earlier: Collection[str]) -> None:
        """A set that is made from another one has the pairs of that one, made in the same way."""
        if one.part_of not in earlier:
            raise UnknownName(f"earlier set of pictures (needed by {one.name!r})", one.part_of, earlier)
        whole = self.picture_set(one.part_of)
        if whole.one_by_one:
            raise BadInput(
                f"the pictures {one.name!r} are made from {whole.name!r}, which goes one by one: give one up"
            )
        if bool(whole.of) != bool(one.of):
            raise BadInput(
                f"the pictures {one.name!r} are made from {whole.name!r}: they must be changes of a set if, "
                "and only if, that one is (of)"
            )
        if one.of:
            original = self.picture_set(one.of)
            if original.part_of != whole.of or original.making != one.making:
                raise BadInput(
                    f"the pictures {one.name!r} are made from {whole.name!r}, and must be pairs with "
                    f"{original.name!r}: make that one from {whole.of!r}, with the same number and views"
                )

    def _check_name(self, stage: StageSpec) -> None:
        """Stage names become names of files, and the first part of a --set path."""
        if not _NAME.fullmatch(stage.name):
            raise BadInput(f"a stage has the name {stage.name!r}: use letters, digits, '-' and '_' only")
        other_kinds = {kind for kind, spec in STAGE_KINDS.items() if not isinstance(stage, spec)}
        if stage.name in {*(one.name for one in self.pictures), "training", *other_kinds}:
            raise BadInput(f"a stage has the name {stage.name!r}, which means something else: choose another")

    def _check_prompts(self) -> None:
        captions = [stage.training.captions for stage in self.trainings()]
        trained = {text for caption in captions for text in caption.texts}
        if any(caption.policy is CaptionPolicy.EMPTY for caption in captions):
            trained.add("")
        for one in (stage.concept for stage in self.trainings() if stage.concept.by_text):
            trained.update(text for prompt in (one.target, one.leading) for text in one.in_contexts(prompt))
        for stage in self.stages:
            for prompt in stage.prompts if isinstance(stage, (GateStage, EvaluateStage)) else ():
                if prompt in trained:
                    raise BadInput(
                        f"the prompt {prompt!r} of {stage.name!r} is also a training caption: "
                        "measure with prompts that training never sees"
                    )

    def stage(self, name: str) -> StageSpec:
        """The stage of that name. Raises ``UnknownName``."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UnknownName(f"stage of the recipe {self.name!r}", name, (s.name for s in self.stages))

    def trainings(self) -> Iterator[TrainStage]:
        """The stages that train, in order."""
        return (stage for stage in self.stages if isinstance(stage, TrainStage))

    def picture_set(self, name: str) -> PictureSet:
        """The set of pictures of that name. Raises ``UnknownName``."""
        for one in self.pictures:
            if one.name == name:
                return one
        names = (one.name for one in self.pictures)
        raise UnknownName(f"set of pictures of the recipe {self.name!r}", name, names)

    def original_of(self, pictures: str) -> str:
        """The set of originals that the set ``pictures`` is a change of; "" where it is none."""
        return next((one.of for one in self.pictures if one.name == pictures), "")

    @property
    def given(self) -> tuple[PictureSet, ...]:
        """The sets that a run is given; the others are made from them."""
        return tuple(one for one in self.pictures if not one.part_of)

    def given_for(self, pictures: str) -> str:
        """The set that a run is given from which the set ``pictures`` is made; itself where it is given."""
        while part_of := self.picture_set(pictures).part_of:
            pictures = part_of
        return pictures

    @property
    def changed(self) -> tuple[PictureSet, ...]:
        """The sets that are changes of others."""
        return tuple(one for one in self.pictures if one.of)

    @property
    def measures(self) -> bool:
        """Whether it evaluates what it makes."""
        return any(isinstance(stage, EvaluateStage) for stage in self.stages)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the LoRA files that a run has to be given."""
        return tuple(stage.name for stage in self.stages if isinstance(stage, FileStage))


def _check_making(one: PictureSet) -> None:
    """A set is given, or says from which one it is made, and how."""
    if bool(one.number or one.views) != bool(one.part_of):
        raise BadInput(
            f"the pictures {one.name!r} are picture {one.number} and {one.views} views of {one.part_of!r}: "
            "name the set that they are made from (part_of), and a number or views"
        )
    if one.one_by_one and (one.of or one.part_of):
        raise BadInput(
            f"the pictures {one.name!r} go one by one: only originals that a run is given can; changes of "
            "them follow"
        )


def _check_references(stage: StageSpec, seen: Mapping[str, StageSpec]) -> None:
    for name in stage.references:
        if name not in seen:
            raise UnknownName(f"earlier stage (needed by {stage.name!r})", name, seen)
        if not isinstance(seen[name], LORA_STAGES):
            raise BadInput(f"the stage {stage.name!r} needs a LoRA, but {name!r} makes none")


def reseeded(recipe: Recipe, offset: int) -> Recipe:
    """``recipe`` with ``offset`` added to every training's seed; what is drawn to measure stays the same."""
    stages = tuple(
        replace(stage, training=replace(stage.training, seed=stage.training.seed + offset))
        if isinstance(stage, TrainStage)
        else stage
        for stage in recipe.stages
    )
    return replace(recipe, stages=stages)


def with_control(recipe: Recipe) -> Recipe:
    """``recipe`` with the control that everyone would otherwise use, compared in its evaluations.

    The control is a plain LoRA on the changed pictures, on the checkpoint itself: the training of the
    last stage that trains on them, at equal steps, rate and rank, without base LoRAs, from a fresh start,
    and with nothing that looks at their originals. Of pictures that go one by one it has all; their crops
    and zooms it has as they are. An evaluation that has a control keeps its own.

    Raises:
        BadInput: the recipe trains nothing on the pictures of an evaluation, or measures nothing.
    """
    if not recipe.measures:
        raise BadInput(f"the recipe {recipe.name!r} measures nothing: a control would stand alone")
    names = {stage.name for stage in recipe.stages} | {one.name for one in recipe.pictures}
    controls: dict[str, TrainStage] = {}
    stages: list[StageSpec] = []
    for stage in recipe.stages:
        if isinstance(stage, EvaluateStage) and not stage.control:
            if stage.pictures not in controls:
                controls[stage.pictures] = _control(recipe, stage.pictures, names)
                names.add(controls[stage.pictures].name)
                stages.append(controls[stage.pictures])
            stage = replace(stage, control=controls[stage.pictures].name)
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def _control(recipe: Recipe, pictures: str, names: Collection[str]) -> TrainStage:
    """The plain LoRA on ``pictures``, under a name that is not among ``names``."""
    given = recipe.given_for(pictures)
    trained = [stage for stage in recipe.trainings() if stage.pictures == pictures] or [
        stage for stage in recipe.trainings() if recipe.given_for(stage.pictures) == given
    ]
    if not trained:
        raise BadInput(
            f"the recipe {recipe.name!r} trains nothing on {pictures.upper()}: there is no control for it"
        )
    free, number = "control", 1
    while free in names:
        number += 1
        free = f"control-{number}"
    last = trained[-1]
    plain = replace(last.training, target=Target.NOISE, pair_mask=False)
    alone = recipe.picture_set(last.pictures).number
    return TrainStage(name=free, pictures=pictures if alone else last.pictures, training=plain)
