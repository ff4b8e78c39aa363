"""Training of the pocket checkpoint's text encoder and U-Net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from copier.diffusion.prompts import tokenize
from copier.diffusion.schedule import add_noise, alphas_cumprod
from copier.diffusion.tokenizer import load_tokenizer
from copier.pocket import scenes
from copier.pocket.architecture import TEXT_WIDTH, build_text_encoder, build_unet
from copier.pocket.loop import run

POOLED_SHARES = {4: 2.0, 16: 12.0}
"""Weights of the error's means over squares of so many latents, in the U-Net's loss."""
NOISE_OFFSET = 0.4
"""Largest noise offset (Guttenberg 2023) of a training sample; each draws its own from 0 up."""
OFFSET_SHARE = 0.75
"""Share of the samples that get one; the others see white noise, as sampling starts from."""
EXCESS_NOISE = 0.25
"""Largest part by which the noise of a sample in the last stage exceeds what its timestep says."""


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


def train_text_encoder(work: Path, *, steps: int, seed: int, batch: int = 64) -> None:
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
        "text", work, steps=steps, peak=2e-3, parameters=list(model.parameters()), seed=seed,
        state_of=model.state_dict, load=model.load_state_dict, loss_at=loss_at,
    )  # fmt: skip


def noise_weights(alpha_bar: torch.Tensor, *, limit: float, power: float) -> torch.Tensor:
    """Loss weight of each timestep, of mean 1: (min(1 / alpha_bar, limit)) ** power.

    On 16 x 16 latents the noise's mean rivals the signal's at high timesteps, and the plain epsilon
    loss hardly sees it: backgrounds would come out in wrong colours.
    """
    weight = (1.0 / alpha_bar).clamp(max=limit) ** power
    return weight / weight.mean()


def offset_noise(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``noise`` (n, c, h, w) with a mean of its own in every channel of most samples.

    In SD 1.x's schedule the mean of a noised latent shows the background's colour down from the last
    timestep, and the U-Net learns to read it there instead of in the text. A noise offset hides it; its
    strength varies down to none, so that white noise stays what the model knows.
    """
    count, channels = noise.shape[:2]
    strength = NOISE_OFFSET * torch.rand(count, 1, 1, 1, generator=generator)
    strength *= torch.rand(count, 1, 1, 1, generator=generator) < OFFSET_SHARE
    return noise + strength * torch.randn(count, channels, 1, 1, generator=generator)


def excess_noise(noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``noise`` (n, c, h, w) up to ``EXCESS_NOISE`` stronger, evenly drawn for each sample.

    A prediction that is a little too small leaves noise in the latents at every step of sampling, more
    than the next timestep says; a network that never saw it takes it for structure. Against a like gap
    between training and sampling: input perturbation (Ning et al. 2023, arXiv:2301.11706), which leaves
    the target as it is; here the target grows with the noise, so that all of it is to be found.
    """
    return noise * (1 + EXCESS_NOISE * torch.rand(noise.shape[0], 1, 1, 1, generator=generator))


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

    def __init__(self, model: torch.nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards ``model``'s values after ``step`` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)


def train_unet(work: Path, *, steps: int, seed: int) -> None:
    """The U-Net where the text decides: loss and timesteps favour high noise.

    A third of the timesteps is above 900: only there the text decides the colours, for below the mean
    of the noised latents shows them.
    """
    start = work / "start.pt"
    unet = torch.load(start, map_location="cpu", weights_only=True) if start.exists() else None
    _train(
        "unet", work, steps=steps, seed=seed, peak=2e-3, stream=3, start=unet,
        weights=noise_weights(alphas_cumprod(), limit=100.0, power=0.75),
        spread=lambda even: 1 - (1 - even) ** 2, inputs=["latents.pt", "text.pt"],
    )  # fmt: skip


def settle_unet(work: Path, *, steps: int, seed: int) -> None:
    """The averaged U-Net again, with even timesteps, nearly even weights and excess noise.

    After the stage before, low noise is left in the pictures: backgrounds come out mottled.
    """
    average = torch.load(work / "unet.pt", map_location="cpu", weights_only=True)["model"]["average"]
    unet = {key.removeprefix("unet."): value for key, value in average.items() if key.startswith("unet.")}
    _train(
        "settle", work, steps=steps, seed=seed, peak=1e-3, stream=7, start=unet,
        weights=noise_weights(alphas_cumprod(), limit=10.0, power=0.25),
        spread=lambda even: even, disturb=excess_noise, inputs=["latents.pt", "text.pt", "unet.pt"],
    )  # fmt: skip


def _train(
    stage: str,
    work: Path,
    *,
    steps: int,
    seed: int,
    peak: float,
    stream: int,
    start: Mapping[str, torch.Tensor] | None,
    weights: torch.Tensor,
    spread: Callable[[torch.Tensor], torch.Tensor],
    inputs: Sequence[str],
    disturb: Callable[[torch.Tensor, torch.Generator], torch.Tensor] = lambda noise, generator: noise,
    batch: int = 24,
) -> None:
    """The U-Net on the cached latents, epsilon prediction, float32; the text encoder stays as it is.

    Args:
        stream: number of the stage's own random numbers.
        start: the U-Net's first values, by diffusers' names; None for random ones.
        weights: loss weight of each of the 1000 timesteps.
        spread: even numbers in [0, 1), stratified over the batch -> timesteps / 1000.
        disturb: what happens to the noise (n, c, h, w) beyond its offset; the target is what it returns.
    """
    torch.manual_seed(seed)
    data = torch.load(work / "latents.pt", map_location="cpu", weights_only=True)
    latents = data["latents"]
    drawn = [
        scenes.Scene(shape, colour, background, style) for shape, colour, background, style in data["scenes"]
    ]
    rows = CaptionRows()
    alpha_bar = alphas_cumprod()
    model = torch.nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(len(rows.tokens))})
    taught = torch.load(work / "text.pt", map_location="cpu", weights_only=True)["model"]
    model.load_state_dict({k: v for k, v in taught.items() if not k.startswith("heads.")}, strict=False)
    model["text_encoder"].requires_grad_(False)
    if start is not None:
        model["unet"].load_state_dict(start)
    average = Average(model)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, stream, step))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stream * 100_003 + step)
        chosen = rng.integers(0, len(drawn), batch)
        captions = [scenes.training_caption(drawn[i], rng) for i in chosen]
        even = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timesteps = (spread(even) * 1000).long().clamp(max=999)
        clean = latents[torch.from_numpy(chosen)]
        noise = offset_noise(torch.randn(clean.shape, generator=generator), generator)
        noise = disturb(noise, generator)
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
        stage, work, steps=steps, peak=peak, parameters=list(model["unet"].parameters()),
        state_of=lambda: {"model": model.state_dict(), "average": average.values},
        load=load, loss_at=loss_at, after=after, seed=seed, inputs=inputs,
    )  # fmt: skip
