"""What a run is asked for: a recipe, a checkpoint, pictures, LoRAs, and where the outcome goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from copier.errors import BadInput, UnknownName
from copier.expansion import written_out
from copier.fields import GUIDANCE, LARGEST_SIDE, SAMPLING_STEPS, SEED, check_number, check_text
from copier.model_options import AS_IT_IS, ModelOptions
from copier.recipe import Recipe, StageSpec, TrainStage

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""Of the files of a folder that are taken for pictures."""

DEVICES = ("auto", "cpu", "cuda")


class Fit(str, Enum):
    """What is done with pictures whose sides are no multiples of 64: nothing scales them."""

    NONE = "none"
    CROP = "crop"
    PAD = "pad"


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that the user brings, in their order; cropped or padded as ``fit`` says.

    Raises on construction:
        BadInput: there is none.
    """

    paths: tuple[Path, ...]
    fit: Fit = Fit.NONE

    def __post_init__(self) -> None:
        if not self.paths:
            raise BadInput("a set of pictures is empty: give at least one file")

    @classmethod
    def at(cls, path: Path, fit: Fit = Fit.NONE) -> PictureFiles:
        """The file ``path``, or where it is a folder the PNG, JPEG and WebP files in it, by their names.

        Raises:
            BadInput: a folder without any, or with two of one name.
        """
        if not path.is_dir():
            return cls((path,), fit)
        found = [file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file()]
        if not found:
            raise BadInput(f"the folder {path} holds no picture: put PNG, JPEG or WebP files into it")
        stems = [file.stem for file in found]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise BadInput(f"the folder {path} holds several pictures called {twice[0]!r}: leave one of them")
        return cls(tuple(sorted(found, key=lambda file: file.stem)), fit)


@dataclass(frozen=True)
class Generated:
    """An original that the checkpoint draws first: DDIM, ``steps``, CFG ``guidance``.

    Raises on construction:
        BadInput: a number is out of bounds.
    """

    prompt: str
    seed: int = 1
    steps: int = 30
    guidance: float = 4.0
    size: int = 0
    """Side in pixels; 0 takes the recipe's resolution, or 128 where that is 0."""

    def __post_init__(self) -> None:
        check_text("the original's prompt", self.prompt)
        if self.size % 64 or not 0 <= self.size <= LARGEST_SIDE:
            raise BadInput(
                f"the original's size is {self.size}: it must be a multiple of 64, at most {LARGEST_SIDE}, "
                "or 0 for the recipe's resolution"
            )
        check_number("the original's seed", self.seed, SEED)
        check_number("the original's number of sampling steps", self.steps, SAMPLING_STEPS)
        check_number("the original's guidance", self.guidance, GUIDANCE)


@dataclass(frozen=True)
class Edit:
    """The originals with a built-in edit (``copier.images.effects``)."""

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)


Source = PictureFiles | Generated | Edit
"""Where a set of pictures comes from."""


@dataclass(frozen=True)
class ScriptOptions:
    """What a run adds to its recipe where sd-scripts trains.

    Not part of the recipe, which travels: free arguments may name files and modules.

    Attributes:
        extra: arguments of the user's own.
        sample_every: pictures are drawn every so many steps of a training; 0: never.
        save_every: the LoRA is saved every so many steps, besides at the end; 0: never.

    Raises on construction:
        BadInput: a negative number of steps.
    """

    extra: tuple[str, ...] = ()
    sample_every: int = 0
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("sample_every", "save_every"):
            if (steps := getattr(self, name)) < 0:
                raise BadInput(f"{name} is {steps} steps: give 1 or more, or 0 for never")


NOTHING_MORE = ScriptOptions()
"""The recipe alone."""


