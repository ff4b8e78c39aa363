"""Other losses than the ordinary one, on the pocket checkpoint: short, and in the right direction.

One run trains all of them. What a LoRA does is read off one pass of the U-Net over noised pictures;
docs/methods.md has what longer trainings do to pictures that are drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from copier.app.service import Outcome, execute
from copier.app.settings import Settings
from copier.codec import recipe_from_json
from copier.diffusion import schedule
from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import encode_pictures
from copier.diffusion.prompts import encode_prompts
from copier.images.effects import EFFECTS, to_image
from copier.ops.lora_file import read_lora
from copier.ops.merge_modules import merge_into_modules
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.scenes import Scene, render
from copier.progress import ProgressEvent
from copier.request import Edit, PictureFiles, RunRequest

pytestmark = pytest.mark.slow

TEXTS = ["a green ring on white background", "a cyan square", "a pink cross", "a heart", ""]
TRAINING = {
    "optimiser": "adamw", "learning_rate": 4e-3, "batch_size": 2, "rank": 8, "alpha": 8.0, "resolution": 0,
    "loss_weighting": "debiased", "captions": {"policy": "varied", "texts": TEXTS},
}  # fmt: skip
BY_TEXT = {**TRAINING, "captions": {}, "resolution": 128, "steps": 20}
CONTEXTS = [f"{{}} on {colour} background" for colour in ("white", "blue", "green", "pink")]
A = Scene("star", "blue", "red")
UNSEEN = [
    Scene("circle", "green", "yellow", x=0.45, radius=0.28),
    Scene("cross", "purple", "cyan", y=0.55, radius=0.3),
    Scene("ring", "orange", "blue", radius=0.25),
]
LEVELS = (350, 500, 650)


def stage(name: str, steps: int, *, pictures: str = "b", base: str = "", **training: Any) -> dict[str, Any]:
    on = [{"lora": base}] if base else []
    trained = {**TRAINING, "steps": steps, **training}
    return {"kind": "train", "name": name, "pictures": pictures, "base": on, "training": trained}


STAGES = [
    stage("copier", 90, pictures="a", noise_offset=0.2)
    | {"check_every": 15, "check_pictures": 4, "check_sampling_steps": 4},
    {
        "kind": "gate", "name": "gate", "lora": "copier", "prompts": ["a red circle", "a green cross"],
        "seeds": [1, 2, 3, 4], "sampling_steps": 6, "median_limit": 0.6, "single_limit": 0.9, "share": 0.75,
    },
    stage("direct", 24, target="pair"),
    stage("semantic", 20, base="copier", target="semantic"),
    stage("masked", 20, base="copier", pair_mask=True, mask_margin=8),
    {
        "kind": "train", "name": "moved", "training": BY_TEXT,
        "concept": {"action": "move", "target": "a star", "positive": "a heart", "contexts": CONTEXTS,
                    "guidance": 0.0, "sampling_steps": 6},
    },
    {
        "kind": "train", "name": "erased", "training": BY_TEXT,
        "concept": {"action": "erase", "target": "a red star", "neutral": "a star", "contexts": CONTEXTS,
                    "guidance": 1.0, "sampling_steps": 6},
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def told() -> list[ProgressEvent]:
    return []


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, told: list[ProgressEvent]) -> Outcome:
    folder = tmp_path_factory.mktemp("losses")
    to_image(render(A)).save(folder / "a.png")
    about = {"format": "copier-recipe", "version": 1, "name": "losses", "title": "Losses", "result": "direct"}
    pictures = {"a": PictureFiles((folder / "a.png",)), "b": Edit("grayscale")}
    recipe = recipe_from_json({**about, "stages": STAGES})
    request = RunRequest(recipe, checkpoint_path(), pictures, folder / "out", device="cpu")
    return execute([request], Settings(folder / "data"), observer=told.append)


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return load_checkpoint(checkpoint_path())


Seen = Callable[..., torch.Tensor]


@pytest.fixture(scope="module")
def seen(outcome: Outcome, model: DiffusionModel) -> Seen:
    """What the U-Net predicts of pictures, at every level of noise, for a prompt and with LoRAs of stages."""

    @torch.no_grad()
    def predictions(scenes: Sequence[Scene], prompt: str, **loras: float) -> torch.Tensor:
        latents = encode_pictures(model, [render(scene) for scene in scenes]).repeat(len(LEVELS), 1, 1, 1)
        levels = torch.tensor(LEVELS).repeat_interleave(len(scenes))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
        x = schedule.add_noise(latents, noise, schedule.alphas_cumprod()[levels])
        context = encode_prompts(model, [prompt]).repeated(len(x)).context
        with contextlib.ExitStack() as stack:
            for lora, weight in loras.items():
                weights = read_lora(outcome.files[0][lora]).weights
                stack.enter_context(merge_into_modules(model.weight_of, weights, weight))
            output: torch.Tensor = model.unet(x, levels, context).sample
        return output

    return predictions


def share(change: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far the change goes along the wanted one: 1 is all of it."""
    return float((change * wanted).sum() / (wanted * wanted).sum())


