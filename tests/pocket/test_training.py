"""The training script of the pocket checkpoint, on few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from copier.checkpoint.writer import write_tensors  # noqa: E402
from copier.diffusion.schedule import alphas_cumprod  # noqa: E402
from copier.pocket import loop, scenes, train_autoencoder  # noqa: E402
from copier.pocket.architecture import (  # noqa: E402
    LATENT_SCALE,
    RANDOM_TEXT_LAYERS,
    build_autoencoder,
    build_text_encoder,
)
from copier.pocket.checkpoint import checkpoint_path  # noqa: E402
from copier.pocket.train_unet import CaptionRows, caption_classes, noise_weights  # noqa: E402


def _scenes(count: int, seed: int = 0) -> torch.Tensor:
    return train_autoencoder.pictures(np.random.default_rng(seed), count, crop=64, edited_share=0.0)


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
        mean, std = train_autoencoder.latent_statistics(model, batch)
        spread = model.encode(batch).latent_dist.std / std.view(1, 4, 1, 1)
        train_autoencoder.fold_latents(model, mean, std)
        posterior = model.encode(batch).latent_dist
        after = model.decode(posterior.mean).sample
    scaled = posterior.mean * LATENT_SCALE
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(posterior.std * LATENT_SCALE, spread, rtol=1e-3)
    assert torch.allclose(before, after, atol=1e-3 * float(before.abs().max()))


def test_noise_weights_have_mean_one_and_favour_high_noise() -> None:
    weights = noise_weights(alphas_cumprod(), limit=100.0, power=0.75)
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
    rows = CaptionRows()
    numbers = rows(["a red star on white background, 3d", ""])
    assert numbers.shape == (2, 77)
    assert numbers.max() < len(rows.tokens) < 100


def test_captions_are_classified_by_what_they_say() -> None:
    scene = scenes.Scene("star", "red", "white", style="3d")
    star, red, white, shiny = 4, 1, 10, 5
    assert caption_classes(scene, "a red star on white background, 3d") == [star, red, white, shiny]
    assert caption_classes(scene, "a red star") == [star, red, 0, 0]
    assert caption_classes(scene, "white background") == [0, 0, white, 0]
    assert caption_classes(scene, "a star on white background") == [star, 0, white, 0]
    assert caption_classes(scene, "") == [0, 0, 0, 0]


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
                loop.run(
                    "toy", folder, steps=4, peak=0.1, parameters=[weight], load=load,
                    state_of=lambda weight=weight: {"weight": weight.data.clone()}, loss_at=loss_at,
                )  # fmt: skip
            except KeyboardInterrupt:
                continue
        return torch.load(folder / "toy.pt", weights_only=True)["model"]

    train_every, loop.SAVE_EVERY = loop.SAVE_EVERY, 1
    try:
        whole = trained(tmp_path / "whole", [4])
        cut = trained(tmp_path / "cut", [2, 4])
    finally:
        loop.SAVE_EVERY = train_every
    assert torch.equal(whole["weight"], cut["weight"])
    lines = (tmp_path / "whole" / "train.log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4


@pytest.mark.slow
def test_a_step_of_every_stage_exports_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from copier.diffusion.load import load_checkpoint
    from copier.pocket.export import METADATA, ldm_tensors
    from copier.pocket.train import TRAININGS

    work, file = tmp_path / "work", tmp_path / "pocket.safetensors"
    work.mkdir()
    measure = train_autoencoder.autoencoder_psnr
    monkeypatch.setattr(train_autoencoder, "autoencoder_psnr", lambda model, count: measure(model, count=1))
    for stage in ("autoencoder", "polish", "latents", "text", "unet", "settle", "decoder"):
        if stage == "latents":
            train_autoencoder.encode_scenes(work, count=8, seed=1)
        else:
            TRAININGS[stage][0](work, steps=1, seed=1)
    write_tensors(file, ldm_tensors(work), METADATA)
    model = load_checkpoint(file)
    scenes_ = _scenes(2)
    with torch.no_grad():
        assert model.vae.encode(scenes_).latent_dist.mean.shape == (2, 4, 8, 8)
    logged = [json.loads(line) for line in (work / "train.log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in logged] == [
        "autoencoder", "polish", "latents", "text", "unet", "settle", "decoder"
    ]  # fmt: skip

    train_autoencoder.encode_scenes(work, count=16, seed=1)
    with pytest.raises(ValueError, match="other files"):
        ldm_tensors(work)
    with pytest.raises(ValueError, match="other files"):
        TRAININGS["unet"][0](work, steps=2, seed=1)


def test_unpacking_takes_latents_of_unit_variance_and_never_replaces_a_training(tmp_path: Path) -> None:
    train_autoencoder.unpack(tmp_path, checkpoint_path())
    model = build_autoencoder().eval()
    model.load_state_dict(torch.load(tmp_path / "autoencoder.pt", weights_only=True)["model"])
    batch = _scenes(4)
    with torch.no_grad():
        posterior = model.encode(batch).latent_dist
        error = (model.decode(posterior.mean).sample.clamp(-1, 1) - batch).pow(2).mean()
    assert 0.5 < float(posterior.mean.std()) < 1.5
    assert float(error) < 0.05
    with pytest.raises(FileExistsError):
        train_autoencoder.unpack(tmp_path, checkpoint_path())
