"""What is said of a checkpoint beside its file: an autoencoder of its own, and how it is to be read.

Not part of a recipe: it belongs to the checkpoint that a recipe is used with, and names files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from copier.errors import BadInput
from copier.fields import CLIP_SKIP, check_number


class Prediction(str, Enum):
    """What the U-Net predicts; ``auto``: what the file says, else noise."""

    AUTO = "auto"
    EPSILON = "epsilon"
    VELOCITY = "v"


class Switch(str, Enum):
    """A property of the checkpoint; ``auto``: what the file says, else off."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class ModelOptions:
    """How a checkpoint is used; the defaults take everything from its file.

    Attributes:
        vae: a file whose autoencoder takes the place of the checkpoint's.
        clip_skip: as hosts count it; 1 uses all layers of the text encoder. SD 1.x only.
        prediction: Salimans and Ho 2022 for ``v``.
        zero_terminal_snr: the noise schedule ends at pure noise (Lin et al. 2023); with ``v`` only.

    Raises on construction:
        BadInput: clip skip is out of bounds, or there is zero terminal SNR with a prediction of noise.
    """

    vae: Path | None = None
    clip_skip: int = 1
    prediction: Prediction = Prediction.AUTO
    zero_terminal_snr: Switch = Switch.AUTO

    def __post_init__(self) -> None:
        check_number("clip skip", self.clip_skip, CLIP_SKIP)
        if self.zero_terminal_snr is Switch.ON and self.prediction is Prediction.EPSILON:
            raise BadInput(
                "zero terminal SNR is on for a checkpoint that predicts noise: at pure noise there is "
                "nothing to learn; set the prediction to v, or zero terminal SNR to off"
            )


AS_IT_IS = ModelOptions()
"""Everything from the checkpoint's file."""
