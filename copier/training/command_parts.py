"""What is handed from the code that knows sd-scripts' options to the code that runs its scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.errors import BadInput

OWN_OPTIONS = ("--dataset_config", "--output_dir", "--output_name", "--save_model_as", "--sample_prompts")
"""Options that ``sd_scripts.train`` adds: they name places in the run's folder."""


@dataclass(frozen=True)
class TrainingCommand:
    """One training, without any place on the disk that belongs to the run.

    Attributes:
        script: a file in sd-scripts' folder, such as ``train_network.py``.
        argv: its arguments, without ``OWN_OPTIONS``.
        dataset: what ``--dataset_config`` reads. A subset's ``image_dir`` is a relative name; pictures are
            copied into a folder of that name within the run's folder.
        sample_prompts: lines of the file for ``--sample_prompts``; none: no such option.

    Raises:
        BadInput: ``argv`` has one of ``OWN_OPTIONS``.
    """

    script: str
    argv: tuple[str, ...]
    dataset: Mapping[str, Any]
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for argument in self.argv:
            if argument.partition("=")[0] in OWN_OPTIONS:
                raise BadInput(f"the argument {argument!r} is set by the run itself: leave it out")

    def values(self, option: str) -> tuple[str, ...] | None:
        """What follows the last ``option`` in ``argv``, also as ``--option=value``; None: it is not there."""
        found: list[str] | None = None
        reading = False
        for argument in self.argv:
            name, equals, value = argument.partition("=")
            if argument.startswith("--"):
                reading = name == option
                if reading:
                    found = [value] if equals else []
            elif reading and found is not None:
                found.append(argument)
        return None if found is None else tuple(found)

    def value(self, option: str, default: str = "") -> str:
        """The first of ``values``, or ``default``."""
        return (self.values(option) or (default,))[0]


@dataclass(frozen=True)
class TrainingPicture:
    """One picture to train on.

    Attributes:
        path: the user's file; it is copied, nothing is written beside it.
        caption: the text of its caption file; None: it has none.
        folder: the ``image_dir`` of the subset that it belongs to.
        mask: keep its transparency, for masked loss; else it is laid on white.
    """

    path: Path
    caption: str | None = None
    folder: str = "images"
    mask: bool = False
