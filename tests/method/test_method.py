"""The method itself, end to end, on the pocket checkpoint: train, gate, train again, measure.

One run serves all tests. What is asserted of the LoRA is then asked of three things that must fail
it: a LoRA of the same training on the plain base (the control), the LoRA with its sign flipped, and
a LoRA that does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

pytest.importorskip("diffusers")

from copier.app.service import Outcome, execute
from copier.app.settings import Settings
from copier.codec import load_recipe, with_value
from copier.evaluation.effect import effect_strip
from copier.evaluation.gate import gate
from copier.images.effects import EFFECTS, Picture
from copier.pipeline.files import load_stack, weight_folder
from copier.pocket.checkpoint import checkpoint_path
from copier.request import Edit, Generated, RunRequest

pytestmark = pytest.mark.slow

not_reached = pytest.mark.xfail(
    reason="the embedded checkpoint's text does not decide the colours yet (docs/pocket-checkpoint.md): "
    "its backgrounds follow the noise, so a copier draws A's shape and not its colours",
    strict=False,
)

FLOOR = 0.02
ORIGINAL = Generated("a orange star on cyan background", seed=7)


def assert_the_change_alone(lora: Measured, control: Measured) -> None:
    """What a LoRA of this method must do at weight +1, and what the mutants must not."""
    assert lora.projection >= 0.35
    assert lora.effect - control.effect >= 0.3
    assert lora.leakage <= 0.55 * control.leakage


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("method")
    recipe = load_recipe("copier-quick-pocket")
    for value in ("evaluate.weights=[-1, 1]", "training.steps=80"):
        recipe = with_value(recipe, value)
    request = RunRequest(
        recipe, checkpoint_path(), ORIGINAL, Edit("grayscale"), folder / "out", device="cpu"
    )
    return execute([request], Settings(folder / "data"), control=True)


@dataclass(frozen=True)
class Measured:
    """Figures of pictures at weight +1, whatever made them."""

    effect: float
    leakage: float
    projection: float


@pytest.fixture(scope="module")
def base(outcome: Outcome) -> Picture:
    return load_stack(outcome.runs[0].entries["evaluate.base"].path(weight_folder(0.0)))


@pytest.fixture(scope="module")
def drawn(outcome: Outcome) -> Callable[[str, float], Picture]:
    def pictures(role: str, weight: float) -> Picture:
        return load_stack(outcome.runs[0].entries[f"evaluate.{role}"].path(weight_folder(weight)))

    return pictures


def measured(base: Picture, pictures: Picture) -> Measured:
    """Effect, leakage and projection of ``pictures`` as those of a LoRA at weight +1."""
    found = effect_strip(base, EFFECTS["grayscale"].function, {1.0: pictures}, FLOOR).at(1.0)
    assert found is not None
    assert found.effect is not None and found.leakage is not None and found.projection is not None
    return Measured(found.effect, found.leakage, found.projection)


@pytest.fixture(scope="module")
def control(base: Picture, drawn: Callable[[str, float], Picture]) -> Measured:
    return measured(base, drawn("control", 1.0))


@not_reached
def test_base_and_copier_draw_the_original_whatever_the_prompt(outcome: Outcome) -> None:
    gate = outcome.runs[0].entries["gate"].record.outcome
    assert gate["count"] == 16
    assert gate["median"] <= 0.2
    assert gate["within"] >= 14


def test_with_the_copier_at_weight_zero_the_gate_is_one(outcome: Outcome) -> None:
    entries = outcome.runs[0].entries
    base = load_stack(entries["gate.base"].path(weight_folder(0.0)))
    ideal = load_stack(entries["gate"].path("ideal"))[0]
    assert gate(base, base, ideal).median == pytest.approx(1.0)


@not_reached
def test_base_copier_and_second_training_draw_the_edited_picture(outcome: Outcome) -> None:
    assert outcome.runs[0].entries["second"].record.outcome["median"] <= 0.3


@not_reached
def test_the_lora_on_the_base_makes_the_change_alone(
    base: Picture, drawn: Callable[[str, float], Picture], control: Measured
) -> None:
    assert_the_change_alone(measured(base, drawn("lora", 1.0)), control)


@not_reached
def test_the_opposite_weight_makes_the_opposite_change(
    base: Picture, drawn: Callable[[str, float], Picture]
) -> None:
    assert measured(base, drawn("lora", -1.0)).projection <= -0.2


def test_trained_on_the_plain_base_it_fails(control: Measured) -> None:
    with pytest.raises(AssertionError):
        assert_the_change_alone(control, control)


def test_with_the_sign_flipped_it_fails(
    base: Picture, drawn: Callable[[str, float], Picture], control: Measured
) -> None:
    # The LoRA with the sign of its up factors changed, at weight +1, draws what it draws at -1.
    with pytest.raises(AssertionError):
        assert_the_change_alone(measured(base, drawn("lora", -1.0)), control)


def test_a_lora_that_does_nothing_fails(base: Picture, control: Measured) -> None:
    with pytest.raises(AssertionError):
        assert_the_change_alone(measured(base, base), control)


def test_the_files_of_the_run_are_there(outcome: Outcome) -> None:
    names = {path.name for path in outcome.runs[0].request.out.iterdir()}
    assert {"a.png", "grayscale.safetensors", "copier.safetensors", "report.json"} <= names
    assert {"report.html", "sheet.png"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