@dataclass(frozen=True)
class RunRequest:
    """One run. ``out`` receives the LoRAs, the pictures, the recipe and the report.

    ``pictures`` says where each of the recipe's sets comes from, ``loras`` the file of each of its file
    stages; ``title`` names this result in a report (for instance the edit); ``device`` is auto, cpu or
    cuda; ``threads`` is the trainer's number of CPU threads, None for all; ``model`` says how the checkpoint
    is used, ``scripts`` what only sd-scripts is told.

    Raises on construction:
        UnknownName: another device, or a set or a LoRA that the recipe does not have.
        BadInput: less than one thread, a title that no file can hold, a set or a LoRA that is missing,
            originals by an edit, or changed pictures that the checkpoint should draw.
    """

    recipe: Recipe
    checkpoint: Path
    pictures: Mapping[str, Source]
    out: Path
    loras: Mapping[str, Path] = field(default_factory=dict)
    title: str = ""
    device: str = "auto"
    threads: int | None = None
    model: ModelOptions = AS_IT_IS
    scripts: ScriptOptions = NOTHING_MORE
    captions: Path | None = None
    """Folder of caption files for the policy ``files``, or of folders of them that have the sets' names; None
    looks beside the picture."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UnknownName("device", self.device, DEVICES)
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"the number of threads is {self.threads}: give at least 1, or none for all")
        check_text("the title", self.title)
        self._check_pictures()
        for name in self.loras:
            if name not in self.recipe.files:
                raise UnknownName(f"LoRA of the recipe {self.recipe.name!r}", name, self.recipe.files)
        for name in self.recipe.files:
            if name not in self.loras:
                raise BadInput(f"the LoRA {name!r} of the recipe is missing: add --lora {name}=FILE")

    def _check_pictures(self) -> None:
        known = [one.name for one in self.recipe.given]
        for name in self.pictures:
            if name not in known:
                raise UnknownName(f"set of pictures of the recipe {self.recipe.name!r}", name, known)
        for one in self.recipe.given:
            source = self.pictures.get(one.name)
            if source is None:
                raise BadInput(
                    f"the pictures {one.name!r} of the recipe are missing: add --pictures {one.name}=PATH"
                )
            if isinstance(source, Edit) and not one.of:
                raise BadInput(f"the pictures {one.name!r} are originals: an edit cannot make them")
            if isinstance(source, Generated) and one.of:
                raise BadInput(
                    f"the pictures {one.name!r} are those of {one.of!r} with one thing changed: give files "
                    "or an edit, drawn ones would differ in everything"
                )

        self._check_numbers()

    def _check_numbers(self) -> None:
        for one in self.recipe.pictures:
            if one.number and one.number > (count := self.count_of(one.part_of)):
                raise BadInput(
                    f"the recipe wants picture {one.number} of {one.part_of!r}, which has {count}: give more "
                    "pictures, or take the recipe as it was before it was written out for them"
                )

    def count_of(self, pictures: str) -> int:
        """The number of pictures of a set."""
        spec = self.recipe.picture_set(pictures)
        if spec.part_of:
            return (1 if spec.number else self.count_of(spec.part_of)) * (spec.views or 1)
        source = self.pictures[pictures]
        if isinstance(source, Edit):
            return self.count_of(spec.of)
        return len(source.paths) if isinstance(source, PictureFiles) else 1

    def written_out(self) -> RunRequest:
        """The same with a recipe in which no set goes one by one any more (``copier.expansion``)."""
        counts = {one.name: self.count_of(one.name) for one in self.recipe.given}
        return replace(self, recipe=written_out(self.recipe, counts))

    def source_of(self, pictures: str) -> Source:
        """Where the pictures of a set come from: that of the set that they are made from."""
        return self.pictures[self.recipe.given_for(pictures)]

    def edit_of(self, pictures: str) -> Edit | None:
        """The built-in edit that makes the set ``pictures``; None where it comes from files."""
        source = self.source_of(pictures)
        return source if isinstance(source, Edit) else None

    def files_of(self, pictures: str) -> PictureFiles | None:
        """The user's files that the set comes from, directly or by an edit of them; None of a drawn one.

        One for each picture of the set: a file comes as often as there are views of it.
        """
        spec = self.recipe.picture_set(pictures)
        if spec.part_of:
            whole = self.files_of(spec.part_of)
            if whole is None:
                return None
            chosen = whole.paths[spec.number - 1 : spec.number] if spec.number else whole.paths
            return replace(whole, paths=tuple(path for path in chosen for _ in range(spec.views or 1)))
        source = self.pictures[pictures]
        if isinstance(source, Edit):
            source = self.pictures[self.recipe.original_of(pictures)]
        return source if isinstance(source, PictureFiles) else None

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits of the recipe's changed sets, each once."""
        found: list[Edit] = []
        for one in self.recipe.changed:
            edit = self.edit_of(one.name)
            if edit is not None and edit not in found:
                found.append(edit)
        return tuple(found)


def in_epochs(request: RunRequest, epochs: int, repeats: int = 1) -> RunRequest:
    """``request`` with every training ``epochs`` times over its pictures, each ``repeats`` times an epoch.

    steps = epochs * ceil(pictures * repeats / batch size), as sd-scripts counts them. Of a set that goes one
    by one each training has one picture.

    Raises:
        BadInput: a training is by text alone, or that is more steps than one may have, or fewer than its
            warm-up has.
    """

    def counted(stage: StageSpec) -> StageSpec:
        if not isinstance(stage, TrainStage):
            return stage
        if stage.concept.by_text:
            raise BadInput(
                f"the training {stage.name!r} is by text alone and has no pictures to count epochs of: set "
                "its steps"
            )
        originals = request.recipe.original_of(stage.pictures) or stage.pictures
        alone = request.recipe.picture_set(originals).one_by_one
        pictures = 1 if alone else request.count_of(stage.pictures)
        steps = epochs * math.ceil(pictures * repeats / stage.training.batch_size)
        return replace(stage, training=replace(stage.training, steps=steps))

    recipe = replace(request.recipe, stages=tuple(map(counted, request.recipe.stages)))
    return replace(request, recipe=recipe)
