"""Targets of pairs, masks, and training by text alone, each against a second route."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.header import read_header
from copier.diffusion import schedule
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import encode_pictures
from copier.errors import BadInput
from copier.ops.lora_file import read_lora
from copier.ops.merge_modules import merge_into_modules
from copier.progress import CancelToken, ProgressEvent
from copier.recipe import ConceptAction, ConceptSpec, Optimiser, Schedule, Target, TrainingSpec
from copier.training import builtin
from copier.training.builtin import Check, TrainingJob, train
from copier.training.concept import ConceptObjective, aim
from copier.training.lora_modules import LoraModules
from copier.training.objectives import (
    Objective,
    Pass,
    PictureLatents,
    latent_mask,
    pass_loss,
    random_stream,
)

SPEC = TrainingSpec(steps=1, rank=2, alpha=2.0, batch_size=2, seed=5, optimiser=Optimiser.ADAMW)
Shift = torch.Tensor | float
Loss = Callable[[LoraWeights], float]


@pytest.fixture(scope="module")
def changed(picture: np.ndarray) -> np.ndarray:
    """The picture with a green square in its middle."""
    other = picture.copy()
    other[:, 24:40, 24:40] = (0.1, 0.9, 0.2)
    return other


@pytest.fixture(scope="module")
def latents(model: DiffusionModel, picture: np.ndarray, changed: np.ndarray) -> PictureLatents:
    return PictureLatents([encode_pictures(model, changed)], [encode_pictures(model, picture)])


@torch.no_grad()
def by_hand(
    model: DiffusionModel, spec: TrainingSpec, terms: Sequence[tuple[torch.Tensor, float, Shift]]
) -> Loss:
    """The first loss: the mean over ``terms``: latents, the LoRA's weight, what is added to the noise."""
    noise = torch.randn(2, 4, 8, 8, generator=random_stream(spec.seed, "noise"))
    steps = torch.randint(0, 1000, (2,), generator=random_stream(spec.seed, "timesteps"))
    a = schedule.alphas_cumprod()[steps].view(-1, 1, 1, 1)
    context = model.text_encoder(torch.tensor([[49406] + [49407] * 76] * 2)).last_hidden_state

    def loss(lora: LoraWeights) -> float:
        total = 0.0
        for latents, weight, shift in terms:
            with torch.no_grad(), merge_into_modules(model.weight_of, lora, weight):
                output = model.unet(a.sqrt() * latents + (1 - a).sqrt() * noise, steps, context).sample
            total += float((output - noise - shift).square().mean())
        return total / len(terms)

    return loss


def first_step(
    model: DiffusionModel, spec: TrainingSpec, pictures: PictureLatents, lora: LoraWeights
) -> tuple[float, LoraWeights]:
    """Loss and gradient of one step from ``lora``."""
    with LoraModules(model, spec, torch.Generator()) as modules:
        modules.start_from(lora)
        objective = builtin._objective(
            model, spec, pictures, modules, TrainingJob(output=Path("x")), CancelToken()
        )
        loss = builtin._step(model, objective, modules, torch.ones(1000), 1.0)
        with torch.no_grad():
            for factor in modules.parameters():
                factor.copy_(torch.zeros_like(factor) if factor.grad is None else factor.grad)
        return loss, modules.weights()


def started(trained: Path, spec: TrainingSpec, scale: float = 1.0) -> LoraWeights:
    """The trained LoRA at the rank of ``spec``, its change times ``scale``."""
    whole = read_lora(trained).weights
    return LoraWeights(
        {
            name: LowRankDelta(scale * one.up[:, : spec.rank], one.down[: spec.rank], spec.alpha)
            for name, one in whole.items()
            if isinstance(one, LowRankDelta)
        }
    )


def moved(lora: LoraWeights, gradient: LoraWeights, step: float) -> LoraWeights:
    return LoraWeights(
        {
            name: LowRankDelta(one.up + step * slope.up, one.down + step * slope.down, one.alpha)
            for (name, one), slope in zip(lora.items(), gradient.values(), strict=True)
        }
    )


