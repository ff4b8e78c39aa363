from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import decode_latents, encode_pictures, reconstruct
from copier.diffusion.prompts import encode_prompts
from copier.diffusion.sample import sample, starting_noise
from copier.diffusion.schedule import alphas_cumprod
from copier.errors import BadInput, BadPicture, Cancelled
from copier.progress import CancelToken, ProgressEvent

SIZE = {"width": 64, "height": 64}


def test_a_picture_does_not_depend_on_its_batch_mates(model: DiffusionModel) -> None:
    prompts, seeds = ["a cat", "a red star", "", "a cat"], [7, 8, 9, 7]
    scales = [4.0, 1.0, 2.0, 1.0]
    together = sample(model, prompts, seeds, steps=3, guidance=scales, **SIZE)
    for number in (0, 1, 3):
        alone = sample(
            model, prompts[number : number + 1], seeds[number : number + 1], steps=3,
            guidance=scales[number], batch_size=1, **SIZE,
        )  # fmt: skip
        np.testing.assert_allclose(together[number], alone[0], atol=2e-5)
    in_pairs = sample(model, prompts, seeds, steps=3, guidance=scales, batch_size=2, **SIZE)
    np.testing.assert_allclose(together, in_pairs, atol=2e-5)
    # Neither trivially: seed, prompt and guidance each change the picture.
    assert np.abs(together[0] - together[2]).max() > 1e-2
    assert np.abs(together[0] - together[3]).max() > 1e-3


def test_the_sampler_is_ddim_written_out(model: DiffusionModel) -> None:
    alpha_bar = alphas_cumprod()
    contexts = encode_prompts(model, ["a cat", "bad"]).context
    x = starting_noise([3], 64, 64)
    with torch.no_grad():
        for step in (751, 501, 251, 1):
            conditional, free = model.unet(x.expand(2, -1, -1, -1), step, contexts).sample.chunk(2)
            noise = free + 5.0 * (conditional - free)
            a, b = alpha_bar[step], alpha_bar[max(step - 250, 0)]
            x = b.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
    drawn = sample(model, ["a cat"], [3], negative="bad", steps=4, guidance=5.0, **SIZE)
    np.testing.assert_allclose(drawn, decode_latents(model, x), atol=1e-4)


def test_guidance_one_never_runs_the_unconditional_half(model: DiffusionModel) -> None:
    sizes = []
    handle = model.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    try:
        sample(model, ["a", "b", "c"], [1, 2, 3], steps=2, guidance=[1.0, 3.0, 1.0], **SIZE)
    finally:
        handle.remove()
    assert sizes == [4, 4]


def test_bf16_draws_nearly_the_same(model: DiffusionModel, checkpoint: Path) -> None:
    half = load_checkpoint(checkpoint, dtype=torch.bfloat16)
    pictures = [sample(m, ["a cat"], [3], steps=2, guidance=2.0, **SIZE) for m in (model, half)]
    assert 1e-5 < np.abs(pictures[0] - pictures[1]).mean() < 0.02


def test_progress_counts_every_step_and_a_cancel_stops_at_the_next(model: DiffusionModel) -> None:
    events: list[ProgressEvent] = []
    cancel = CancelToken()

    def observe(event: ProgressEvent) -> None:
        events.append(event)
        if event.step == 3:
            cancel.cancel()

    with pytest.raises(Cancelled):
        sample(
            model, ["a", "b"], [1, 2], steps=2, guidance=1.0, batch_size=1, observer=observe,
            cancel=cancel, **SIZE,
        )  # fmt: skip
    assert [(event.step, event.steps) for event in events] == [(1, 4), (2, 4), (3, 4)]


def test_noise_of_a_seed_is_its_own(model: DiffusionModel) -> None:
    noise = starting_noise([1, 2, 1], 64, 32)
    assert noise.shape == (3, 4, 4, 8)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"prompts": [], "seeds": []}, BadInput),
        ({"prompts": ["a"], "seeds": [1, 2]}, BadInput),
        ({"guidance": [1.0, 2.0]}, BadInput),
        ({"steps": 0}, BadInput),
        ({"batch_size": 0}, BadInput),
        ({"width": 60}, BadPicture),
    ],
)
def test_impossible_requests_are_refused(
    model: DiffusionModel, arguments: dict[str, object], error: type[Exception]
) -> None:
    usual: dict[str, object] = {"prompts": ["a"], "seeds": [1], "steps": 1, "guidance": 1.0, **SIZE}
    with pytest.raises(error):
        sample(model, **{**usual, **arguments})  # type: ignore[arg-type]


def test_encoding_is_the_posterior_mean_times_the_scale(model: DiffusionModel) -> None:
    pictures = np.random.default_rng(0).random((3, 16, 24, 3), dtype=np.float32)
    latents = encode_pictures(model, pictures)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        moments = model.vae.quant_conv(model.vae.encoder(x))
    assert latents.shape == (3, 4, 2, 3)
    assert torch.allclose(latents, moments[:, :4] * 0.18215, atol=1e-5)
    drawn = reconstruct(model, pictures)
    assert drawn.shape == pictures.shape
    assert drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn, decode_latents(model, latents))
    assert drawn.min() >= 0 and drawn.max() <= 1 and drawn.std() > 1e-3


def test_pictures_of_other_sizes_are_refused(model: DiffusionModel) -> None:
    with pytest.raises(BadPicture, match="multiple of 8"):
        encode_pictures(model, np.zeros((1, 20, 16, 3), np.float32))
    with pytest.raises(BadPicture, match="expected"):
        encode_pictures(model, np.zeros((16, 16, 3), np.float32))
