from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from copier.checkpoint.reader import TensorReader
from copier.diffusion import schedule
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import encode_pictures
from copier.errors import BadInput, Cancelled, TrainingFailed
from copier.ops.lora_file import read_lora
from copier.progress import CancelToken, ProgressEvent
from copier.recipe import LossWeighting, Optimiser, Precision, TrainingSpec
from copier.training import builtin
from copier.training.builtin import TrainingJob, train
from copier.training.objectives import Draws, loss_weights, random_stream


def state(model: DiffusionModel) -> dict[str, torch.Tensor]:
    parts = {"unet": model.unet, "text": model.text_encoder}
    return {f"{p}.{k}": v.clone() for p, m in parts.items() for k, v in m.state_dict().items()}


def assert_untouched(model: DiffusionModel, before: dict[str, torch.Tensor]) -> None:
    after = state(model)
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())
    assert not any(p.requires_grad for p in model.unet.parameters())


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with TensorReader(path) as reader:
        return {key: reader.tensor(key) for key in reader.header.tensors}


def test_the_same_seed_gives_the_same_file_and_another_seed_another(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, trained: Path, tmp_path: Path
) -> None:
    torch.manual_seed(12345)
    again = TrainingJob(output=tmp_path / trained.name)
    result = train(model, short, picture, again)
    assert again.output.read_bytes() == trained.read_bytes()
    assert len(result.losses) == 3 and all(math.isfinite(loss) for loss in result.losses)
    other = TrainingJob(output=tmp_path / "other.safetensors")
    assert train(model, replace(short, seed=2), picture, other).losses != result.losses


def test_the_first_loss_is_that_of_the_base_computed_by_hand(
    model: DiffusionModel, picture: np.ndarray, tmp_path: Path
) -> None:
    spec = TrainingSpec(
        steps=1, rank=1, alpha=1.0, batch_size=2, min_timestep=200, max_timestep=700,
        noise_offset=0.5, loss_weighting=LossWeighting.MIN_SNR, min_snr_gamma=0.1, seed=3,
        optimiser=Optimiser.ADAMW,
    )  # fmt: skip
    loss = train(model, spec, picture, TrainingJob(output=tmp_path / "x.safetensors")).losses[0]
    noise = torch.randn(2, 4, 8, 8, generator=random_stream(3, "noise"))
    noise += 0.5 * torch.randn(2, 4, 1, 1, generator=random_stream(3, "offset"))
    steps = torch.randint(200, 700, (2,), generator=random_stream(3, "timesteps"))
    a = schedule.alphas_cumprod()[steps]
    tokens = torch.tensor([[49406] + [49407] * 76] * 2)
    with torch.no_grad():
        noised = schedule.add_noise(encode_pictures(model, picture), noise, a)
        context = model.text_encoder(tokens).last_hidden_state
        error = ((model.unet(noised, steps, context).sample - noise) ** 2).mean((1, 2, 3))
    weights = (0.1 * (1 - a) / a).clamp(max=1.0)
    assert weights.min() < 1
    assert loss == pytest.approx(float((weights * error).mean()), rel=1e-4)


def test_base_loras_are_merged_for_the_training_and_undone_to_the_bit(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, trained: Path, tmp_path: Path
) -> None:
    before = state(model)
    one = replace(short, steps=1)
    losses = {
        weight: train(
            model, one, picture,
            TrainingJob(output=tmp_path / f"{weight}.safetensors", base=[(trained, weight)]),
        ).losses
        for weight in (0.0, 1.0)
    }  # fmt: skip
    assert_untouched(model, before)
    plain = train(model, one, picture, TrainingJob(output=tmp_path / "p.safetensors")).losses
    assert losses[0.0] == plain
    assert abs(losses[1.0][0] - plain[0]) > 1e-3


def test_training_from_a_start_goes_on_where_it_ended(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, trained: Path, tmp_path: Path
) -> None:
    """At rate (almost) zero the outcome is the start itself, and the loss that of start merged."""
    still = replace(short, steps=1, learning_rate=1e-8)
    job = TrainingJob(output=tmp_path / "on.safetensors", start=trained)
    started = train(model, still, picture, job).losses
    merged = train(
        model, still, picture,
        TrainingJob(output=tmp_path / "merged.safetensors", base=[(trained, 1.0)]),
    ).losses  # fmt: skip
    assert started == pytest.approx(merged, rel=1e-3)
    written = tensors(job.output)
    for key, tensor in tensors(trained).items():
        torch.testing.assert_close(written[key], tensor, atol=1e-6, rtol=1e-5)


