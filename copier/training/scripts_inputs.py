"""Files in the form in which sd-scripts reads them, where the user's have another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.autoencoder_file import autoencoder_keys
from copier.checkpoint.family import detect
from copier.checkpoint.header import Header, read_header
from copier.checkpoint.names import VAE_PREFIX
from copier.checkpoint.reader import TensorReader
from copier.checkpoint.targets import Target, module_targets, trained_names
from copier.checkpoint.writer import write_tensors
from copier.errors import BadInput
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.recipe import TrainingSpec


def write_start(source: Path, target: Path, training: TrainingSpec, checkpoint: Header) -> None:
    """Write the LoRA ``source`` to ``target`` so that sd-scripts goes on from it: same deltas, other factors.

    sd-scripts takes factors for those of the training's own rank and alpha, whatever the file says (v0.10.1,
    ``lora.py``: ``scale`` is fixed when a module is made), and leaves out modules that it does not train. So
    every module that is trained is here, in the training's rank and alpha: ``up`` rescaled, a lower rank
    filled up by columns of zeros over rows of the usual random start.

    Raises:
        BadInput: a module that is not trained, or of a higher rank, or that is no product of two factors.
    """
    trained = trained_names(checkpoint, conv=training.conv_rank > 0, text=training.text_encoder)
    given = _given(source, trained, checkpoint)
    noise = torch.Generator().manual_seed(training.seed)
    filled = {}
    for name, place in trained.items():
        up, down, alpha = _beginning(place, training, checkpoint, noise)
        rank = down.shape[0]
        if name in given:
            if given[name].rank > rank:
                raise BadInput(
                    f"{source.name!r} in {name!r} has rank {given[name].rank}, the training {rank}: raise "
                    "its rank, or resize the LoRA first"
                )
            given[name].fill(up, down, alpha / rank)
        filled[name] = LowRankDelta(up, down, alpha)
    weights = LoraWeights(filled)
    described = network_metadata(weights, name=target.stem, family=detect(checkpoint).family)
    write_lora(target, weights, described, dtype="fp32")


def _given(source: Path, trained: Mapping[str, Target], checkpoint: Header) -> dict[str, LowRankDelta]:
    """The modules of the LoRA ``source`` by the names that they have in ``trained``."""
    name_of = {place: name for name, place in trained.items()}
    places = module_targets(checkpoint)
    given = {}
    for module, delta in read_lora(source).weights.items():
        name = name_of.get(places[module]) if module in places else None
        if name is None:
            raise BadInput(
                f"{source.name!r} changes {module!r}, which the training leaves alone: train the text "
                "encoder or the convolutions as it does"
            )
        if not isinstance(delta, LowRankDelta):
            raise BadInput(f"{source.name!r} is no LoRA of two factors in {module!r}: start from another one")
        given[name] = delta
    return given


def _beginning(
    place: Target, training: TrainingSpec, checkpoint: Header, noise: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """up (zeros), down (random) and alpha with which the module of a weight begins."""
    out, *rest = checkpoint.tensors[place.key].shape
    out = out if place.rows is None else place.rows[1] - place.rows[0]
    spatial = math.prod(rest[1:]) > 1
    rank = training.conv_rank if spatial else training.rank
    bound = 1.0 / math.sqrt(math.prod(rest))  # kaiming_uniform_ with a = sqrt(5)
    down = (torch.rand(rank, *rest, generator=noise) * 2 - 1) * bound
    up = torch.zeros(out, rank, *([1] * len(rest[1:])))
    return up, down, training.conv_alpha if spatial else training.alpha


def is_in_ldm_names(autoencoder: Path) -> bool:
    """Whether sd-scripts reads the file: a .safetensors file with LDM's names, prefixed or bare."""
    keys = autoencoder_keys(read_header(autoencoder), autoencoder.name)
    bare = [(ours.removeprefix(VAE_PREFIX), theirs.removeprefix(VAE_PREFIX)) for ours, theirs in keys.items()]
    return autoencoder.suffix == ".safetensors" and all(ours == theirs for ours, theirs in bare)


def write_autoencoder(source: Path, target: Path) -> None:
    """Write the autoencoder in ``source``, in whatever layout, to ``target`` in LDM's names.

    Raises:
        BadCheckpoint: there is no whole one in it.
    """
    keys = autoencoder_keys(read_header(source), source.name)
    with TensorReader(source) as reader:
        write_tensors(target, {key: reader.tensor(theirs) for key, theirs in keys.items()})
