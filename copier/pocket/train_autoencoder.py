"""Training of the pocket checkpoint's autoencoder, and the latents that its U-Net is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from copier.diffusion.load import load_checkpoint
from copier.digest import file_digest
from copier.pocket import scenes
from copier.pocket.architecture import LATENT_SCALE, build_autoencoder
from copier.pocket.loop import SAVE_EVERY, Log, fast_layout, half_precision, run, save

EDITED_SHARE = 0.5
DECODER_EDITED_SHARE = 0.75
"""Of the last stage: edited scenes are what it is short of."""
CROPPED_SHARE = 0.7
KL_WEIGHT = 1e-5
START_LOG_VARIANCE = -5.0


def pictures(rng: np.random.Generator, count: int, *, crop: int | None, edited_share: float) -> torch.Tensor:
    """``count`` training scenes, a share of them edited: (count, 3, side, side) in [-1, 1]."""
    batch = []
    for _ in range(count):
        picture = scenes.render(scenes.random_scene(rng))
        if rng.random() < edited_share:
            picture = scenes.edited(picture, rng)
        if crop:
            top, left = rng.integers(0, scenes.SIZE - crop + 1, 2)
            picture = picture[top : top + crop, left : left + crop]
        batch.append(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))))
    return torch.stack(batch) * 2 - 1


def colour_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, with chroma counted again and saturated pixels weighted up.

    Args: two tensors (n, 3, h, w) in [-1, 1].
    """
    error = output - target
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    chroma = error - (error * luma).sum(1, keepdim=True)
    saturated = (target.amax(1, keepdim=True) - target.amin(1, keepdim=True)) / 2
    weight = 1 + saturated
    return (weight * (error.abs() + 0.5 * chroma.abs())).mean() + 4 * (weight * error**2).mean()


def decibel_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of -PSNR / 10 over the pictures, which the quality gate counts, and some ``colour_loss``."""
    error = ((output - target) / 2).pow(2).flatten(1).mean(1)
    return torch.log10(error + 1e-6).mean() + 0.5 * colour_loss(output, target)


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture: (n, 3, h, w) in [-1, 1] -> (n,)."""
    error = ((output.clamp(-1, 1) - target) / 2).pow(2).flatten(1).mean(1)
    return -10 * torch.log10(error)


def unpack(work: Path, checkpoint: Path) -> None:
    """Take a checkpoint's autoencoder as the outcome of that stage, and its U-Net as a start."""
    if (work / "autoencoder.pt").exists():
        raise FileExistsError(f"{work / 'autoencoder.pt'} exists: it would be lost; take another folder")
    model = load_checkpoint(checkpoint)
    # As the stage leaves it, unit variance without the scale: else the KL term pulls 30 times as hard.
    fold_latents(model.vae, torch.zeros(4), torch.full((4,), LATENT_SCALE**-2))
    save(work / "autoencoder.pt", {"model": model.vae.state_dict(), "step": 0})
    save(work / "start.pt", model.unet.state_dict())
    log = Log(work / "train.log.jsonl")
    log.write(stage="unpack", checkpoint=checkpoint.name, sha256=file_digest(checkpoint))


def train_autoencoder(work: Path, *, steps: int, seed: int) -> None:
    """Encoder and decoder (see ``half_precision``): four crops of 64 px a step, later one whole scene.

    The norms' statistics differ between crops and whole scenes, hence the last part.
    """
    torch.manual_seed(seed)
    model = fast_layout(build_autoencoder())
    with torch.no_grad():
        model.quant_conv.bias[4:] = START_LOG_VARIANCE
        model.quant_conv.weight[4:] *= 0.1
        # Latents of unit variance from the first step: the noise of the posterior drowns less.
        first = pictures(np.random.default_rng((seed, 0)), 16, crop=64, edited_share=EDITED_SHARE)
        mean, std = latent_statistics(model, first)
        model.quant_conv.weight[:4] /= std.view(4, 1, 1, 1)
        model.quant_conv.bias[:4] = (model.quant_conv.bias[:4] - mean) / std

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 1, step))
        torch.manual_seed(seed + step)
        crops = step < CROPPED_SHARE * steps
        target = pictures(rng, 4 if crops else 1, crop=64 if crops else None, edited_share=EDITED_SHARE)
        target = fast_layout(target)
        with half_precision():
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
        return colour_loss(output.float(), target) + KL_WEIGHT * posterior.kl().mean()

    _run("autoencoder", work, model, loss_at, steps=steps, peak=1e-3, seed=seed)


