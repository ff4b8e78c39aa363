"""The builtin trainer: one LoRA on a checkpoint in memory, with diffusers and peft."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from copier.diffusion import schedule
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import LATENT_STRIDE, encode_pictures
from copier.diffusion.prompts import Conditions, encode_prompts, encode_tokens, joined, tokenize
from copier.errors import BadInput, TrainingFailed
from copier.images.effects import Pictures
from copier.images.sizes import by_size, largest, size_of
from copier.ops.lora_file import read_lora, write_lora
from copier.ops.merge_modules import merge_into_modules
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore
from copier.recipe import LossWeighting, Precision, TrainingSpec
from copier.training.captions import CaptionSource
from copier.training.lora_modules import LoraModules, lora_metadata
from copier.training.optimiser import build_optimiser, learning_rate, with_available_optimiser

log = logging.getLogger(__name__)

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped, sd-scripts' default."""
FIRST_LOSS_SCALE = 2.0**12
CONTEXT_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, apart from the numbers of the ``TrainingSpec``.

    ``captions`` are the texts of the caption files (policy ``files``); ``base`` are LoRA files with
    multipliers, merged into the checkpoint in memory first; ``start`` is a LoRA file to go on from;
    ``precision`` is that of the written file.
    """

    output: Path
    captions: Sequence[str] = ()
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
    pictures: Pictures,
    job: TrainingJob,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> Training:
    """Train a LoRA on ``pictures``, float32 (h, w, 3) in [0, 1] each, and write it to ``job.output``.

    They may have several sizes: a batch is of one of them, and each picture comes as often. The model is
    afterwards, also after a failure, what it was before, bit for bit. The same arguments give the same
    file (on the CPU; with the same number of threads). Noise, timesteps, order of the pictures, captions
    and the LoRA's start come from random streams of their own, all on the CPU: changing one setting
    leaves the others' draws alone. ``spec.resolution`` and ``spec.precision`` are the caller's business:
    the pictures have their size, the model its dtype.

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
    captions = CaptionSource(spec.captions, job.captions, pictures=len(pictures), seed=spec.seed)
    start = read_lora(job.start).weights if job.start is not None else None
    with contextlib.ExitStack() as stack:
        for path, multiplier in job.base:
            weights = read_lora(path).weights
            stack.enter_context(merge_into_modules(model.weight_of, weights, multiplier))
        latents = _encoded(model, pictures, cancel)
        lora = stack.enter_context(
            LoraModules(model, spec, random_stream(spec.seed, "start"))
        )
        if start is not None:
            lora.start_from(start)
        contexts = Contexts(model, captions, live=spec.text_encoder, clip_skip=job.clip_skip)
        if spec.gradient_checkpointing:
            stack.enter_context(_checkpointing(model, text_encoder=spec.text_encoder))
        losses = _run(model, spec, latents, captions, contexts, lora, job.stage, observer, cancel)
        trained = lora.weights()
    cancel.check()
    metadata = lora_metadata(
        spec,
        trained,
        name=job.output.stem,
        checkpoint=model.path.name,
        family=model.family,
        velocity=model.velocity,
        side=largest(size_of(picture) for picture in pictures),
        extra=job.metadata or {},
    )
    write_lora(job.output, trained, metadata, dtype=job.precision.value)
    return Training(tuple(losses), time.monotonic() - started)


def random_stream(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for one purpose, independent of those of other names."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Contexts:
    """What the U-Net reads of each caption: encoded once, or anew at each step if ``live``."""

    def __init__(
        self, model: DiffusionModel, captions: CaptionSource, *, live: bool, clip_skip: int
    ) -> None:
        self._model, self._live, self._clip_skip = model, live, clip_skip
        self._cache: dict[str, Conditions] = {}
        if not live:
            self._remember(captions.all())

    def of(self, captions: Sequence[str]) -> Conditions:
        """Those of n captions; differentiable if ``live``."""
        if self._live:
            distinct = list(dict.fromkeys(captions))
            tokens = tokenize(self._model.tokenizer, distinct).to(self._model.device)
            encoded = encode_tokens(self._model, tokens, clip_skip=self._clip_skip)
            return encoded.rows([distinct.index(caption) for caption in captions])
        self._remember(captions)
        return joined([self._cache[caption] for caption in captions])

    def _remember(self, captions: Sequence[str]) -> None:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._cache]
        if not new:
            return
        encoded = encode_prompts(self._model, new, clip_skip=self._clip_skip)
        rows = [encoded.rows([number]) for number in range(len(new))]
        if (len(self._cache) + len(new)) * rows[0].context.nbytes > CONTEXT_CACHE_BYTES:
            # Shuffled tags never end: start over, but for what this step needs.
            self._cache = {c: self._cache[c] for c in captions if c in self._cache}
        self._cache.update(zip(new, rows, strict=True))


def loss_weights(spec: TrainingSpec, alpha_bar: torch.Tensor, *, velocity: bool) -> torch.Tensor:
    """The weight of every timestep, (1000,), float32; ``alpha_bar`` is the noise schedule."""
    snr = schedule.signal_to_noise(alpha_bar)
    if spec.loss_weighting is LossWeighting.MIN_SNR:
        return schedule.min_snr_weights(snr, spec.min_snr_gamma, velocity=velocity)
    if spec.loss_weighting is LossWeighting.DEBIASED:
        return schedule.debiased_weights(snr, velocity=velocity)
    return torch.ones_like(snr)