def test_everything_trained_at_once_moves_every_module(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, tmp_path: Path
) -> None:
    """Text encoder and convolutions too; with checkpointing the result is the same."""
    before = state(model)
    spec = replace(short, steps=1, text_encoder=True, conv_rank=2, batch_size=1)
    plain = TrainingJob(output=tmp_path / "a.safetensors", precision=Precision.FP16)
    train(model, spec, picture, plain)
    lora = read_lora(plain.output)
    assert len(lora.weights) == 350
    assert {tensor.dtype for tensor in tensors(plain.output).values()} == {torch.float16}
    # The middle block has one position here: its self-attention has nothing to choose from.
    alone = tuple(f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_{one}" for one in "qk")
    still = [name for name, delta in lora.weights.items() if not delta.up.any() and name not in alone]
    assert still == []
    saved = TrainingJob(output=tmp_path / "b.safetensors", precision=Precision.FP16)
    train(model, replace(spec, gradient_checkpointing=True), picture, saved)
    assert_untouched(model, before)
    assert not model.unet.training and not model.unet.is_gradient_checkpointing
    for name, delta in read_lora(saved.output).weights.items():
        torch.testing.assert_close(delta.up, lora.weights[name].up, atol=5e-3, rtol=0)


def test_frozen_weights_in_bf16_train_a_lora_in_float32(
    checkpoint: Path, short: TrainingSpec, picture: np.ndarray, trained: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(checkpoint, dtype=torch.bfloat16)
    before = state(model)
    spec = replace(short, steps=2, text_encoder=True)
    job = TrainingJob(output=tmp_path / "x.safetensors", base=[(trained, 1.0)])
    losses = train(model, spec, picture, job).losses
    assert_untouched(model, before)
    assert {tensor.dtype for tensor in tensors(job.output).values()} == {torch.float32}
    exact = load_checkpoint(checkpoint)
    other = TrainingJob(output=tmp_path / "y.safetensors", base=[(trained, 1.0)])
    expected = train(exact, spec, picture, other).losses
    assert losses != expected
    assert losses == pytest.approx(expected, rel=0.05)


def test_metadata_tells_network_and_base_and_keeps_what_was_passed(
    trained: Path, checkpoint: Path
) -> None:
    metadata = read_lora(trained).metadata
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_sd_model_name"] == checkpoint.name
    assert (metadata["ss_network_dim"], metadata["ss_resolution"]) == ("4", "(64, 64)")
    assert str(trained.parent) not in "".join(metadata.values())


def test_progress_comes_each_step_and_a_cancel_leaves_nothing(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, tmp_path: Path
) -> None:
    before = state(model)
    events: list[ProgressEvent] = []
    cancel = CancelToken()

    def observe(event: ProgressEvent) -> None:
        events.append(event)
        cancel.cancel()

    spec = replace(short, optimiser=Optimiser.ADAMW_8BIT)
    with pytest.raises(Cancelled):
        train(
            model, spec, picture, TrainingJob(output=tmp_path / "x.safetensors", stage="copier"),
            observer=observe, cancel=cancel,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    assert_untouched(model, before)
    assert len(events) == 1 and "adamw8bit is replaced" in events[0].message
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        train(
            model, short, picture, TrainingJob(output=tmp_path / "x.safetensors", stage="copier"),
            observer=observe, cancel=cancel,
        )  # fmt: skip
    last = events[-1]
    assert (last.stage, last.step, last.steps) == ("copier", 1, 3)
    assert last.loss and last.rate
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_names_step_and_remedy_and_leaves_nothing(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, tmp_path: Path
) -> None:
    before = state(model)
    broken = np.where(picture > 0.5, np.float32("nan"), picture)
    with pytest.raises(TrainingFailed, match=r"nan at step 1 of 3: lower the learning rate"):
        train(model, short, broken, TrainingJob(output=tmp_path / "x.safetensors"))
    assert list(tmp_path.iterdir()) == []
    assert_untouched(model, before)


def test_what_cannot_work_is_refused_before_training(
    model: DiffusionModel, short: TrainingSpec, picture: np.ndarray, trained: Path, tmp_path: Path
) -> None:
    fresh = tmp_path / "x.safetensors"
    with pytest.raises(BadInput, match="exists"):
        train(model, short, picture, TrainingJob(output=trained))
    with pytest.raises(BadInput, match="folder"):
        train(model, short, picture, TrainingJob(output=tmp_path / "none" / "x.safetensors"))
    with pytest.raises(BadInput, match="no picture"):
        train(model, short, picture[:0], TrainingJob(output=fresh))
    with pytest.raises(BadInput, match="no file"):
        train(model, short, picture, TrainingJob(output=fresh, start=tmp_path / "none"))


def test_streams_are_independent_of_each_other_and_of_the_batch() -> None:
    latents, shape = torch.zeros(3, 4, 8, 8), torch.Size((4, 4, 8, 8))
    spec = TrainingSpec(batch_size=4, min_timestep=100, max_timestep=103)
    one, other = Draws(spec, latents), Draws(spec, latents)
    for _ in range(5):
        one.noise(shape)
    assert torch.equal(one.timesteps(), other.timesteps())
    drawn = torch.cat([one.timesteps() for _ in range(20)])
    assert set(drawn.tolist()) == {100, 101, 102}
    order = [number for _ in range(3) for number in one.pictures()]
    assert all(sorted(order[start : start + 3]) == [0, 1, 2] for start in (0, 3, 6, 9))
    assert not torch.equal(other.noise(shape)[0], other.noise(shape)[0])


def test_loss_weights_follow_the_spec() -> None:
    alpha_bar = schedule.alphas_cumprod()
    assert torch.all(loss_weights(TrainingSpec(), alpha_bar, velocity=False) == 1)
    snr = schedule.signal_to_noise(alpha_bar)
    spec = TrainingSpec(loss_weighting=LossWeighting.DEBIASED)
    assert torch.equal(loss_weights(spec, alpha_bar, velocity=False), schedule.debiased_weights(snr))


def test_the_loss_scale_halves_on_overflow_and_divides_otherwise() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    scale = builtin._LossScale(torch.float16)
    first = scale.factor
    weight.grad = torch.tensor([first, 2 * first])
    assert scale.unscale([weight])
    assert torch.equal(weight.grad, torch.tensor([1.0, 2.0]))
    weight.grad = torch.tensor([1.0, float("inf")])
    assert not scale.unscale([weight])
    assert scale.factor == first / 2
    assert builtin._LossScale(torch.float32).factor == 1.0


@pytest.fixture
def sizes(picture: np.ndarray) -> list[np.ndarray]:
    """Three pictures, the first one wide and smaller than the others."""
    return [picture[0, 16:48].copy(), picture[0], picture[0, ::-1].copy()]


def test_a_batch_is_of_one_size_and_every_picture_comes_as_often() -> None:
    square, wide = torch.zeros(4, 8, 8), torch.zeros(4, 4, 8)
    shapes = [square, wide, square, square, wide]
    for size in (1, 2, 3):
        draws = Draws(TrainingSpec(batch_size=size, seed=4), shapes)
        batches = [draws.pictures() for _ in range(60 // size)]
        assert {len(batch) for batch in batches} == {size}
        assert all(len({shapes[one].shape for one in batch}) == 1 for batch in batches)
        often = [sum(batch.count(one) for batch in batches) for one in range(5)]
        assert sum(often) == 60 and max(often) - min(often) <= size, often
        assert len({tuple(batch) for batch in batches}) > 2


def test_pictures_of_one_size_come_as_they_always_did() -> None:
    """One permutation of all after the other, cut into batches; so keys of the cache stay true."""
    draws = Draws(TrainingSpec(batch_size=3, seed=4), [torch.zeros(4, 8, 8)] * 5)
    stream = random_stream(4, "pictures")
    order = [number for _ in range(6) for number in torch.randperm(5, generator=stream).tolist()]
    assert [draws.pictures() for _ in range(10)] == [order[i : i + 3] for i in range(0, 30, 3)]


def test_pictures_of_several_sizes_are_trained_on_each_at_its_own(
    model: DiffusionModel, short: TrainingSpec, sizes: list[np.ndarray], tmp_path: Path
) -> None:
    """The first loss is that of the picture that comes first, alone: nothing was scaled for it."""
    before, spec = state(model), replace(short, batch_size=1, steps=2)
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.safetensors")
        train(model, spec, sizes, TrainingJob(output=files[-1]))
    written, again = map(tensors, files)
    assert all(torch.equal(tensor, again[key]) for key, tensor in written.items())
    firsts = {}
    for seed in range(1, 9):
        seeded = replace(spec, seed=seed, steps=1)
        first = Draws(seeded, [torch.zeros(one.shape) for one in sizes]).pictures()[0]
        firsts[sizes[first].shape] = seeded, first
    assert len(firsts) == 2, "either size comes first once"
    for number, (seeded, first) in enumerate(firsts.values()):
        job = TrainingJob(output=tmp_path / f"all{number}.safetensors")
        losses = train(model, seeded, sizes, job).losses
        alone = replace(job, output=tmp_path / f"alone{number}.safetensors")
        assert losses == pytest.approx(train(model, seeded, sizes[first][None], alone).losses, rel=1e-5)
    assert_untouched(model, before)
    with TensorReader(files[0]) as reader:
        assert reader.header.metadata["modelspec.resolution"] == "64x64"
