"""Train the pocket checkpoint: ``python -m copier.pocket.train STAGE --work DIR``.

Stages, in order; each resumes from ``DIR/<stage>.pt`` and appends to ``DIR/train.log.jsonl``:

    autoencoder   encoder and decoder on plain and edited scenes
    polish        both again, on whole scenes, for the signal-to-noise ratio itself
    latents       fold scale and offset into quant_conv, encode the training scenes once
    text          the text encoder learns to name the scenes
    unet          the U-Net on the cached latents, most of it at high noise
    settle        the U-Net again, evenly at all timesteps, with more noise than they say
    decoder       the decoder alone, on whole plain and edited scenes (the latents stay valid)

``unpack`` comes instead of the first where networks are to go on from a checkpoint file: it gives
``polish`` its autoencoder and ``unet`` its start.

Everything is drawn from ``--seed``. ``python -m copier.pocket.export`` writes the checkpoint file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.train_autoencoder import (
    encode_scenes,
    polish_autoencoder,
    train_autoencoder,
    train_decoder,
    unpack,
)
from copier.pocket.train_unet import settle_unet, train_text_encoder, train_unet

TRAININGS = {
    "autoencoder": (train_autoencoder, 3000),
    "polish": (polish_autoencoder, 700),
    "text": (train_text_encoder, 600),
    "unet": (train_unet, 2000),
    "settle": (settle_unet, 3000),
    "decoder": (train_decoder, 1800),
}
"""The stages that train, each with its number of steps."""
SCENES = 4096
"""Number of scenes that the stage ``latents`` encodes."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("unpack", "latents", *TRAININGS))
    parser.add_argument("--work", type=Path, required=True, help="folder of states and log")
    parser.add_argument("--steps", type=int, help="optimiser steps of a stage that trains")
    parser.add_argument("--checkpoint", type=Path, help="what unpack takes (default: the embedded one)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "unpack":
        unpack(arguments.work, arguments.checkpoint or checkpoint_path())
    elif arguments.stage == "latents":
        encode_scenes(arguments.work, count=SCENES, seed=arguments.seed)
    else:
        train, steps = TRAININGS[arguments.stage]
        train(arguments.work, steps=arguments.steps or steps, seed=arguments.seed)


if __name__ == "__main__":
    main()