def _encoded(
    model: DiffusionModel, pictures: Pictures, cancel: CancelToken
) -> list[torch.Tensor]:
    """The latents (1, 4, h / 8, w / 8) of each picture, on the model's device."""
    found: dict[int, torch.Tensor] = {}
    for places in by_size(size_of(picture) for picture in pictures).values():
        stack = encode_pictures(model, [pictures[place] for place in places], cancel=cancel)
        stack = stack.to(model.device)
        found.update((place, stack[row : row + 1]) for row, place in enumerate(places))
    return [found[place] for place in range(len(pictures))]


class _Draws:
    """The random choices of each step, in streams that do not disturb each other."""

    def __init__(self, spec: TrainingSpec, latents: Sequence[torch.Tensor]) -> None:
        self._spec, self._shapes = spec, [one.shape for one in latents]
        names = ("noise", "offset", "timesteps", "pictures")
        self._noise, self._offset, self._timesteps, self._pictures = (
            random_stream(spec.seed, name) for name in names
        )
        self._order: list[int] = []

    def pictures(self) -> list[int]:
        """``batch_size`` numbers of pictures of one size: that of the one whose turn it is.

        Of the pictures of a size each comes once before any comes again, and all come as often.
        """
        size, order = self._spec.batch_size, self._order
        while len(batch := [one for one in order if self._shapes[one] == self._shapes[order[0]]]) < size:
            order += torch.randperm(len(self._shapes), generator=self._pictures).tolist()
        for one in batch[:size]:
            order.remove(one)
        return batch[:size]

    def timesteps(self) -> torch.Tensor:
        """(batch_size,), int64, min_timestep to below max_timestep."""
        spec = self._spec
        return torch.randint(
            spec.min_timestep,
            spec.max_timestep,
            (spec.batch_size,),
            generator=self._timesteps,
        )

    def noise(self, shape: torch.Size) -> torch.Tensor:
        """For latents of that shape (batch_size, 4, h, w), with the noise offset of each channel in it."""
        noise = torch.randn(shape, generator=self._noise)
        if self._spec.noise_offset:
            offset = torch.randn(*shape[:2], 1, 1, generator=self._offset)
            noise += self._spec.noise_offset * offset
        return noise


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


def _check(pictures: Pictures, job: TrainingJob) -> None:
    if not len(pictures):
        raise BadInput("there is no picture to train on: give at least one")
    if job.output.exists():
        raise BadInput(f"{str(job.output)!r} exists: choose another name")
    if not job.output.parent.is_dir():
        raise BadInput(f"the folder {str(job.output.parent)!r} does not exist: create it first")


def _run(
    model: DiffusionModel,
    spec: TrainingSpec,
    latents: Sequence[torch.Tensor],
    captions: CaptionSource,
    contexts: Contexts,
    lora: LoraModules,
    stage: str,
    observer: Observer,
    cancel: CancelToken,
) -> list[float]:
    """All steps; the losses."""
    parameters = lora.parameters()
    optimiser = build_optimiser(spec, parameters)
    scale = _LossScale(model.dtype)
    draws = _Draws(spec, latents)
    alpha_bar = schedule.alphas_cumprod()
    if model.predicts.zero_terminal_snr:
        alpha_bar = schedule.rescaled(alpha_bar)
    weights = loss_weights(spec, alpha_bar, velocity=model.velocity).to(model.device)
    alpha_bar = alpha_bar.to(model.device)
    losses: list[float] = []
    started = time.monotonic()
    for step in range(spec.steps):
        cancel.check()
        batch = draws.pictures()
        timesteps = draws.timesteps().to(model.device)
        conditions = contexts.of([captions.draw(picture) for picture in batch])
        # Unlike stack, cat keeps the memory format of the autoencoder's outputs, which convolutions go by.
        clean = torch.cat([latents[picture] for picture in batch])
        loss = _loss(
            model, clean, draws.noise(clean.shape).to(model.device), timesteps, conditions,
            alpha_bar=alpha_bar, weights=weights,
        )  # fmt: skip
        losses.append(_finite(float(loss.detach()), step, spec))
        (loss * scale.factor).backward()  # type: ignore[no-untyped-call]
        if scale.unscale(parameters):
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT, foreach=True)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(spec, step)
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rate = (time.monotonic() - started) / (step + 1)
        observer(ProgressEvent(stage, step + 1, spec.steps, loss=losses[-1], rate=rate))
    return losses


def _loss(
    model: DiffusionModel,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    conditions: Conditions,
    *,
    alpha_bar: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Mean over the batch of weight * mean squared error of what the U-Net predicts."""
    alpha = alpha_bar[timesteps]
    noised = schedule.add_noise(latents, noise, alpha)
    target = schedule.velocity_target(latents, noise, alpha) if model.velocity else noise
    height, width = (LATENT_STRIDE * side for side in latents.shape[2:])
    output = model.unet(
        noised.to(model.dtype),
        timesteps,
        conditions.context.to(model.dtype),
        added_cond_kwargs=conditions.added(width, height),
        return_dict=False,
    )[0]
    errors = (output.float() - target).square().mean(dim=(1, 2, 3))
    weighted: torch.Tensor = weights[timesteps] * errors
    return weighted.mean()


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
