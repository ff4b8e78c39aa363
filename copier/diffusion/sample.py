"""Draws pictures from prompts: DDIM with classifier-free guidance."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler

from copier.checkpoint.prediction import Parameterisation
from copier.checkpoint.shapes import LATENT_CHANNELS
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import LATENT_STRIDE, Array, check_size, decode_latents
from copier.diffusion.prompts import Conditions, encode_guided, joined
from copier.diffusion.schedule import FIRST_BETA, LAST_BETA, TIMESTEPS
from copier.errors import BadInput
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore

PIXELS_PER_BATCH = 2**20
"""Four pictures of 512 x 512, each of them twice where it is guided."""
LARGEST_BATCH = 16
NOISE = Parameterisation()
"""The U-Net predicts noise, on the usual schedule."""


def scheduler(predicts: Parameterisation = NOISE) -> DDIMScheduler:
    """diffusers' DDIM with the settings of the families, which are SD 1.x's; eta 0 is its default.

    With zero terminal SNR the first step must be the last timestep, where there is no signal: the spacing is
    "trailing" then (Lin et al. 2023, arXiv 2305.08891).
    """
    rescaled = predicts.zero_terminal_snr
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=FIRST_BETA,
        beta_end=LAST_BETA,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if predicts.velocity else "epsilon",
        rescale_betas_zero_snr=rescaled,
        timestep_spacing="trailing" if rescaled else "leading",
    )


def starting_noise(seeds: Sequence[int], width: int, height: int) -> torch.Tensor:
    """One latent of noise for each seed, (n, 4, height / 8, width / 8), float32, from the CPU.

    Each has a generator of its own: it depends neither on its neighbours nor on the device.
    """
    shape = (LATENT_CHANNELS, height // LATENT_STRIDE, width // LATENT_STRIDE)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def sample(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative: str = "",
    steps: int = 20,
    guidance: float | Sequence[float] = 7.0,
    width: int = 512,
    height: int = 512,
    clip_skip: int = 1,
    batch_size: int | None = None,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    stage: str = "sample",
) -> Array:
    """One picture for each pair of prompt and seed: float32 (n, height, width, 3) in [0, 1].

    A picture is the same whatever else is drawn beside it (to rounding). ``guidance`` is one scale
    for all or one each; 1 leaves out the unconditional half, and with it the negative prompt.
    ``batch_size`` None chooses by the size. The cancel token is asked before every step.

    Raises:
        BadInput: the lists differ in length, or a number is out of range.
        BadPicture: a side is no multiple of 8.
        Cancelled: the token was set.
    """
    check_size(width, height)
    scales = _scales(guidance, len(prompts))
    size = batch_size if batch_size is not None else default_batch(width, height)
    _check(prompts, seeds, steps, size)
    batches = [slice(first, first + size) for first in range(0, len(prompts), size)]
    step_done = _counter(stage, len(batches) * steps, guarded(observer))
    conditions, unconditional = encode_guided(model, prompts, negative, clip_skip=clip_skip)
    latents = [
        denoise(
            model,
            starting_noise(seeds[batch], width, height),
            conditions.rows(batch),
            unconditional,
            scales[batch],
            steps=steps,
            step_done=step_done,
            cancel=cancel,
        )
        for batch in batches
    ]
    return decode_latents(model, torch.cat(latents), cancel=cancel)


def default_batch(width: int, height: int) -> int:
    """How many pictures of this size are drawn at once."""
    return max(1, min(LARGEST_BATCH, PIXELS_PER_BATCH // (width * height)))


def _counter(stage: str, total: int, observer: Observer) -> Callable[[], None]:
    """A function that reports one more of ``total`` steps each time it is called."""
    done, started = 0, time.monotonic()

    def step_done() -> None:
        nonlocal done
        done += 1
        observer(ProgressEvent(stage, done, total, rate=(time.monotonic() - started) / done))

    return step_done


def _scales(guidance: float | Sequence[float], count: int) -> torch.Tensor:
    values = [guidance] * count if isinstance(guidance, (int, float)) else list(guidance)
    if len(values) != count:
        raise BadInput(f"there are {len(values)} guidance scales for {count} prompts")
    return torch.tensor(values, dtype=torch.float32)


def _check(prompts: Sequence[str], seeds: Sequence[int], steps: int, batch_size: int) -> None:
    if not prompts or len(prompts) != len(seeds):
        raise BadInput(
            f"there are {len(prompts)} prompts and {len(seeds)} seeds: give one seed a prompt, and "
            "at least one"
        )
    if not 1 <= steps < TIMESTEPS:
        raise BadInput(f"{steps} sampling steps: give 1 to {TIMESTEPS - 1}")
    if batch_size < 1:
        raise BadInput(f"the batch size is {batch_size}: give 1 or more")


@torch.no_grad()
def denoise(
    model: DiffusionModel,
    latents: torch.Tensor,
    conditions: Conditions,
    unconditional: Conditions,
    guidance: torch.Tensor,
    *,
    steps: int,
    last: int | None = None,
    step_done: Callable[[], None] = lambda: None,
    cancel: CancelToken | None = None,
) -> torch.Tensor:
    """The latents after all steps; only the guided ones pass through the U-Net a second time.

    Args: latents (n, 4, h, w); n conditions and one for the unconditional half; guidance (n,); ``last`` ends
    after so many of the ``steps``, with latents that are still noised.
    """
    ddim = scheduler(model.predicts)
    ddim.set_timesteps(steps)
    count = len(latents)
    guided = (guidance != 1.0).nonzero().flatten().to(model.device)
    scale = guidance.to(model.device)[guided].view(-1, 1, 1, 1)
    latents = latents.to(model.device)
    if len(guided):
        conditions = joined([conditions, unconditional.repeated(len(guided))])
    added = conditions.added(latents.shape[-1] * LATENT_STRIDE, latents.shape[-2] * LATENT_STRIDE)
    for timestep in ddim.timesteps[:last]:
        if cancel:
            cancel.check()
        both = torch.cat([latents, latents[guided]])
        output = model.unet(
            both.to(model.dtype), timestep, conditions.context, added_cond_kwargs=added
        ).sample.float()
        predicted, free = output[:count], output[count:]
        # free + scale * (predicted - free), for the guided ones in place.
        predicted[guided] = torch.lerp(free, predicted[guided], scale)
        latents = ddim.step(predicted, timestep, latents).prev_sample
        step_done()
    return latents