def polish_autoencoder(work: Path, *, steps: int, seed: int) -> None:
    """Encoder and decoder on one whole scene a step, plain and edited, for the PSNR itself."""
    torch.manual_seed(seed)
    model = fast_layout(build_autoencoder())
    state = torch.load(work / "autoencoder.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 6, step))
        torch.manual_seed(seed + step)
        target = fast_layout(pictures(rng, 1, crop=None, edited_share=EDITED_SHARE))
        with half_precision():
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
        return decibel_loss(output.float(), target) + KL_WEIGHT * posterior.kl().mean()

    _run("polish", work, model, loss_at, steps=steps, peak=1.5e-4, seed=seed, inputs=["autoencoder.pt"])


def train_decoder(work: Path, *, steps: int, seed: int) -> None:
    """The decoder alone, on whole scenes: the U-Net's latents stay what they are."""
    torch.manual_seed(seed)
    model = fast_layout(build_autoencoder())
    data = torch.load(work / "latents.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(data["autoencoder"])
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 4, step))
        target = fast_layout(pictures(rng, 1, crop=None, edited_share=DECODER_EDITED_SHARE))
        with half_precision():
            with torch.no_grad():
                latents = model.encode(target).latent_dist.mean
            output = model.decode(latents).sample
        return decibel_loss(output.float(), target)

    _run("decoder", work, model, loss_at, steps=steps, peak=1.5e-4, seed=seed, inputs=["latents.pt"])


def _run(
    stage: str,
    work: Path,
    model: Any,
    loss_at: Callable[[int], torch.Tensor],
    *,
    steps: int,
    peak: float,
    seed: int,
    inputs: Sequence[str] = (),
) -> None:
    """The shared loop over what is not frozen in ``model``; now and then the log has the PSNR."""

    def after(done: int) -> dict[str, Any]:
        if done % SAVE_EVERY and done != steps:
            return {}
        return {"psnr": autoencoder_psnr(model, count=16)}

    run(
        stage, work, steps=steps, peak=peak, seed=seed, inputs=inputs,
        parameters=[one for one in model.parameters() if one.requires_grad],
        state_of=model.state_dict, load=model.load_state_dict, loss_at=loss_at, after=after,
    )  # fmt: skip


@torch.no_grad()
def autoencoder_psnr(model: Any, *, count: int, seed: int = 999) -> dict[str, float]:
    """Mean PSNR in dB over ``count`` unseen whole scenes, plain and edited."""
    result = {}
    for name, share in (("plain", 0.0), ("edited", 1.0)):
        target = pictures(np.random.default_rng(seed), count, crop=None, edited_share=share)
        with half_precision():
            output = model.decode(model.encode(target).latent_dist.mean).sample
        result[name] = round(float(psnr(output.float(), target).mean()), 2)
    return result


@torch.no_grad()
def latent_statistics(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the four latent channels over ``batch`` (n, 3, h, w)."""
    latents = model.encode(batch).latent_dist.mean
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def fold_latents(model: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fold scale and offset into quant_conv and post_quant_conv, exactly.

    Afterwards latents times ``LATENT_SCALE`` have zero mean and unit variance in each of the four
    channels; the decoded picture of a scene does not change.
    """
    gain = 1.0 / (std * LATENT_SCALE)
    post = model.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= (1.0 / gain).view(1, 4, 1, 1)
    quant = model.quant_conv
    quant.weight[:4] *= gain.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.bias[4:] += 2 * gain.log()


@torch.no_grad()
def encode_scenes(work: Path, *, count: int, seed: int) -> None:
    """Fold the autoencoder's latents and encode ``count`` training scenes once.

    Writes ``latents.pt``: the folded autoencoder, latents (count, 4, 16, 16) of unit variance and
    the scenes as (shape, colour, background, style).
    """
    torch.manual_seed(seed)
    model = build_autoencoder().eval()
    state = torch.load(work / "polish.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    rng = np.random.default_rng((seed, 2))
    latents, drawn = [], []
    fast_layout(model)
    for _ in range(0, count, 8):
        batch = [scenes.random_scene(rng) for _ in range(8)]
        drawn += [(scene.shape, scene.colour, scene.background, scene.style) for scene in batch]
        stack = np.stack([scenes.render(scene) for scene in batch]).transpose(0, 3, 1, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(stack)) * 2 - 1
        pixels = fast_layout(pixels)
        with half_precision():
            latents.append(model.encode(pixels).latent_dist.mean.float().contiguous())
    stacked = torch.cat(latents)
    mean, std = stacked.mean((0, 2, 3)), stacked.std((0, 2, 3))
    fold_latents(model, mean, std)
    stacked = (stacked - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1)
    save(
        work / "latents.pt",
        {"autoencoder": model.state_dict(), "latents": stacked, "scenes": drawn, "seed": seed},
    )
    Log(work / "train.log.jsonl").write(
        stage="latents", scenes=len(drawn), mean=mean.tolist(), std=std.tolist()
    )
