"""The options of a checkpoint, for every command that draws with one."""

from __future__ import annotations

import argparse
from pathlib import Path

from copier.cli.parser import Parser, positive
from copier.model_options import ModelOptions, Prediction, Switch


def add_model_options(parser: Parser) -> None:
    """Add them as a group of their own."""
    group = parser.add_argument_group("the checkpoint")
    group.add_argument("--vae", type=Path, metavar="FILE", help="autoencoder in place of its own")
    group.add_argument(
        "--clip-skip", type=positive, default=1, metavar="N", help="as WebUIs count it; SD 1.x (default: 1)"
    )
    group.add_argument(
        "--prediction",
        choices=[one.value for one in Prediction],
        default=Prediction.AUTO.value,
        help="what the checkpoint predicts: noise (epsilon) or velocity (v); auto goes by the file",
    )
    group.add_argument(
        "--zero-terminal-snr",
        choices=[one.value for one in Switch],
        default=Switch.AUTO.value,
        help="whether its noise schedule ends at pure noise; auto goes by the file",
    )


def model_options(arguments: argparse.Namespace) -> ModelOptions:
    """What was given; raises BadInput where it contradicts itself."""
    return ModelOptions(
        arguments.vae,
        arguments.clip_skip,
        Prediction(arguments.prediction),
        Switch(arguments.zero_terminal_snr),
    )
