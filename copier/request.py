"""What a run is asked for: a recipe, a checkpoint, a pair, and where the outcome goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from copier.errors import BadInput
from copier.recipe import Recipe


@dataclass(frozen=True)
class PictureFile:
    """A picture that the user brings."""

    path: Path


@dataclass(frozen=True)
class Generated:
    """An original that the checkpoint draws first: DDIM, ``steps``, CFG ``guidance``."""

    prompt: str
    seed: int = 1
    steps: int = 30
    guidance: float = 4.0
    size: int = 0
    """Side in pixels; 0 takes the recipe's resolution, or 128 where that is 0."""

    def __post_init__(self) -> None:
        if self.size % 64 or self.size < 0:
            raise BadInput(f"the original's size is {self.size}: it must be a multiple of 64")


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
