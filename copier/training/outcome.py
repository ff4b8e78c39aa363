"""Whether the file that a trainer wrote is the LoRA that was asked for."""

from __future__ import annotations

from pathlib import Path

from copier.algebra.delta import LowRankDelta
from copier.checkpoint.fit import require_modules_fit
from copier.checkpoint.header import Header
from copier.checkpoint.targets import Target, trained_names
from copier.errors import BadInput, TrainingFailed
from copier.ops.lora_reader import LoraReader
from copier.training.command_parts import TrainingCommand

_PLAIN_ARGUMENTS = {"conv_dim", "conv_alpha", "dropout", "rank_dropout", "module_dropout"}
"""Network arguments that leave the choice of modules at what is known here."""


def expected_targets(command: TrainingCommand, checkpoint: Header) -> frozenset[Target] | None:
    """The weights that the LoRA must change, all of them; None where the command leaves that open.

    Known for ``networks.lora`` with one rank for all blocks (``create_network`` in v0.10.1's ``lora.py``).
    """
    arguments = command.network_arguments
    if (
        command.value("--network_module") != "networks.lora"
        or command.values("--dim_from_weights") is not None
        or not set(arguments) <= _PLAIN_ARGUMENTS
        or arguments.get("conv_dim") == "0"
    ):
        return None
    names = trained_names(
        checkpoint,
        conv="conv_dim" in arguments,
        text=command.values("--network_train_unet_only") is None,
        unet=command.values("--network_train_text_encoder_only") is None,
    )
    return frozenset(names.values())


def verify_lora(path: Path, checkpoint: Header, expected: frozenset[Target] | None = None) -> None:
    """Raise ``TrainingFailed`` unless ``path`` is a whole LoRA that changes something.

    Its header is read and checked, its modules fit the checkpoint (and are the ``expected`` ones), every
    number in it is finite, and at least one module is not zero.
    """
    try:
        with LoraReader(path) as reader:
            targets = require_modules_fit(reader.shapes, reader.family, checkpoint)
            if expected is not None and (problem := _difference(frozenset(targets.values()), expected)):
                raise BadInput(problem)
            changes = False
            for name in reader.modules:
                delta = reader.delta(name)
                # All are read, although one that changes something would do: one that is no number would not.
                changes = (
                    bool(not isinstance(delta, LowRankDelta) or (delta.up.any() and delta.down.any()))
                    or changes
                )
    except BadInput as error:
        raise TrainingFailed(f"the LoRA that was trained cannot be used: {error}") from error
    if not changes:
        raise TrainingFailed(
            "the LoRA that was trained is zero everywhere, it learnt nothing: raise the learning rate or the "
            "number of steps"
        )


def _difference(found: frozenset[Target], expected: frozenset[Target]) -> str:
    lacking, more = sorted(map(repr, expected - found)), sorted(map(repr, found - expected))
    if lacking:
        return f"{len(lacking)} of {len(expected)} weights are not in it, such as {lacking[0]}"
    if more:
        return f"it has {len(more)} weights beside the {len(expected)} that were asked for, such as {more[0]}"
    return ""
