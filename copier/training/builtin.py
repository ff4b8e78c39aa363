"""The builtin trainer: one LoRA on a checkpoint in memory, with diffusers and peft."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import encode_pictures
from copier.errors import BadInput, TrainingFailed
from copier.images.effects import Pictures
from copier.images.sizes import in_stacks, largest, size_of, sizes_text
from copier.ops.lora_file import read_lora, write_lora
from copier.ops.merge_modules import merge_into_modules
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore
from copier.recipe import ConceptSpec, Precision, TrainingSpec
from copier.training.captions import CaptionSource
from copier.training.concept import ConceptObjective
from copier.training.lora_modules import LoraModules, lora_metadata
from copier.training.objectives import (
    Contexts,
    Objective,
    PictureLatents,
    PictureObjective,
    latent_mask,
    loss_weights,
    noise_schedule,
    pass_loss,
    predicted,
    random_stream,
)
from copier.training.optimiser import Rates, build_optimiser, with_available_optimiser

log = logging.getLogger(__name__)

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped, sd-scripts' default."""
FIRST_LOSS_SCALE = 2.0**12


@dataclass(frozen=True)
class Check:
    """Asks every ``every`` steps whether what was trained so far is enough.

    ``passed`` is called with the number of steps, while the model has the LoRA in it.
    """

    every: int
    passed: Callable[[int], bool]

    def due(self, step: int, rates: Rates) -> bool:
        """Whether to ask after ``step`` steps: not at the end, and not again while the rate falls."""
        return step % self.every == 0 and step < rates.steps and not rates.falling


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, apart from the numbers of the ``TrainingSpec``.

    ``captions`` are the texts of the caption files (policy ``files``); ``originals`` what the pictures are
    changes of, in their order and sizes, for targets that need them; ``masks``, (height, width) in [0, 1],
    where the loss counts; ``base`` are LoRA files with multipliers, merged into the checkpoint in memory
    first; ``start`` is a LoRA file to go on from; ``concept`` is what is trained where there are no
    pictures; ``check`` may end the training early; ``precision`` is that of the written file.
    """

    output: Path
    captions: Sequence[str] = ()
    originals: Pictures | None = None
    masks: Pictures | None = None
    concept: ConceptSpec | None = None
    check: Check | None = None
    base: Sequence[tuple[Path, float]] = ()
    start: Path | None = None
    metadata: Mapping[str, str] | None = None
    precision: Precision = Precision.FP32
    clip_skip: int = 1
    stage: str = "train"


@dataclass(frozen=True)
class Training:
    """The outcome: the loss of every step, and the seconds that all of it took."""

    losses: tuple[float, ...]
    seconds: float


def train(
    model: DiffusionModel,
    spec: TrainingSpec,
    pictures: Pictures | None,
    job: TrainingJob,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> Training:
    """Train a LoRA on ``pictures``, float32 (h, w, 3) in [0, 1] each, and write it to ``job.output``.

    Where there are none, ``job.concept`` is trained, by text alone. They may have several sizes: a batch is
    of one of them, and each picture comes as often. The model is afterwards, also after a failure, what it
    was before, bit for bit. The same arguments give the same file (on the CPU; with the same number of
    threads). Noise, timesteps, order of the pictures, captions and the LoRA's start come from random streams
    of their own, all on the CPU: changing one setting leaves the others' draws alone. ``spec.resolution`` and
    ``spec.precision`` are the caller's business: the pictures have their size, the model its dtype.

    Raises:
        BadInput, BadPicture, BadCheckpoint: something given cannot be used; nothing was trained.
        TrainingFailed: the loss is not a number; nothing was written.
        Cancelled: the token, asked before every step and before writing, was set.
    """
    started = time.monotonic()
    observer, cancel = guarded(observer), cancel or CancelToken()
    _check(pictures, job)

    def note(message: str) -> None:
        log.warning(message)
        observer(ProgressEvent(job.stage, 0, spec.steps, message=message))

    spec = with_available_optimiser(spec, model.device.type, note)
    start = read_lora(job.start).weights if job.start is not None else None
    with contextlib.ExitStack() as stack:
        for path, multiplier in job.base:
            weights = read_lora(path).weights
            stack.enter_context(merge_into_modules(model.weight_of, weights, multiplier))
        latents = None if pictures is None else _latents(model, pictures, job, cancel)
        lora = stack.enter_context(
            LoraModules(model, spec, random_stream(spec.seed, "start"))
        )
        if start is not None:
            lora.start_from(start)
        objective = _objective(model, spec, latents, lora, job, cancel)
        if spec.gradient_checkpointing:
            stack.enter_context(_checkpointing(model, text_encoder=spec.text_encoder))
        losses = _run(model, spec, objective, lora, job.stage, job.check, observer, cancel)
        trained = lora.weights()
    cancel.check()
    metadata = lora_metadata(
        spec,
        trained,
        name=job.output.stem,
        checkpoint=model.path.name,
        family=model.family,
        velocity=model.velocity,
        side=(spec.resolution,) * 2 if pictures is None else largest(map(size_of, pictures)),
        extra={"ss_steps": str(len(losses)), **(job.metadata or {})},
    )
    write_lora(job.output, trained, metadata, dtype=job.precision.value)
    return Training(tuple(losses), time.monotonic() - started)


class _LossScale:
    """Keeps small gradients of a float16 model above zero: doubles rarely, halves on overflow."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.factor = FIRST_LOSS_SCALE if dtype is torch.float16 else 1.0
        self._moving = dtype is torch.float16
        self._good = 0

    def unscale(self, parameters: Sequence[torch.nn.Parameter]) -> bool:
        """Divide the gradients; False where they overflowed and the step must be left out."""
        if not self._moving:
            return True
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            self.factor, self._good = self.factor / 2.0, 0
            return False
        for gradient in gradients:
            gradient /= self.factor
        self._good += 1
        if self._good % 500 == 0:
            self.factor *= 2.0
        return True


