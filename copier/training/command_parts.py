"""What is handed from the code that knows sd-scripts' options to the code that runs its scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.errors import BadInput

_NEEDED = ("--pretrained_model_name_or_path", "--dataset_config", "--output_dir", "--output_name")


@dataclass(frozen=True)
class PictureCopy:
    """A picture to train on: the user's file ``source``, copied to ``place`` as PNG.

    ``mask``, a picture in grey of the same size, becomes its alpha channel: where the loss counts.
    """

    source: Path
    place: Path
    mask: Path | None = None


@dataclass(frozen=True)
class TrainingCommand:
    """One training by a script of sd-scripts. All paths are absolute: the child runs in another folder.

    Attributes:
        script: a file in sd-scripts' folder, such as ``train_network.py``.
        argv: its arguments.
        files: path and text of the files that must be there before it starts: the dataset's description
            (JSON), captions, sample prompts.
        pictures: the copies that the dataset's folders hold.

    Raises:
        BadInput: an argument is missing that every training has, or the dataset's description is.
    """

    script: str
    argv: tuple[str, ...]
    files: Mapping[Path, str]
    pictures: tuple[PictureCopy, ...]

    def __post_init__(self) -> None:
        for option in _NEEDED:
            if not self.value(option):
                raise BadInput(f"the arguments of {self.script} lack {option}: add it")
        if Path(self.value("--dataset_config")) not in self.files:
            raise BadInput(f"{self.value('--dataset_config')!r} is not among the files: add its text")

    def values(self, option: str) -> tuple[str, ...] | None:
        """What follows the last ``option`` in ``argv``, also as ``--option=value``; None: it is not there."""
        found: list[str] | None = None
        reading = False
        for argument in self.argv:
            if argument.startswith("--"):
                name, equals, value = argument.partition("=")
                reading = name == option
                if reading:
                    found = [value] if equals else []
            elif reading and found is not None:
                found.append(argument)
        return None if found is None else tuple(found)

    def value(self, option: str, default: str = "") -> str:
        """The first of ``values``, or ``default``."""
        return (self.values(option) or (default,))[0]

    def number(self, option: str, default: int) -> int:
        """``value`` as a whole number; raises ``BadInput`` where it is none."""
        text = self.value(option, str(default))
        try:
            return int(text)
        except ValueError:
            raise BadInput(f"the argument {option} is {text!r}: give a whole number") from None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file."""
        return Path(self.value("--pretrained_model_name_or_path"))

    @property
    def output(self) -> Path:
        """The LoRA that the script writes at its end."""
        return Path(self.value("--output_dir")) / f"{self.value('--output_name')}.safetensors"

    @property
    def network_arguments(self) -> dict[str, str]:
        """``--network_args``, such as ``conv_dim``, by name."""
        pairs = (one.partition("=") for one in self.values("--network_args") or ())
        return {name: value for name, _, value in pairs}

    def dataset(self) -> dict[str, Any]:
        """The dataset's description; raises ``BadInput`` where it is no JSON object."""
        try:
            found = json.loads(self.files[Path(self.value("--dataset_config"))])
        except ValueError as error:
            raise BadInput(f"the dataset's description is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise BadInput("the dataset's description is no JSON object: begin it with '{'")
        return found
