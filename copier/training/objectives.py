"""What a training step asks of the U-Net: noised latents, and what it should predict of them.

With x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise of a picture x, A an original and B the same with one
thing changed, all as latents, the ``Target`` of a training on pictures means:

    noise     at weight +1: noise of B_t, B being what is trained on
    pair      at weight +1: noise of B_t; at -1: noise of A_t; the same noise and timestep, half the loss each
    semantic  at weight +1: noise + eta (A - B) of A_t

``pair`` is the loss of image sliders (Gandikota et al. 2023, "Concept Sliders", arXiv 2311.12092; the tool's
``trainscripts/imagesliders/train_lora-scale.py``), ``semantic`` that of PairEdit's semantic LoRA (Lu et al.
2025, arXiv 2506.07992; its ``train_image.py``), where a second LoRA beneath draws A: here a copier as base
LoRA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from copier.diffusion import schedule
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import LATENT_STRIDE
from copier.diffusion.prompts import Conditions, encode_prompts, encode_tokens, joined, tokenize
from copier.errors import BadInput
from copier.images.effects import Picture
from copier.recipe import LossWeighting, Target, TrainingSpec
from copier.training.captions import CaptionSource

CONTEXT_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Pass:
    """One pass of the U-Net in a step, and what it should predict.

    ``noised`` and ``target`` (n, 4, h, w); ``timesteps`` (n,), int64; ``mask`` (n, 1, h, w) in [0, 1] says
    where the loss counts, None: everywhere; ``multiplier`` is the LoRA's weight. ``conditions`` are made
    when they are wanted, with the LoRA at that weight: a text encoder may be trained too.
    """

    noised: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    conditions: Callable[[], Conditions]
    mask: torch.Tensor | None = None
    multiplier: float = 1.0


class Objective(Protocol):
    """Makes the passes of each step, in turn; their losses count alike."""

    def passes(self) -> Sequence[Pass]: ...


@dataclass(frozen=True)
class PictureLatents:
    """What is trained on, on the model's device: ``latents`` (1, 4, h, w) of each picture, in any sizes.

    ``originals`` are those that they are changes of, in the same order and sizes; ``masks`` are
    (1, 1, h, w) in [0, 1].
    """

    latents: Sequence[torch.Tensor]
    originals: Sequence[torch.Tensor] | None = None
    masks: Sequence[torch.Tensor] | None = None


def latent_mask(mask: Picture) -> torch.Tensor:
    """A picture's mask (height, width) in [0, 1] as (1, 1, height / 8, width / 8): the mean of each cell.

    sd-scripts scales them so too (``apply_masked_loss``), and neither divides by the mask's mean.
    """
    height, width = mask.shape
    grey = torch.from_numpy(mask).view(1, 1, height, width)
    cells = (height // LATENT_STRIDE, width // LATENT_STRIDE)
    return functional.interpolate(grey, size=cells, mode="area")


def random_stream(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for one purpose, independent of those of other names."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def noise_schedule(model: DiffusionModel) -> torch.Tensor:
    """alpha_bar of every timestep of the model's schedule, (1000,), on its device."""
    alpha_bar = schedule.alphas_cumprod()
    if model.predicts.zero_terminal_snr:
        alpha_bar = schedule.rescaled(alpha_bar)
    return alpha_bar.to(model.device)


def loss_weights(spec: TrainingSpec, alpha_bar: torch.Tensor, *, velocity: bool) -> torch.Tensor:
    """The weight of every timestep, (1000,), float32; ``alpha_bar`` is the noise schedule."""
    snr = schedule.signal_to_noise(alpha_bar)
    if spec.loss_weighting is LossWeighting.MIN_SNR:
        return schedule.min_snr_weights(snr, spec.min_snr_gamma, velocity=velocity)
    if spec.loss_weighting is LossWeighting.DEBIASED:
        return schedule.debiased_weights(snr, velocity=velocity)
    return torch.ones_like(snr)


def predicted(
    model: DiffusionModel, noised: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """What the U-Net predicts of ``noised``, float32 (n, 4, h, w)."""
    height, width = (LATENT_STRIDE * side for side in noised.shape[2:])
    output: torch.Tensor = model.unet(
        noised.to(model.dtype),
        timesteps,
        conditions.context.to(model.dtype),
        added_cond_kwargs=conditions.added(width, height),
        return_dict=False,
    )[0]
    return output.float()


def pass_loss(output: torch.Tensor, one: Pass, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of weight * mean of (mask *) squared error of what the U-Net predicts."""
    errors = (output - one.target).square()
    if one.mask is not None:
        errors = errors * one.mask
    weighted: torch.Tensor = weights[one.timesteps] * errors.mean(dim=(1, 2, 3))
    return weighted.mean()


class PictureObjective:
    """A training on pictures, with the target that ``spec`` names."""

    def __init__(
        self,
        model: DiffusionModel,
        spec: TrainingSpec,
        pictures: PictureLatents,
        captions: CaptionSource,
        contexts: Contexts,
    ) -> None:
        """
        Raises:
            BadInput: the target needs originals and there are none, or the semantic one is for a model that
                predicts velocity.
        """
        if spec.target is not Target.NOISE and pictures.originals is None:
            raise BadInput(f"the target {spec.target.value!r} needs the originals of the pictures: give them")
        if spec.target is Target.SEMANTIC and model.velocity:
            raise BadInput(
                "the target 'semantic' changes the noise that is predicted, but this checkpoint predicts "
                "velocity: choose the target 'pair'"
            )
        self._model, self._spec = model, spec
        self._captions, self._contexts = captions, contexts
        self._draws = Draws(spec, pictures.latents)
        self._alpha_bar = noise_schedule(model)
        self._pictures = pictures

    def passes(self) -> Sequence[Pass]:
        """Of the next step."""
        device, spec = self._model.device, self._spec
        batch = self._draws.pictures()
        timesteps = self._draws.timesteps().to(device)
        captions = [self._captions.draw(picture) for picture in batch]
        clean, original, mask = (
            self._chosen(one, batch)
            for one in (self._pictures.latents, self._pictures.originals, self._pictures.masks)
        )
        assert clean is not None, "a training has pictures"
        noise = self._draws.noise(clean.shape).to(device)
        alpha = self._alpha_bar[timesteps]

        def one(latents: torch.Tensor, multiplier: float = 1.0, shift: torch.Tensor | None = None) -> Pass:
            noised = schedule.add_noise(latents, noise, alpha)
            wanted = schedule.velocity_target(latents, noise, alpha) if self._model.velocity else noise
            wanted = wanted if shift is None else wanted + shift
            return Pass(noised, timesteps, wanted, lambda: self._contexts.of(captions), mask, multiplier)

        if spec.target is Target.NOISE or original is None:
            return (one(clean),)
        if spec.target is Target.PAIR:
            return (one(clean), one(original, -1.0))
        return (one(original, shift=spec.eta * (original - clean)),)

    @staticmethod
    def _chosen(those: Sequence[torch.Tensor] | None, batch: Sequence[int]) -> torch.Tensor | None:
        # Unlike stack, cat keeps the memory format of the autoencoder's outputs, which convolutions go by.
        return None if those is None else torch.cat([those[picture] for picture in batch])


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


class Draws:
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