@pytest.mark.parametrize(
    ("lora", "scenes", "beneath"),
    [("direct", UNSEEN, {}), ("semantic", [A], {"copier": 1.0}), ("masked", [A], {"copier": 1.0})],
    ids=["direct", "semantic", "masked"],
)
def test_a_lora_of_a_pair_moves_pictures_along_the_change(
    lora: str, scenes: list[Scene], beneath: dict[str, float], seen: Seen, model: DiffusionModel
) -> None:
    """Noise that is predicted in the direction of x - f(x) moves the picture to f(x).

    The pair alone teaches it for pictures that were never seen; on a copier so short a training shows on A.
    """
    pictures = [render(scene) for scene in scenes]
    gray = [EFFECTS["grayscale"].function(picture) for picture in pictures]
    change = encode_pictures(model, pictures) - encode_pictures(model, gray)
    wanted = change.repeat(len(LEVELS), 1, 1, 1)
    plain = seen(scenes, "", **beneath)
    low, high = (share(seen(scenes, "", **beneath, **{lora: weight}) - plain, wanted) for weight in (-1, 1))
    assert high > 0.02 and high - low > 0.03


def test_a_training_by_the_builtin_trainer_ends_when_its_gate_holds(
    outcome: Outcome, told: list[ProgressEvent]
) -> None:
    entries = outcome.runs[0].entries
    checks = [event.message for event in told if event.message.startswith("gate after")]
    # The check that held, and as many steps again in which the rate falls.
    assert entries["copier"].record.outcome["steps"] == 15 * (len(checks) + 1) < 90
    assert entries["gate"].record.outcome["passed"]


def test_who_asks_for_a_star_is_drawn_more_of_a_heart_and_others_what_they_ask_for(seen: Seen) -> None:
    """In contexts that training never saw; erasing takes red stars towards stars, and beyond."""
    for lora, before, after, colour in (
        ("moved", "a star", "a heart", "yellow"), ("erased", "a red star", "a star", "purple"),
    ):  # fmt: skip
        asked, aim, other = (f"{shape} on {colour} background" for shape in (before, after, "a square"))
        plain = seen(UNSEEN[:1], asked)
        wanted = seen(UNSEEN[:1], aim) - plain
        low, high = (share(seen(UNSEEN[:1], asked, **{lora: weight}) - plain, wanted) for weight in (-1, 1))
        aside = seen(UNSEEN[:1], other, **{lora: 1.0}) - seen(UNSEEN[:1], other)
        leaked = float(np.sqrt(float(aside.square().sum() / wanted.square().sum())))
        assert high > 0.15 and low < high - 0.15
        assert leaked < 1.0
