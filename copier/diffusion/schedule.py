"""The noise schedule of Stable Diffusion 1.x, 2.x and SDXL, and loss weights, as pure functions.

``alpha_bar`` is the product of (1 - beta) up to a timestep: a noised latent is
sqrt(alpha_bar) * latent + sqrt(1 - alpha_bar) * noise.
"""

from __future__ import annotations

import torch

TIMESTEPS = 1000
FIRST_BETA = 0.00085
LAST_BETA = 0.012
DEBIASED_LIMIT = 1000.0
"""sd-scripts caps the signal-to-noise ratio here before it takes the root."""


def alphas_cumprod(
    timesteps: int = TIMESTEPS, first_beta: float = FIRST_BETA, last_beta: float = LAST_BETA
) -> torch.Tensor:
    """alpha_bar of every timestep, shape (timesteps,), float32.

    The betas are the squares of a line between the roots ("scaled linear"; Rombach et al. 2022).
    """
    betas = torch.linspace(first_beta**0.5, last_beta**0.5, timesteps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def rescaled(alpha_bar: torch.Tensor) -> torch.Tensor:
    """The schedule stretched so that it ends at pure noise: alpha_bar is 0 at the last timestep.

    Its root is shifted and scaled; the first value stays (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    """
    root = alpha_bar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * (first / (first - last))).square()


def signal_to_noise(alpha_bar: torch.Tensor) -> torch.Tensor:
    """alpha_bar / (1 - alpha_bar), elementwise."""
    return alpha_bar / (1.0 - alpha_bar)


def min_snr_weights(snr: torch.Tensor, gamma: float, *, velocity: bool = False) -> torch.Tensor:
    """Loss weights min(snr, gamma) / snr, or / (snr + 1) where the model predicts velocity.

    Hang et al. 2023 (arXiv 2303.09556); the same numbers as sd-scripts' ``min_snr_gamma``.
    """
    return snr.clamp(max=gamma) / (snr + 1.0 if velocity else snr)


def debiased_weights(snr: torch.Tensor, *, velocity: bool = False) -> torch.Tensor:
    """Loss weights 1 / sqrt(snr), snr at most 1000, or 1 / (snr + 1) for velocity.

    Yu et al. 2023 (arXiv 2310.08442); the same numbers as sd-scripts'
    ``debiased_estimation_loss``.
    """
    snr = snr.clamp(max=DEBIASED_LIMIT)
    return 1.0 / (snr + 1.0) if velocity else snr.rsqrt()


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Noised latents (n, c, h, w); ``alpha_bar`` (n,) holds one value for each of them."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1.0 - alpha_bar).sqrt() * noise


def velocity_target(
    latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor
) -> torch.Tensor:
    """sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * latents (Salimans and Ho 2022)."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents
