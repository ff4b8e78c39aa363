"""What a checkpoint predicts, and whether its noise schedule ends at pure noise."""

from __future__ import annotations

from dataclasses import dataclass

from copier.checkpoint.header import Header
from copier.errors import BadInput
from copier.model_options import AS_IT_IS, ModelOptions, Prediction, Switch

PREDICTION_KEY = "modelspec.prediction_type"
VELOCITY_MARK = "v_pred"
"""An empty tensor of this name says that the U-Net predicts velocity; hosts ask for it too."""
ZERO_TERMINAL_MARK = "ztsnr"
"""And this one that the noise schedule was rescaled to end without any signal."""


@dataclass(frozen=True)
class Parameterisation:
    """``velocity``: the U-Net predicts v instead of noise. ``zero_terminal_snr`` only ever with it."""

    velocity: bool = False
    zero_terminal_snr: bool = False


def parameterisation(header: Header, options: ModelOptions = AS_IT_IS) -> Parameterisation:
    """What holds for the checkpoint with that header.

    ``auto`` goes by sd-scripts' metadata and by the marks among the tensors. SD 2.x files in 768 px predict
    velocity and mostly bear neither: there ``options`` must say so.

    Raises:
        BadInput: zero terminal SNR is asked for, and the checkpoint is not known to predict velocity.
    """
    marked = VELOCITY_MARK in header.tensors or ZERO_TERMINAL_MARK in header.tensors
    said = header.metadata.get(PREDICTION_KEY) in ("v", "v_prediction")
    velocity = options.prediction is Prediction.VELOCITY or (
        options.prediction is Prediction.AUTO and (marked or said)
    )
    if options.zero_terminal_snr is Switch.AUTO:
        rescaled = ZERO_TERMINAL_MARK in header.tensors
    else:
        rescaled = options.zero_terminal_snr is Switch.ON
    if rescaled and not velocity and options.zero_terminal_snr is Switch.ON:
        raise BadInput(
            "zero terminal SNR is on, but the checkpoint predicts noise as far as its file says: add "
            "--prediction v if it predicts velocity, else leave zero terminal SNR alone"
        )
    return Parameterisation(velocity, velocity and rescaled)
