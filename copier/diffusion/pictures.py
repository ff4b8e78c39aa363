"""Pictures to latents and back, through the checkpoint's autoencoder.

Pictures are float32 arrays (n, height, width, 3) in [0, 1]; latents are tensors
(n, 4, height / 8, width / 8), scaled to about unit variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from copier.diffusion.model import DiffusionModel
from copier.errors import BadPicture
from copier.progress import CancelToken

Array = np.ndarray[Any, np.dtype[np.float32]]

LATENT_STRIDE = 8
"""Pixels along one side of a latent (KL-f8)."""
PIXELS_PER_BATCH = 2**19
"""Two pictures of 512 x 512: the autoencoder's widest maps are then 0.5 GB in float32."""


def _batches(count: int, height: int, width: int) -> list[slice]:
    size = max(1, min(8, PIXELS_PER_BATCH // (height * width)))
    return [slice(first, first + size) for first in range(0, count, size)]


def check_size(width: int, height: int) -> None:
    """Raise ``BadPicture`` where a side is no positive multiple of 8."""
    for name, side in (("width", width), ("height", height)):
        if side < LATENT_STRIDE or side % LATENT_STRIDE:
            raise BadPicture(
                f"the {name} is {side} pixels: the autoencoder needs a multiple of {LATENT_STRIDE}"
            )


@torch.no_grad()
def encode_pictures(
    model: DiffusionModel, pictures: Array | Sequence[Array], *, cancel: CancelToken | None = None
) -> torch.Tensor:
    """The mean of the autoencoder's posterior, times the latent scale.

    Raises:
        BadPicture: a side is no multiple of 8, or the shapes are not (n, h, w, 3).
    """
    stack = np.asarray(pictures, dtype=np.float32)
    if stack.ndim != 4 or stack.shape[-1] != 3:
        raise BadPicture(f"the pictures have the shape {stack.shape}: expected is (n, h, w, 3)")
    count, height, width, _ = stack.shape
    check_size(width, height)
    scale, latents = model.structure.latent_scale, []
    for batch in _batches(count, height, width):
        if cancel:
            cancel.check()
        x = torch.from_numpy(np.ascontiguousarray(stack[batch].transpose(0, 3, 1, 2)))
        x = (x * 2.0 - 1.0).to(model.device, model.vae.dtype)
        latents.append(model.vae.encode(x).latent_dist.mean.float() * scale)
    return torch.cat(latents) if latents else torch.empty(0, 4, height // 8, width // 8)


@torch.no_grad()
def decode_latents(
    model: DiffusionModel, latents: torch.Tensor, *, cancel: CancelToken | None = None
) -> Array:
    """The pictures that the autoencoder draws of ``latents``, clipped to [0, 1]."""
    count, _, height, width = latents.shape
    pictures = []
    for batch in _batches(count, height * LATENT_STRIDE, width * LATENT_STRIDE):
        if cancel:
            cancel.check()
        z = (latents[batch] / model.structure.latent_scale).to(model.device, model.vae.dtype)
        x = model.vae.decode(z).sample.float().cpu()
        pictures.append(((x + 1.0) / 2.0).clamp(0.0, 1.0).permute(0, 2, 3, 1).numpy())
    if not pictures:
        return np.empty((0, height * LATENT_STRIDE, width * LATENT_STRIDE, 3), dtype=np.float32)
    return np.ascontiguousarray(np.concatenate(pictures))


def reconstruct(
    model: DiffusionModel, pictures: Array | Sequence[Array], *, cancel: CancelToken | None = None
) -> Array:
    """decode(encode(x)): the best that this autoencoder can draw of ``pictures``."""
    return decode_latents(model, encode_pictures(model, pictures, cancel=cancel), cancel=cancel)
