"""What a report is made of: plain values that whoever ran the recipe fills in.

Pictures are Pillow images, or float arrays (height, width, 3) in [0, 1]; stacks of them are arrays
(n, height, width, 3), or sequences, in the order of ``draws``. Parts that may be missing are None or
empty, and the report leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from copier.evaluation.comparison import Comparison, Spread, compare
from copier.evaluation.effect import ChangeResult, StripResult
from copier.evaluation.gate import ClosenessResult, GateResult
from copier.images.effects import Picture
from copier.images.sheet import AnyPicture
from copier.recipe import GateStage

Stack = Picture | Sequence[AnyPicture]
Figures = StripResult | ChangeResult


@dataclass(frozen=True)
class Draw:
    """One prompt and seed, with its guidance scale (1 is none); a row of every grid."""

    prompt: str
    seed: int
    guidance: float = 1.0


@dataclass(frozen=True)
class LossCurve:
    """The loss of a training: ``losses[i]`` is that of step ``steps[i]``."""

    label: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.losses):
            raise ValueError(f"{self.label}: {len(self.steps)} steps, but {len(self.losses)} losses")


class StageStatus(str, Enum):
    """What became of a stage."""

    RUN = "run"
    REUSED = "reused"


@dataclass(frozen=True)
class StageLine:
    """One stage of the run: what it does, whether it ran, why, and how long it took in seconds."""

    name: str
    kind: str
    status: StageStatus
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """A figure that must keep a limit; ``value`` None (not measured) does not keep it.

    ``strict``: the limit itself does not do.
    """

    label: str
    value: float | None
    limit: float
    at_least: bool
    strict: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit."""
        if self.value is None or (self.strict and self.value == self.limit):
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def relation(self) -> str:
        """How the value must stand to the limit, in words."""
        if self.strict:
            return "above" if self.at_least else "below"
        return "at least" if self.at_least else "at most"


@dataclass(frozen=True)
class SeedRow:
    """One figure over several training seeds, the LoRA's and the control's."""

    label: str
    lora: Spread
    control: Spread | None = None


@dataclass(frozen=True)
class SeedTable:
    """The figures of a result over several training seeds."""

    seeds: tuple[int, ...]
    rows: tuple[SeedRow, ...]


@dataclass(frozen=True, eq=False)
class GateReport:
    """The copier gate: its figures, its limits (``spec``), and its pictures with and without the copier."""

    result: GateResult
    spec: GateStage
    draws: tuple[Draw, ...]
    pictures: Stack
    base: Stack

    def __post_init__(self) -> None:
        _same_length("the gate", self.draws, self.pictures, self.base, self.result.distances)


@dataclass(frozen=True, eq=False)
class ClosenessReport:
    """How near base + copier + the second training's LoRA come to B; ``limit`` is that of the median."""

    result: ClosenessResult
    draws: tuple[Draw, ...]
    pictures: Stack
    limit: float | None = None

    def __post_init__(self) -> None:
        _same_length("the closeness", self.draws, self.pictures, self.result.distances)


@dataclass(frozen=True, eq=False)
class Strip:
    """One LoRA at several weights: pictures by weight, and the figures measured on them.

    ``figures`` are a ``StripResult`` where the edit is known, else a ``ChangeResult``.
    """

    label: str
    pictures: Mapping[float, Stack]
    figures: Figures


@dataclass(frozen=True, eq=False)
class Result:
    """One LoRA that the run made, with everything measured on it.

    Attributes:
        name: a short name of letters, digits, "-" and "_", unique in the report.
        title: what the page calls it, for instance "Grayscale".
        explanation: a sentence on how it was made.
        b: the edited picture; A is the report's.
        draws: the prompts and seeds of the strips, a row each.
        base: the checkpoint's own pictures.
        strip: the LoRA's.
        control: the same for the plain LoRA on B.
        ideals: the ideal pictures at weight 1 where the edit is known.
        closeness: does the second training draw B where it was trained?
        on_original: effect on A itself, the only one there is for a hand edit.
        losses: of the trainings that belong to this result alone.
        seeds: figures over several training seeds.
        checks: what this result must keep.
        files: names of the files that hold it.
    """

    name: str
    title: str
    b: AnyPicture
    draws: tuple[Draw, ...]
    base: Stack
    strip: Strip
    explanation: str = ""
    control: Strip | None = None
    ideals: Stack | None = None
    closeness: ClosenessReport | None = None
    on_original: StripResult | None = None
    losses: tuple[LossCurve, ...] = ()
    seeds: SeedTable | None = None
    checks: tuple[Check, ...] = ()
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        stacks = [self.base, *self.strip.pictures.values()]
        stacks += self.control.pictures.values() if self.control else ()
        stacks += [self.ideals] if self.ideals is not None else []
        _same_length(f"the result {self.name!r}", self.draws, *stacks)

    @property
    def comparison(self) -> Comparison | None:
        """LoRA against control at weight 1; None without a control, or where no effect is known."""
        if self.control is None:
            return None
        ours, theirs = self.strip.figures, self.control.figures
        if isinstance(ours, StripResult) and isinstance(theirs, StripResult):
            return compare(ours, theirs)
        return None


@dataclass(frozen=True, eq=False)
class ReportData:
    """The whole report of one run: several results may share the original, the copier and its gate.

    Attributes:
        title: the page's heading.
        summary: what was done, in two sentences.
        a: the original.
        results: at least one.
        a_prompt: the prompt that A was generated from, or "".
        recipe: title of the recipe; ``checkpoint`` name of the checkpoint.
        created: when, as text that the page shows as it is; ``program`` name and version.
        gate: the copier's; None for a recipe without a copier.
        losses: of the trainings that all results share.
        stages: every stage in order; ``seconds`` the time of the whole run.
        checks: what the run as a whole must keep.
        notes: what else the reader should know, a sentence or two each.
    """

    title: str
    summary: str
    a: AnyPicture
    results: tuple[Result, ...]
    a_prompt: str = ""
    recipe: str = ""
    checkpoint: str = ""
    created: str = ""
    program: str = ""
    gate: GateReport | None = None
    losses: tuple[LossCurve, ...] = ()
    stages: tuple[StageLine, ...] = ()
    seconds: float | None = None
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [result.name for result in self.results]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a report needs one or more results of different names, not {names}")


def _same_length(what: str, draws: Sequence[object], *others: Sequence[object] | Picture) -> None:
    for other in others:
        if len(other) != len(draws):
            raise ValueError(
                f"{what} has {len(draws)} prompts and seeds, but {len(other)} pictures or figures"
            )