@pytest.mark.parametrize("target", [Target.PAIR, Target.SEMANTIC])
def test_loss_and_gradient_of_a_pair_are_those_of_the_formula(
    model: DiffusionModel, latents: PictureLatents, trained: Path, target: Target
) -> None:
    """The gradient by differences of a loss that is computed with the LoRA merged into the weights."""
    assert latents.originals is not None
    spec, (b,), (a,) = replace(SPEC, target=target, eta=1.5), latents.latents, latents.originals
    lora = started(trained, spec)
    terms = {
        Target.PAIR: [(b, 1.0, 0.0), (a, -1.0, 0.0)],
        Target.SEMANTIC: [(a, 1.0, 1.5 * (a - b))],
    }[target]
    expected = by_hand(model, spec, terms)
    loss, gradient = first_step(model, spec, latents, lora)
    assert loss == pytest.approx(expected(lora), rel=1e-4)
    size = sum(float(one.up.square().sum() + one.down.square().sum()) for one in gradient.values())
    step = 2e-3 / size**0.5
    slope = (expected(moved(lora, gradient, step)) - expected(moved(lora, gradient, -step))) / (2 * step)
    assert slope == pytest.approx(size, rel=0.05)
    wrong = by_hand(model, spec, [(b, 1.0, 0.0)])
    assert abs(loss - wrong(lora)) > 1e-3, "the ordinary target would have shown"


def test_a_swapped_pair_is_learnt_with_the_opposite_sign(
    model: DiffusionModel, latents: PictureLatents, trained: Path
) -> None:
    assert latents.originals is not None
    spec = replace(SPEC, target=Target.PAIR)
    swapped = PictureLatents(latents.originals, latents.latents)
    loss, gradient = first_step(model, spec, latents, started(trained, spec))
    mirrored, opposite = first_step(model, spec, swapped, started(trained, spec, -1.0))
    assert mirrored == pytest.approx(loss, rel=1e-5)
    for name, one in gradient.items():
        scale = float(one.up.abs().max())
        torch.testing.assert_close(opposite[name].up, -one.up, rtol=1e-3, atol=1e-3 * scale)
        torch.testing.assert_close(opposite[name].down, one.down, rtol=1e-3, atol=1e-3 * scale)


def test_a_pair_needs_its_originals_and_semantic_a_noise_prediction(
    model: DiffusionModel, picture: np.ndarray, tmp_path: Path
) -> None:
    before = list(model.unet.modules())
    job = TrainingJob(output=tmp_path / "x.safetensors", originals=picture)
    for target in (Target.PAIR, Target.SEMANTIC):
        with pytest.raises(BadInput, match="needs the originals"):
            train(model, replace(SPEC, target=target), picture, replace(job, originals=None))
    velocity = replace(model, predicts=replace(model.predicts, velocity=True))
    with pytest.raises(BadInput, match="choose the target 'pair'"):
        train(velocity, replace(SPEC, target=Target.SEMANTIC), picture, job)
    with pytest.raises(BadInput, match="one of the same size"):
        train(model, SPEC, picture, replace(job, originals=picture[:, :32]))
    assert list(model.unet.modules()) == before and not list(tmp_path.iterdir())


