"""What is handed from the code that knows sd-scripts' options to the code that runs its scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