def _latents(
    model: DiffusionModel, pictures: Pictures, job: TrainingJob, cancel: CancelToken
) -> PictureLatents:
    return PictureLatents(
        _encoded(model, pictures, cancel),
        None if job.originals is None else _encoded(model, job.originals, cancel),
        None if job.masks is None else [latent_mask(mask).to(model.device) for mask in job.masks],
    )


def _encoded(
    model: DiffusionModel, pictures: Pictures, cancel: CancelToken
) -> list[torch.Tensor]:
    """The latents (1, 4, h / 8, w / 8) of each picture, on the model's device."""
    return in_stacks(
        pictures, lambda stack: torch.split(encode_pictures(model, stack, cancel=cancel).to(model.device), 1)
    )


def _objective(
    model: DiffusionModel,
    spec: TrainingSpec,
    pictures: PictureLatents | None,
    lora: LoraModules,
    job: TrainingJob,
    cancel: CancelToken,
) -> Objective:
    if pictures is None:
        assert job.concept is not None
        return ConceptObjective(model, spec, job.concept, lora, clip_skip=job.clip_skip, cancel=cancel)
    captions = CaptionSource(spec.captions, job.captions, pictures=len(pictures.latents), seed=spec.seed)
    contexts = Contexts(model, captions, live=spec.text_encoder, clip_skip=job.clip_skip)
    return PictureObjective(model, spec, pictures, captions, contexts)


def _check(pictures: Pictures | None, job: TrainingJob) -> None:
    if pictures is None and job.concept is None:
        raise BadInput("there is neither a picture nor a concept to train on: give one of them")
    if pictures is not None:
        _check_pictures(pictures, job)
    if job.output.exists():
        raise BadInput(f"{str(job.output)!r} exists: choose another name")
    if not job.output.parent.is_dir():
        raise BadInput(f"the folder {str(job.output.parent)!r} does not exist: create it first")


def _run(
    model: DiffusionModel,
    spec: TrainingSpec,
    objective: Objective,
    lora: LoraModules,
    stage: str,
    check: Check | None,
    observer: Observer,
    cancel: CancelToken,
) -> list[float]:
    """All steps, or those until a check ended it; the losses."""
    parameters = lora.parameters()
    optimiser = build_optimiser(spec, parameters)
    scale = _LossScale(model.dtype)
    weights = loss_weights(spec, noise_schedule(model), velocity=model.velocity)
    losses: list[float] = []
    rates = Rates(spec)
    started = time.monotonic()
    while len(losses) < rates.steps:
        cancel.check()
        losses.append(_finite(_step(model, objective, lora, weights, scale.factor), len(losses), spec))
        if scale.unscale(parameters):
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT, foreach=True)
            for group in optimiser.param_groups:
                group["lr"] = rates.at(len(losses) - 1)
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rate = (time.monotonic() - started) / len(losses)
        observer(ProgressEvent(stage, len(losses), rates.steps, loss=losses[-1], rate=rate))
        if check is not None and check.due(len(losses), rates) and check.passed(len(losses)):
            rates = rates.cooled(len(losses), check.every)
    return losses


def _step(
    model: DiffusionModel, objective: Objective, lora: LoraModules, weights: torch.Tensor, factor: float
) -> float:
    """The mean loss of the step's passes; ``factor`` times its gradients are added to the parameters'."""
    total = 0.0
    passes = objective.passes()
    for one in passes:
        # Backwards as well: checkpointing computes the activations once more, at the weight of that moment.
        with lora.at(one.multiplier):
            output = predicted(model, one.noised, one.timesteps, one.conditions())
            loss = pass_loss(output, one, weights) / len(passes)
            total += float(loss.detach())
            (loss * factor).backward()  # type: ignore[no-untyped-call]
    return total


def _check_pictures(pictures: Pictures, job: TrainingJob) -> None:
    if not len(pictures):
        raise BadInput("there is no picture to train on: give at least one")
    _check_sizes("originals", job.originals, pictures)
    _check_sizes("masks", job.masks, pictures)


def _check_sizes(what: str, others: Pictures | None, pictures: Pictures) -> None:
    if others is None:
        return
    given, wanted = [size_of(one) for one in others], [size_of(one) for one in pictures]
    if given != wanted:
        raise BadInput(
            f"there are {len(given)} {what} of {sizes_text(given)}, and {len(wanted)} pictures of "
            f"{sizes_text(wanted)}: give one of the same size for each"
        )


def _finite(loss: float, step: int, spec: TrainingSpec) -> float:
    if math.isfinite(loss):
        return loss
    raise TrainingFailed(
        f"the loss became {loss} at step {step + 1} of {spec.steps}: lower the learning rate (it is "
        f"{spec.learning_rate:g}), or train with the precision fp32 (it is {spec.precision.value})"
    )


@contextlib.contextmanager
def _checkpointing(model: DiffusionModel, *, text_encoder: bool) -> Iterator[None]:
    """Gradient checkpointing, which both libraries do in training mode only (there is no dropout)."""
    encoders = model.text_encoders if text_encoder else ()
    modules: list[Any] = [model.unet, *encoders]
    model.unet.enable_gradient_checkpointing()
    for encoder in encoders:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        for module in modules:
            module.train()
        yield
    finally:
        model.unet.disable_gradient_checkpointing()
        for encoder in encoders:
            encoder.gradient_checkpointing_disable()
        for module in modules:
            module.eval()