def test_the_lora_counts_as_often_as_it_is_told(
    model: DiffusionModel, latents: PictureLatents, trained: Path
) -> None:
    """At any weight the U-Net with its layers is the one with the LoRA merged; at 0 it is the checkpoint."""
    (x,), steps = latents.latents, torch.tensor([400])
    context = model.text_encoder(torch.tensor([[49406] + [49407] * 76])).last_hidden_state.detach()

    @torch.no_grad()
    def seen() -> torch.Tensor:
        output: torch.Tensor = model.unet(x, steps, context).sample
        return output

    plain, lora = seen(), started(trained, SPEC)
    merged = {}
    for weight in (-1.0, 0.5, 1.0):
        with merge_into_modules(model.weight_of, lora, weight):
            merged[weight] = seen()
    with LoraModules(model, SPEC, torch.Generator()) as modules:
        modules.start_from(lora)
        for weight, expected in {**merged, 0.0: plain}.items():
            with modules.at(weight):
                torch.testing.assert_close(seen(), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(seen(), merged[1.0], rtol=1e-3, atol=1e-4)
    assert (merged[1.0] - plain).abs().max() > 0.01


def test_what_the_mask_leaves_out_gets_no_gradient_and_the_rest_the_same() -> None:
    torch.manual_seed(0)
    output = torch.randn(2, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, 2:5, 3:6], mask[1, :, 1] = 1.0, 0.5
    one = Pass(output.detach(), torch.tensor([3, 7]), torch.randn(2, 4, 8, 8), lambda: None, mask)  # type: ignore
    weights = torch.linspace(0.5, 2.0, 1000)
    (masked,) = torch.autograd.grad(pass_loss(output, one, weights), output)
    (plain,) = torch.autograd.grad(pass_loss(output, replace(one, mask=None), weights), output)
    assert torch.equal(masked == 0, (mask == 0).expand_as(masked))
    torch.testing.assert_close(masked, plain * mask)


def test_masks_are_averaged_over_the_cells_of_the_latents_and_a_white_one_changes_nothing(
    model: DiffusionModel, picture: np.ndarray, tmp_path: Path
) -> None:
    masks = np.random.default_rng(0).random((1, 64, 64), dtype=np.float32)
    expected = masks.reshape(1, 8, 8, 8, 8).mean(axis=(2, 4))
    np.testing.assert_allclose(latent_mask(masks[0])[:, 0].numpy(), expected, rtol=1e-5)
    files = {}
    for name, mask in {"none": None, "white": np.ones_like(masks), "half": masks}.items():
        job = TrainingJob(output=tmp_path / f"{name}.safetensors", masks=mask)
        train(model, SPEC, picture, job)
        files[name] = read_lora(job.output).weights
    for module, one in files["none"].items():
        torch.testing.assert_close(files["white"][module].up, one.up)
    assert any(not torch.equal(files["half"][name].up, one.up) for name, one in files["none"].items())
    with pytest.raises(BadInput, match="1 masks of 64 x 8 px, and 1 pictures of 64 x 64 px"):
        train(model, SPEC, picture, TrainingJob(output=tmp_path / "x.safetensors", masks=masks[:, :8]))


# Early stops.


def test_a_check_that_holds_ends_the_training_with_a_falling_rate_and_changes_nothing_before(
    model: DiffusionModel, picture: np.ndarray, tmp_path: Path
) -> None:
    spec = replace(SPEC, steps=9, batch_size=1, schedule=Schedule.CONSTANT)
    asked: list[int] = []
    events: list[ProgressEvent] = []

    def passed(step: int) -> bool:
        torch.randn(step)  # whatever the check draws
        asked.append(step)
        return step == 4

    job = TrainingJob(output=tmp_path / "early.safetensors", check=Check(2, passed))
    ended = train(model, spec, picture, job, observer=events.append)
    whole = train(model, spec, picture, TrainingJob(output=tmp_path / "whole.safetensors"))
    assert asked == [2, 4] and len(ended.losses) == 6
    # The fifth rate is the first that could differ, so the sixth loss is.
    assert ended.losses[:5] == whole.losses[:5]
    assert events[-1].step == events[-1].steps == 6
    assert read_header(job.output).metadata["ss_steps"] == "6"
    never = replace(job, output=tmp_path / "never.safetensors", check=Check(2, lambda step: False))
    assert train(model, spec, picture, never).losses == whole.losses


# By text alone.


def test_the_aims_are_those_of_the_formulas() -> None:
    frozen = {"red star": 5.0, "star": 3.0, "": 2.0, None: 1.0, "heart": 7.0}

    def found(action: ConceptAction, target: str, positive: str, neutral: str = "") -> float:
        concept = ConceptSpec(action, target, positive, neutral, guidance=2.0)
        return float(aim(concept, lambda prompt: torch.tensor(frozen[prompt])))

    assert found(ConceptAction.ERASE, "red star", "", "star") == 3.0 - 2.0 * (5.0 - 1.0)
    assert found(ConceptAction.ERASE, "star", "red star") == 2.0 - 2.0 * (5.0 - 1.0)
    assert found(ConceptAction.ENHANCE, "star", "red star", "star") == 3.0 + 2.0 * (5.0 - 1.0)
    assert found(ConceptAction.MOVE, "star", "heart") == 7.0 + 2.0 * (7.0 - 3.0)


def concept_pass(
    model: DiffusionModel, concept: ConceptSpec, spec: TrainingSpec, lora: LoraWeights | None
) -> Pass:
    with LoraModules(model, spec, torch.Generator().manual_seed(1)) as modules:
        if lora is not None:
            modules.start_from(lora)
        objective: Objective = ConceptObjective(
            model, spec, concept, modules, clip_skip=1, cancel=CancelToken()
        )
        (one,) = objective.passes()
    return one


def test_a_concept_is_trained_on_latents_that_the_lora_draws_and_aims_at_the_frozen_checkpoint(
    model: DiffusionModel, trained: Path
) -> None:
    """The second route draws with diffusers' own scheduler and the LoRA merged, prompt by prompt."""
    spec = replace(SPEC, resolution=64, batch_size=1, min_timestep=300, max_timestep=700)
    concept = ConceptSpec(
        ConceptAction.ERASE, "a red star", "", "a star", ("{} on white",), 1.5, sampling_steps=5
    )
    lora = started(trained, spec)
    one = concept_pass(model, concept, spec, lora)
    ddim = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    ddim.set_timesteps(5)
    level = int(one.timesteps[0])
    assert 300 <= level < 700 and level in ddim.timesteps.tolist()

    @torch.no_grad()
    def seen(x: torch.Tensor, timestep: int, prompt: str) -> torch.Tensor:
        tokens = torch.as_tensor(
            model.tokenizer([prompt], padding="max_length", max_length=77, return_tensors="pt").input_ids
        )
        output: torch.Tensor = model.unet(x, timestep, model.text_encoder(tokens).last_hidden_state).sample
        return output

    x = torch.randn(1, 4, 8, 8, generator=random_stream(spec.seed, "noise"))
    with merge_into_modules(model.weight_of, lora, 1.0):
        for timestep in [int(t) for t in ddim.timesteps if t > level]:
            free, guided = seen(x, timestep, ""), seen(x, timestep, "a red star on white")
            x = ddim.step(free + 3.0 * (guided - free), timestep, x).prev_sample
    torch.testing.assert_close(one.noised, x, rtol=1e-3, atol=1e-3)
    star, red, nothing = (
        seen(one.noised, level, prompt) for prompt in ("a star on white", "a red star on white", "")
    )
    torch.testing.assert_close(one.target, star - 1.5 * (red - nothing), rtol=1e-3, atol=1e-3)
    assert (concept_pass(model, concept, spec, None).noised - one.noised).abs().max() > 1e-2


def test_training_by_text_alone_comes_nearer_to_its_aim_and_leaves_the_model_as_it_was(
    model: DiffusionModel, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    concept = ConceptSpec(ConceptAction.MOVE, "a star", "a cat", guidance=0.0, sampling_steps=2)
    spec = replace(
        SPEC, steps=12, learning_rate=5e-3, resolution=64, schedule=Schedule.CONSTANT, batch_size=2
    )
    job = TrainingJob(output=tmp_path / "moved.safetensors", concept=concept)
    losses = train(model, spec, None, job).losses
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert all(torch.equal(value, before[name]) for name, value in model.unet.state_dict().items())
    again = replace(job, output=tmp_path / "again.safetensors")
    assert train(model, spec, None, again).losses == losses
    with pytest.raises(BadInput, match="neither a picture nor a concept"):
        train(model, spec, None, replace(again, output=tmp_path / "x.safetensors", concept=None))
    with pytest.raises(BadInput, match="none of the 2 steps of drawing lies between"):
        narrow = replace(spec, min_timestep=100, max_timestep=101)
        train(model, narrow, None, replace(job, output=tmp_path / "x.safetensors"))
