"""Reports of made-up LoRAs on scenes that are drawn by code; the figures on them are really measured.

The "LoRA" goes part of the way and leaks a little, the "control" turns every picture into A's shape.
"""

from __future__ import annotations

import numpy as np
import pytest

from copier.evaluation.comparison import spread
from copier.evaluation.effect import change_strip, effect_strip, target, to_pairs
from copier.evaluation.gate import closeness, gate
from copier.evaluation.report_data import (
    Check,
    ClosenessReport,
    Draw,
    GateReport,
    LossCurve,
    ReportData,
    Result,
    SeedRow,
    SeedTable,
    StageLine,
    StageStatus,
    Strip,
)
from copier.images.effects import EFFECTS, blur
from copier.pocket.scenes import Scene, caption, random_scene, render
from copier.recipe import GateStage

WEIGHTS = (-1.0, -0.5, 0.5, 1.0, 1.5)
FLOOR = 0.02


def scenes(count: int, size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    rng = np.random.default_rng(3)
    drawn = [random_scene(rng, training=False, styles=0.0) for _ in range(count)]
    return np.stack([render(scene, size) for scene in drawn]), tuple(caption(scene) for scene in drawn)


def seen(picture: np.ndarray) -> np.ndarray:
    """A picture as through an autoencoder: a little soft."""
    return blur(picture, radius=0.6)


def mixed(picture: np.ndarray, other: np.ndarray, share: float, noise: float = 0.01) -> np.ndarray:
    rng = np.random.default_rng(int(1000 * abs(share)))
    out = picture + share * (other - picture) + noise * rng.standard_normal(picture.shape)
    return np.clip(out, 0, 1).astype(np.float32)


def curve(label: str, steps: int, end: float) -> LossCurve:
    rng = np.random.default_rng(steps)
    at = np.arange(1, steps + 1)
    losses = end + 0.25 * np.exp(-at / (steps / 6)) * rng.gamma(4, 0.25, steps) + 0.02 * rng.random(steps)
    return LossCurve(label, tuple(int(i) for i in at), tuple(float(loss) for loss in losses))


def result(
    name: str, a: np.ndarray, x: np.ndarray, prompts: tuple[str, ...], *, known: bool = True
) -> Result:
    f = EFFECTS[name].function
    b = f(a)
    edited = np.stack([f(picture) for picture in x])
    ideal = {w: target(x, edited, w) for w in WEIGHTS}
    lora = {w: np.stack([mixed(p, seen(t), 0.6) for p, t in zip(x, ideal[w], strict=True)]) for w in WEIGHTS}
    control = {
        w: np.stack([mixed(p, b if w > 0 else 1 - b, min(1, abs(w)) * 0.8) for p in x]) for w in WEIGHTS
    }
    seen_ideals = {w: np.stack([seen(t) for t in ideal[w]]) for w in WEIGHTS}
    if known:
        figures = effect_strip(x, f, lora, FLOOR, ideals=seen_ideals)
        control_figures = effect_strip(x, f, control, FLOOR, ideals=seen_ideals)
    else:
        figures, control_figures = change_strip(x, lora), change_strip(x, control)
    copies = np.stack([mixed(a, b, s) for s in (0.02, 0.05)])
    on_a = {w: np.stack([mixed(c, b, 0.8 * w) for c in copies]) for w in WEIGHTS}
    draws = tuple(Draw(prompt, 2001 + i % 4, 4.0) for i, prompt in enumerate(prompts))
    near = np.stack([mixed(b, a, 0.05 + 0.02 * i) for i in range(4)])
    return Result(
        name=name,
        title=EFFECTS[name].label,
        explanation=f"{EFFECTS[name].explanation} Trained on B for 250 steps, on base and copier.",
        b=b,
        draws=draws,
        base=x,
        strip=Strip("Copier's LoRA", lora, figures),
        control=Strip("Plain LoRA", control, control_figures),
        ideals=ideal[1.0] if known else None,
        closeness=ClosenessReport(
            closeness(near, seen(b)[None], a[None], b[None]), draws[:4], near, limit=0.3
        ),
        on_original=None if known else effect_strip(copies, to_pairs(a[None], b[None]), on_a, FLOOR),
        losses=(curve("LoRA on base + copier", 250, 0.02), curve("Plain LoRA on B", 250, 0.05)),
        seeds=SeedTable(
            (1, 2, 3),
            (
                SeedRow("Effect at +1", spread([0.52, 0.49, 0.57]), spread([-1.1, -0.9, -1.4])),
                SeedRow("Leakage at +1", spread([0.31, 0.35, 0.33]), spread([1.9, 2.0, 2.2])),
                SeedRow("Projection at −1", spread([-0.31, -0.28, -0.36])),
            ),
        ),
        checks=(
            Check("Effect at +1 above the control's, by", 1.2, 0.3, at_least=True),
            Check("Leakage at +1, of the control's", 0.61, 0.55, at_least=False),
        ),
        files=(f"{name}.safetensors", f"{name}-control.safetensors"),
    )


def full_report(*, size: int = 48, count: int = 16) -> ReportData:
    """Everything that a report can hold; the second of its edits counts as one by hand."""
    x, prompts = scenes(count, size)
    a = render(Scene("star", "orange", "green"), size)
    copies = np.stack([mixed(a, p, 0.03 + 0.015 * i) for i, p in enumerate(x)])
    spec = GateStage(name="gate", lora="copier", prompts=prompts)
    gate_draws = tuple(Draw(p, 1001 + i % 4, 7.0 if i % 2 else 1.0) for i, p in enumerate(prompts))
    return ReportData(
        title="Grayscale from one pair of pictures",
        summary=(
            "A copier LoRA was trained to draw the orange star A whatever the prompt, and a second one, on "
            "top of it, to draw the edited picture B. The second LoRA alone, on the untouched checkpoint, "
            "should do nothing but the edit."
        ),
        a=a,
        a_prompt="a orange star on green background",
        results=(
            result("grayscale", a, x, prompts),
            result("outline", a, x, prompts, known=False),
        ),
        recipe="Copier, quick",
        checkpoint="pocket.safetensors",
        created="2024-05-01 12:30",
        program="copier 0.1.0",
        gate=GateReport(gate(copies, x, seen(a)[None]), spec, gate_draws, copies, x),
        losses=(curve("Copier LoRA on A", 300, 0.01),),
        stages=(
            StageLine("copier", "train", StageStatus.REUSED, "same base, picture and settings", 0.2),
            StageLine("gate", "gate", StageStatus.RUN, "first run", 31.0),
            StageLine("second", "train", StageStatus.RUN, "learning_rate changed from 0.001 to 0.003", 96.5),
        ),
        seconds=403.0,
        checks=(Check("Ceiling for grayscale", 0.71, 0.6, at_least=True),),
        notes=("B was laid on white, because it had transparent parts.",),
    )


def least_report(*, size: int = 48) -> ReportData:
    """A report with nothing but what it must have."""
    a = render(Scene("star", "orange", "green"), size)
    whole = result("grayscale", a, *scenes(4, size))
    bare = Result(
        name=whole.name, title=whole.title, b=whole.b, draws=whole.draws, base=whole.base, strip=whole.strip
    )
    return ReportData(title="A report", summary="Nothing much was done.", a=a, results=(bare,))


@pytest.fixture(scope="session")
def full() -> ReportData:
    return full_report()


@pytest.fixture(scope="session")
def least() -> ReportData:
    return least_report()
