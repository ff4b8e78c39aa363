from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from copier.checkpoint.prediction import Parameterisation
from copier.diffusion import schedule
from copier.diffusion.sample import scheduler

STEPS = torch.tensor([0, 250, 999])


def test_alphas_are_those_of_diffusers_with_sd1s_settings() -> None:
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.equal(schedule.alphas_cumprod(), theirs.alphas_cumprod)
    assert schedule.alphas_cumprod()[-1] == pytest.approx(0.0047, abs=1e-4)


def test_noise_and_velocity_are_those_of_diffusers() -> None:
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    alpha_bar = schedule.alphas_cumprod()[STEPS]
    noised = schedule.add_noise(latents, noise, alpha_bar)
    assert torch.allclose(noised, theirs.add_noise(latents, noise, STEPS), atol=1e-6)
    velocity = schedule.velocity_target(latents, noise, alpha_bar)
    assert torch.allclose(velocity, theirs.get_velocity(latents, noise, STEPS), atol=1e-6)


def test_the_latent_follows_from_the_noised_one_and_the_velocity() -> None:
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    alpha_bar = schedule.alphas_cumprod()[STEPS]
    noised = schedule.add_noise(latents, noise, alpha_bar)
    velocity = schedule.velocity_target(latents, noise, alpha_bar)
    a = alpha_bar.view(-1, 1, 1, 1)
    assert torch.allclose(a.sqrt() * noised - (1 - a).sqrt() * velocity, latents, atol=1e-5)


def test_min_snr_weights_are_one_where_the_ratio_is_below_gamma() -> None:
    snr = schedule.signal_to_noise(schedule.alphas_cumprod())
    weights = schedule.min_snr_weights(snr, 5.0)
    assert torch.all(weights[snr <= 5] == 1)
    assert torch.allclose(weights * snr, snr.clamp(max=5.0))
    assert weights[0] < 0.01


def test_debiased_weights_are_the_root_of_noise_to_signal_with_a_floor() -> None:
    snr = schedule.signal_to_noise(schedule.alphas_cumprod())
    weights = schedule.debiased_weights(snr)
    assert weights[0] == pytest.approx(1000**-0.5)
    assert torch.allclose(weights[500:] ** 2, 1 / snr[500:])
    assert torch.all(weights.diff() >= 0)


def test_for_velocity_the_weights_are_divided_by_snr_plus_one_instead() -> None:
    snr = torch.tensor([0.5, 5.0, 500.0])
    assert torch.allclose(
        schedule.min_snr_weights(snr, 5.0, velocity=True), snr.clamp(max=5) / (snr + 1)
    )
    assert torch.allclose(schedule.debiased_weights(snr, velocity=True), 1 / (snr + 1))


def test_the_sampler_ends_at_timestep_one_and_not_at_alpha_one() -> None:
    ddim = scheduler()
    ddim.set_timesteps(20)
    assert ddim.timesteps[-1] == 1
    assert ddim.final_alpha_cumprod == ddim.alphas_cumprod[0]


def test_the_rescaled_schedule_is_that_of_diffusers_and_ends_at_pure_noise() -> None:
    rescaled = schedule.rescaled(schedule.alphas_cumprod())
    theirs = scheduler(Parameterisation(velocity=True, zero_terminal_snr=True)).alphas_cumprod
    assert torch.allclose(rescaled, theirs, atol=1e-5)
    assert float(rescaled[-1]) == 0.0
    assert float(rescaled[0]) == pytest.approx(float(schedule.alphas_cumprod()[0]))
