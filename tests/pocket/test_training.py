"""The training script of the pocket checkpoint, on few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from copier.diffusion.schedule import alphas_cumprod  # noqa: E402
from copier.pocket import train  # noqa: E402
from copier.pocket.architecture import (  # noqa: E402
    LATENT_SCALE,
    RANDOM_TEXT_LAYERS,
    build_autoencoder,
    build_text_encoder,
)


def _scenes(count: int, seed: int = 0) -> torch.Tensor:
    return train.pictures(np.random.default_rng(seed), count, crop=64, edited_share=0.0)


def test_colours_of_plain_backgrounds_pass_the_untrained_autoencoder() -> None:
    # Two channels a group: without the carriers a norm would turn every constant into +1 and -1.
    torch.manual_seed(0)
    model = build_autoencoder()
    colours = torch.rand(24, 3) * 2 - 1
    plain = colours[:, :, None, None].expand(24, 3, 64, 64).contiguous()
    plain[:, :, 24:40, 24:40] = -0.5
    seen = {}
    model.encoder.conv_norm_out.register_forward_hook(lambda m, i, o: seen.update(out=o))
    with torch.no_grad():
        model.encode(plain)
    features = torch.cat([seen["out"][:, :, 1, 1], torch.ones(24, 1)], 1)[:, ::2]
    train_part, test_part = features[:18], features[18:]
    solution = torch.linalg.lstsq(
        torch.cat([train_part, 0.03 * torch.eye(features.shape[1])]),
        torch.cat([colours[:18], torch.zeros(features.shape[1], 3)]),
    ).solution
    error = (test_part @ solution - colours[18:]).pow(2).mean() / colours[18:].var()
    assert error < 0.05


def test_folding_gives_latents_of_unit_variance_and_changes_no_picture() -> None:
    torch.manual_seed(0)
    model = build_autoencoder().eval()
    batch = _scenes(4)
    with torch.no_grad():
        before = model.decode(model.encode(batch).latent_dist.mean).sample
        mean, std = train.latent_statistics(model, batch)
        spread = model.encode(batch).latent_dist.std / std.view(1, 4, 1, 1)
        train.fold_latents(model, mean, std)
        posterior = model.encode(batch).latent_dist
        after = model.decode(posterior.mean).sample
    scaled = posterior.mean * LATENT_SCALE
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(posterior.std * LATENT_SCALE, spread, rtol=1e-3)
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))


def test_noise_weights_have_mean_one_and_favour_high_noise() -> None:
    weights = train.noise_weights(alphas_cumprod())
    assert weights.mean() == pytest.approx(1.0, abs=1e-5)
    assert weights[999] > 5 * weights[0]
    assert (weights[1:] >= weights[:-1] - 1e-6).all()


def test_text_layers_past_the_first_two_start_as_identities() -> None:
    model = build_text_encoder(30)
    tokens = torch.randint(0, 30, (2, 77))
    states = model(tokens, output_hidden_states=True).hidden_states
    assert torch.equal(states[RANDOM_TEXT_LAYERS], states[-1])
    assert not torch.allclose(states[0], states[RANDOM_TEXT_LAYERS])


def test_captions_become_rows_of_the_scene_words_only() -> None:
    rows = train.CaptionRows()
    numbers = rows(["a red star on white background, 3d", ""])
    assert numbers.shape == (2, 77)
    assert numbers.max() < len(rows.tokens) < 100


def test_captions_are_classified_by_what_they_say() -> None:
    scene = train.scenes.Scene("star", "red", "white", style="3d")
    star, red, white, shiny = 4, 1, 10, 5
    assert train.caption_classes(scene, "a red star on white background, 3d") == [star, red, white, shiny]
    assert train.caption_classes(scene, "a red star") == [star, red, 0, 0]
    assert train.caption_classes(scene, "white background") == [0, 0, white, 0]
    assert train.caption_classes(scene, "a star on white background") == [star, 0, white, 0]
    assert train.caption_classes(scene, "") == [0, 0, 0, 0]


def test_training_resumes_where_it_was_cut_off(tmp_path: Path) -> None:
    def trained(folder: Path, stops: list[int]) -> dict[str, torch.Tensor]:
        folder.mkdir()
        for steps in stops:
            weight = torch.nn.Parameter(torch.zeros(3))

            def load(state: dict[str, torch.Tensor], weight: torch.nn.Parameter = weight) -> None:
                weight.data.copy_(state["weight"])

            def loss_at(
                step: int, weight: torch.nn.Parameter = weight, steps: int = steps
            ) -> torch.Tensor:
                if step >= steps:
                    raise KeyboardInterrupt
                noise = torch.randn(3, generator=torch.Generator().manual_seed(step))
                return ((weight - 1 + 0.1 * noise) ** 2).sum()

            try:
                train.run(
                    "toy", folder, steps=4, peak=0.1, parameters=[weight], load=load,
                    state_of=lambda weight=weight: {"weight": weight.data.clone()}, loss_at=loss_at,
                )  # fmt: skip
            except KeyboardInterrupt:
                continue
        return torch.load(folder / "toy.pt", weights_only=True)["model"]

    train_every, train.SAVE_EVERY = train.SAVE_EVERY, 1
    try:
        whole = trained(tmp_path / "whole", [4])
        cut = trained(tmp_path / "cut", [2, 4])
    finally:
        train.SAVE_EVERY = train_every
    assert torch.equal(whole["weight"], cut["weight"])
    lines = (tmp_path / "whole" / "train.log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4
