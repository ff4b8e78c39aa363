"""Train the pocket checkpoint: ``python -m copier.pocket.train STAGE --work DIR``.

Stages, in order; each resumes from ``DIR/<stage>.pt`` and appends to ``DIR/train.log.jsonl``:

    autoencoder   encoder and decoder on plain and edited scenes
    latents       fold scale and offset into quant_conv, encode the training scenes once
    text          the text encoder learns to name the scenes
    unet          the U-Net on the cached latents
    decoder       the decoder alone, on whole plain and edited scenes (the latents stay valid)

Everything is drawn from ``--seed``. ``python -m copier.pocket.export`` writes the checkpoint file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from copier.diffusion.prompts import tokenize
from copier.diffusion.schedule import add_noise, alphas_cumprod
from copier.diffusion.tokenizer import load_tokenizer
from copier.pocket import scenes
from copier.pocket.architecture import (
    LATENT_SCALE,
    TEXT_WIDTH,
    build_autoencoder,
    build_text_encoder,
    build_unet,
)

EDITED_SHARE = 0.5
CROPPED_SHARE = 0.7
KL_WEIGHT = 1e-5
START_LOG_VARIANCE = -5.0
NOISE_WEIGHT_LIMIT = 100.0
NOISE_WEIGHT_POWER = 0.75
POOLED_SHARES = {4: 4.0, 16: 48.0}
"""Weights of the error's means over squares of so many latents, in the U-Net's loss."""
SAVE_EVERY = 250


class Log:
    """Appends one JSON object a line to ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def cosine(step: int, steps: int, *, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then a cosine down to ``floor`` times ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


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


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture: (n, 3, h, w) in [-1, 1] -> (n,)."""
    error = ((output.clamp(-1, 1) - target) / 2).pow(2).flatten(1).mean(1)
    return -10 * torch.log10(error)


def run(
    name: str,
    work: Path,
    *,
    steps: int,
    peak: float,
    parameters: list[torch.nn.Parameter],
    state_of: Callable[[], dict[str, Any]],
    load: Callable[[dict[str, Any]], None],
    loss_at: Callable[[int], torch.Tensor],
    after: Callable[[int], dict[str, Any]] | None = None,
    weight_decay: float = 1e-4,
) -> None:
    """The training loop of every stage: AdamW, cosine, clipped gradients, saved and resumable."""
    log = Log(work / "train.log.jsonl")
    path = work / f"{name}.pt"
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.99), weight_decay=weight_decay)
    first = 0
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        load(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    total, since = 0.0, time.monotonic()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = cosine(step, steps, peak=peak)
        optimiser.zero_grad(set_to_none=True)
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        total += loss.item()
        done = step + 1
        extra = after(done) if after else {}
        if done % 50 == 0 or done == steps:
            seconds = time.monotonic() - since
            count = 50 if done % 50 == 0 else done % 50
            log.write(stage=name, step=done, loss=round(total / count, 5), seconds=round(seconds, 1), **extra)
            total, since = 0.0, time.monotonic()
        if done % SAVE_EVERY == 0 or done == steps:
            save(path, {"model": state_of(), "optimiser": optimiser.state_dict(), "step": done})


def train_autoencoder(work: Path, *, steps: int, seed: int) -> None:
    """Encoder and decoder in bfloat16 autocast: four crops of 64 px a step, later one whole scene.

    The norms' statistics differ between crops and whole scenes, hence the last part.
    """
    torch.manual_seed(seed)
    model = build_autoencoder().to(memory_format=torch.channels_last)
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
        target = target.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(target).latent_dist
            output = model.decode(posterior.sample()).sample
        return colour_loss(output.float(), target) + KL_WEIGHT * posterior.kl().mean()

    def after(done: int) -> dict[str, Any]:
        if done % SAVE_EVERY:
            return {}
        return {"psnr": autoencoder_psnr(model, count=16)}

    run(
        "autoencoder", work, steps=steps, peak=1e-3, parameters=list(model.parameters()),
        state_of=model.state_dict, load=model.load_state_dict, loss_at=loss_at, after=after,
    )  # fmt: skip


@torch.no_grad()
def latent_statistics(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the four latent channels over ``batch`` (n, 3, h, w)."""
    latents = model.encode(batch).latent_dist.mean
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def autoencoder_psnr(model: Any, *, count: int, seed: int = 999) -> dict[str, float]:
    """Mean PSNR in dB over ``count`` unseen whole scenes, plain and edited."""
    result = {}
    for name, share in (("plain", 0.0), ("edited", 1.0)):
        target = pictures(np.random.default_rng(seed), count, crop=None, edited_share=share)
        with torch.autocast("cpu", torch.bfloat16):
            output = model.decode(model.encode(target).latent_dist.mean).sample
        result[name] = round(float(psnr(output.float(), target).mean()), 2)
    return result


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
    state = torch.load(work / "autoencoder.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    rng = np.random.default_rng((seed, 2))
    latents, drawn = [], []
    model.to(memory_format=torch.channels_last)
    for _ in range(0, count, 8):
        batch = [scenes.random_scene(rng) for _ in range(8)]
        drawn += [(scene.shape, scene.colour, scene.background, scene.style) for scene in batch]
        stack = np.stack([scenes.render(scene) for scene in batch]).transpose(0, 3, 1, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(stack)) * 2 - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
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


def scene_tokens() -> list[int]:
    """The token ids that the caption grammar can produce, ascending; start and end included."""
    words = [*scenes.COLOURS, *scenes.SHAPES, *scenes.STYLES, "a", "on", "background", ","]
    return sorted(set(tokenize(load_tokenizer(), words).flatten().tolist()))


class CaptionRows:
    """Captions as rows of a small embedding table that has only the scene words' tokens."""

    def __init__(self) -> None:
        self.tokens = scene_tokens()
        self._tokenizer = load_tokenizer()
        self._row = {token: row for row, token in enumerate(self.tokens)}
        self._cache: dict[str, torch.Tensor] = {}

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """Captions -> row numbers (n, 77)."""
        for text in set(captions) - self._cache.keys():
            ids = tokenize(self._tokenizer, [text])[0].tolist()
            self._cache[text] = torch.tensor([self._row[token] for token in ids])
        return torch.stack([self._cache[text] for text in captions])


def noise_weights(alpha_bar: torch.Tensor) -> torch.Tensor:
    """Loss weight of each timestep, of mean 1: (min(1 / alpha_bar, limit)) ** power.

    On 16 x 16 latents the noise's mean rivals the signal's at high timesteps, and the plain epsilon
    loss hardly sees it: backgrounds would come out in wrong colours.
    """
    weight = (1.0 / alpha_bar).clamp(max=NOISE_WEIGHT_LIMIT) ** NOISE_WEIGHT_POWER
    return weight / weight.mean()


def pooled_error(error: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each picture with low frequencies counted again: (n, c, h, w) -> (n,).

    The text decides the colours, and they are in the means: of white noise's error the mean over 16 x
    16 latents is 1/256, and without these terms colours were still ignored after 1,500 steps. The
    minimum stays where it was: a positive quadratic form of the error is minimal at the same output.
    """
    total = error.pow(2).mean((1, 2, 3))
    for side, share in POOLED_SHARES.items():
        total = total + share * functional.avg_pool2d(error, side).pow(2).mean((1, 2, 3))
    return total


class Average:
    """Exponential moving average of parameters; the warm-up makes early averages short."""

    def __init__(self, model: torch.nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards ``model``'s values after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)


def caption_classes(scene: scenes.Scene, caption: str) -> list[int]:
    """What the caption says of shape, colour, background and style: numbers, 0 where it says nothing."""
    words = caption.replace(",", "").split()
    ground = caption.endswith("background") or " background," in caption
    before = caption.split(" on ")[0] if " on " in caption else ("" if ground else caption)
    return [
        1 + scenes.SHAPES.index(scene.shape) if scene.shape in words else 0,
        1 + list(scenes.COLOURS).index(scene.colour) if scene.colour in before.split() else 0,
        1 + list(scenes.COLOURS).index(scene.background) if ground else 0,
        1 + scenes.STYLES.index(scene.style) if scene.style and f", {scene.style}" in caption else 0,
    ]


def train_text_encoder(work: Path, *, steps: int, batch: int, peak: float, seed: int) -> None:
    """Teach the text encoder to name the scene at every position from the end mark on.

    CLIP comes to Stable Diffusion trained; a random one hides the caption's few words among 77
    tokens, and the U-Net learns to look for shapes late and for colours not at all. Four linear heads
    (shape, colour, background, style) read the hidden states; they are thrown away.
    """
    torch.manual_seed(seed)
    rows = CaptionRows()
    counts = (len(scenes.SHAPES), len(scenes.COLOURS), len(scenes.COLOURS), len(scenes.STYLES))
    encoder = build_text_encoder(len(rows.tokens))
    heads = torch.nn.ModuleList(torch.nn.Linear(TEXT_WIDTH, count + 1) for count in counts)
    model = torch.nn.ModuleDict({"text_encoder": encoder, "heads": heads})

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 5, step))
        drawn = [scenes.random_scene(rng, styles=0.3) for _ in range(batch)]
        captions = [scenes.training_caption(scene, rng) for scene in drawn]
        said = [caption_classes(scene, text) for scene, text in zip(drawn, captions, strict=True)]
        tokens = rows(captions)
        hidden = encoder(tokens).last_hidden_state
        after_end = tokens == len(rows.tokens) - 1
        known = torch.tensor(said)[:, None].expand(-1, tokens.shape[1], -1)[after_end]
        states = hidden[after_end]
        losses = [functional.cross_entropy(head(states), known[:, i]) for i, head in enumerate(heads)]
        return torch.stack(losses).mean()

    run(
        "text", work, steps=steps, peak=peak, parameters=list(model.parameters()),
        state_of=model.state_dict, load=model.load_state_dict, loss_at=loss_at,
    )  # fmt: skip


def train_unet(work: Path, *, steps: int, batch: int, peak: float, seed: int) -> None:
    """The U-Net on the cached latents, epsilon prediction, float32; the text encoder stays as it is."""
    torch.manual_seed(seed)
    data = torch.load(work / "latents.pt", map_location="cpu", weights_only=True)
    latents = data["latents"]
    drawn = [
        scenes.Scene(shape, colour, background, style) for shape, colour, background, style in data["scenes"]
    ]
    rows = CaptionRows()
    alpha_bar = alphas_cumprod()
    weights = noise_weights(alpha_bar)
    model = torch.nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(len(rows.tokens))})
    taught = torch.load(work / "text.pt", map_location="cpu", weights_only=True)["model"]
    model.load_state_dict({k: v for k, v in taught.items() if not k.startswith("heads.")}, strict=False)
    model["text_encoder"].requires_grad_(False)
    average = Average(model)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 3, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = rng.integers(0, len(drawn), batch)
        captions = [scenes.training_caption(drawn[i], rng) for i in chosen]
        # Stratified timesteps, a third of them above 900: only there the text decides the colours,
        # for below the mean of the noised latents shows them.
        even = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timesteps = ((1 - (1 - even) ** 2) * 1000).long().clamp(max=999)
        clean = latents[torch.from_numpy(chosen)]
        noise = torch.randn(clean.shape, generator=generator)
        noised = add_noise(clean, noise, alpha_bar[timesteps])
        context = model["text_encoder"](rows(captions)).last_hidden_state
        output = model["unet"](noised, timesteps, context).sample
        return (pooled_error(output - noise) * weights[timesteps]).mean()

    def after(done: int) -> dict[str, Any]:
        average.update(model, done)
        return {}

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        average.values = state["average"]

    run(
        "unet", work, steps=steps, peak=peak, parameters=list(model["unet"].parameters()),
        state_of=lambda: {"model": model.state_dict(), "average": average.values},
        load=load, loss_at=loss_at, after=after,
    )  # fmt: skip


def train_decoder(work: Path, *, steps: int, peak: float, seed: int) -> None:
    """The decoder alone, on whole scenes: the U-Net's latents stay what they are."""
    torch.manual_seed(seed)
    model = build_autoencoder().to(memory_format=torch.channels_last)
    data = torch.load(work / "latents.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(data["autoencoder"])
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 4, step))
        target = pictures(rng, 2, crop=None, edited_share=EDITED_SHARE)
        target = target.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = model.encode(target).latent_dist.mean
            output = model.decode(latents).sample
        return colour_loss(output.float(), target)

    def after(done: int) -> dict[str, Any]:
        return {} if done % SAVE_EVERY else {"psnr": autoencoder_psnr(model, count=16)}

    run(
        "decoder", work, steps=steps, peak=peak,
        parameters=[*model.decoder.parameters(), *model.post_quant_conv.parameters()],
        state_of=model.state_dict, load=model.load_state_dict, loss_at=loss_at, after=after,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stage", choices=("autoencoder", "latents", "text", "unet", "decoder"))
    parser.add_argument("--work", type=Path, required=True, help="folder of states and log")
    parser.add_argument("--steps", type=int, help="optimiser steps of this stage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "autoencoder":
        train_autoencoder(arguments.work, steps=arguments.steps or 3000, seed=arguments.seed)
    elif arguments.stage == "latents":
        encode_scenes(arguments.work, count=5120, seed=arguments.seed)
    elif arguments.stage == "text":
        train_text_encoder(
            arguments.work, steps=arguments.steps or 1000, batch=64, peak=2e-3, seed=arguments.seed
        )
    elif arguments.stage == "unet":
        train_unet(arguments.work, steps=arguments.steps or 2700, batch=24, peak=2e-3, seed=arguments.seed)
    else:
        train_decoder(arguments.work, steps=arguments.steps or 1000, peak=5e-4, seed=arguments.seed)


if __name__ == "__main__":
    main()
