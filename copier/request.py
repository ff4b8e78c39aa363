"""What a run is asked for: a recipe, a checkpoint, a pair, and where the outcome goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from copier.errors import BadInput, UnknownName
from copier.fields import GUIDANCE, LARGEST_SIDE, SAMPLING_STEPS, SEED, check_number, check_text
from copier.recipe import Recipe

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class PictureFile:
    """A picture that the user brings."""

    path: Path


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
    """B is A with a built-in edit (``copier.images.effects``)."""

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRequest:
    """One run. ``out`` receives the LoRAs, the pair, the recipe and the report.

    ``title`` names this result in a report (for instance the edit); ``device`` is auto, cpu or cuda;
    ``threads`` is the trainer's number of CPU threads, None for all.

    Raises on construction:
        UnknownName: another device.
        BadInput: less than one thread, or a title that no file can hold.
    """

    recipe: Recipe
    checkpoint: Path
    a: PictureFile | Generated
    b: PictureFile | Edit
    out: Path
    title: str = ""
    device: str = "auto"
    threads: int | None = None
    captions: Path | None = None
    """Folder of caption files for the policy ``files``; None looks beside the picture."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UnknownName("device", self.device, DEVICES)
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"the number of threads is {self.threads}: give at least 1, or none for all")
        check_text("the title", self.title)
