from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from copier.recipe import Optimiser, Schedule, TrainingSpec
from copier.training.optimiser import Rates, build_optimiser, learning_rate, with_available_optimiser

SPEC = TrainingSpec(steps=100, warmup_steps=10, learning_rate=1.0)


def rates(schedule: Schedule) -> list[float]:
    spec = replace(SPEC, schedule=schedule)
    return [learning_rate(spec, step) for step in range(spec.steps)]


@pytest.mark.parametrize("schedule", Schedule)
def test_the_warm_up_rises_in_equal_steps_to_the_peak(schedule: Schedule) -> None:
    assert rates(schedule)[:11] == pytest.approx([*(n / 10 for n in range(1, 11)), 1.0])


def test_constant_stays_linear_falls_evenly_and_cosine_slowly_at_both_ends() -> None:
    assert set(rates(Schedule.CONSTANT)[9:]) == {1.0}
    linear, cosine = rates(Schedule.LINEAR)[10:], rates(Schedule.COSINE)[10:]
    assert torch.tensor(linear).diff() == pytest.approx([-1 / 90] * 89, abs=1e-6)
    assert linear[-1] == pytest.approx(1 / 90)
    assert cosine[45] == pytest.approx(0.5)
    assert cosine[-1] < 0.001 < cosine[-4]
    assert cosine[10] > linear[10]


def test_warm_up_for_all_steps_is_possible() -> None:
    assert learning_rate(replace(SPEC, warmup_steps=100), 99) == 1.0


def test_eight_bits_on_the_cpu_are_replaced_with_a_note() -> None:
    notes: list[str] = []
    weight = torch.nn.Parameter(torch.ones(2))
    asked = replace(SPEC, optimiser=Optimiser.ADAMW_8BIT, weight_decay=0.25)
    spec = with_available_optimiser(asked, "cpu", notes.append)
    assert spec == replace(asked, optimiser=Optimiser.ADAMW)
    optimiser = build_optimiser(spec, [weight])
    assert type(optimiser) is torch.optim.AdamW
    assert optimiser.param_groups[0]["weight_decay"] == 0.25
    assert len(notes) == 1 and "CUDA" in notes[0]
    assert with_available_optimiser(spec, "cpu", notes.append) is spec
    assert len(notes) == 1


@pytest.mark.parametrize("schedule", list(Schedule))
def test_a_training_that_is_ended_early_comes_to_rest_and_never_goes_faster_or_longer(
    schedule: Schedule,
) -> None:
    spec = TrainingSpec(steps=40, warmup_steps=4, learning_rate=0.01, schedule=schedule)
    plain = Rates(spec)
    for held, cooling in ((10, 8), (2, 8), (36, 8)):
        ended = plain.cooled(held, cooling)
        assert ended.steps == min(held + cooling, 40) and ended.falling and not plain.falling
        rates = [ended.at(step) for step in range(ended.steps)]
        planned = [plain.at(step) for step in range(ended.steps)]
        assert rates[:held] == planned[:held] == [learning_rate(spec, step) for step in range(held)]
        assert all(0 < rate <= known for rate, known in zip(rates, planned, strict=True))
        falling = rates[held:]
        assert falling == sorted(falling, reverse=True)
        # The next step would have none.
        assert falling[-1] <= planned[held] / len(falling) + 1e-12
