"""The pocket checkpoint's quality gate: ``python -m copier.pocket.quality --out docs/pocket``.

Measures what docs/pocket-checkpoint.md shows: the autoencoder on unseen scenes, plain and edited, and
64 captions held out of training as combinations, four seeds each, at CFG 4, read back by the judge.
Writes ``quality.json`` and the contact sheet ``held-out.png``; exit code 1 where a limit is not kept.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.pictures import reconstruct
from copier.diffusion.sample import sample
from copier.images.effects import EFFECTS, Picture
from copier.images.metrics import psnr
from copier.images.sheet import grid
from copier.pocket import scenes
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.judge import judge

LIMITS = {"psnr_plain": 30.0, "psnr_edited": 30.0, "colour": 0.95, "background": 0.95, "shape": 0.90}
UNSEEN_SCENES = 256
CAPTIONS = 64
SEEDS = (1, 2, 3, 4)
GUIDANCE = 4.0
STEPS = 20
GATE_SEED = 20_000
"""Seed of the unseen scenes and captions; training draws from other streams."""


def held_out_scenes(count: int) -> list[scenes.Scene]:
    """Distinct scenes without style whose combination training never saw, fixed."""
    rng = np.random.default_rng((GATE_SEED, 1))
    found: dict[str, scenes.Scene] = {}
    while len(found) < count:
        scene = scenes.random_scene(rng, training=False, styles=0.0)
        found.setdefault(scenes.caption(scene), scene)
    return list(found.values())


def autoencoder_figures(model: DiffusionModel, count: int = UNSEEN_SCENES) -> dict[str, float]:
    """Mean PSNR in dB of decode(encode(x)) over ``count`` unseen scenes: plain, edited, by edit.

    The ceiling of an edit f is 1 - |decode(encode(f(x))) - f(x)| / |f(x) - x|, the effect that the
    autoencoder alone allows.
    """
    rng = np.random.default_rng((GATE_SEED, 2))
    plain = [scenes.render(scenes.random_scene(rng)) for _ in range(count)]
    edited = [scenes.edited(picture, rng) for picture in plain]
    figures = {
        "psnr_plain": _mean_psnr(model, plain),
        "psnr_edited": _mean_psnr(model, edited),
    }
    few = plain[:32]
    for name, effect in EFFECTS.items():
        wanted = [np.clip(effect.function(picture), 0, 1) for picture in few]
        figures[f"ceiling_{name}"] = _mean_effect(few, wanted, reconstruct(model, np.stack(wanted)))
    return figures


def _mean_psnr(model: DiffusionModel, pictures: Sequence[Picture]) -> float:
    again = reconstruct(model, np.stack(pictures))
    return float(np.mean([psnr(one, two) for one, two in zip(pictures, again, strict=True)]))


def _mean_effect(
    before: Sequence[Picture], wanted: Sequence[Picture], got: Sequence[Picture], floor: float = 0.02
) -> float:
    effects = []
    for x, t, y in zip(before, wanted, got, strict=True):
        size = float(np.sqrt(np.mean((t - x) ** 2)))
        if size >= floor:
            effects.append(1 - float(np.sqrt(np.mean((y - t) ** 2))) / size)
    return float(np.mean(effects)) if effects else float("nan")


def drawing_figures(model: DiffusionModel, count: int = CAPTIONS) -> tuple[dict[str, object], Picture]:
    """Shares of right shapes and colours over held-out captions, and the pictures."""
    wanted = [scene for scene in held_out_scenes(count) for _ in SEEDS]
    pictures = sample(
        model,
        [scenes.caption(scene) for scene in wanted],
        [seed for _ in range(count) for seed in SEEDS],
        steps=STEPS,
        guidance=GUIDANCE,
        width=scenes.SIZE,
        height=scenes.SIZE,
    )
    seen = [judge(picture) for picture in pictures]
    figures: dict[str, object] = {}
    confusion: dict[str, dict[str, int]] = {}
    for what in ("shape", "colour", "background"):
        pairs = [(getattr(w, what), getattr(v, what)) for w, v in zip(wanted, seen, strict=True)]
        figures[what] = float(np.mean([asked == drawn for asked, drawn in pairs]))
        counted = Counter(pairs)
        confusion[what] = {f"{asked} -> {drawn}": n for (asked, drawn), n in sorted(counted.items())}
    figures["confusion"] = confusion
    return figures, pictures


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="default: the embedded one")
    parser.add_argument("--out", type=Path, required=True, help="folder for quality.json and the sheet")
    parser.add_argument("--captions", type=int, default=CAPTIONS)
    parser.add_argument("--scenes", type=int, default=UNSEEN_SCENES)
    arguments = parser.parse_args()
    model = load_checkpoint(arguments.checkpoint or checkpoint_path())
    figures: dict[str, object] = dict(autoencoder_figures(model, arguments.scenes))
    drawn, pictures = drawing_figures(model, arguments.captions)
    figures.update(drawn)
    kept = {name: float(str(figures[name])) >= limit for name, limit in LIMITS.items()}
    figures["limits"] = LIMITS
    figures["kept"] = kept
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "quality.json").write_text(json.dumps(figures, indent=1) + "\n")
    first = pictures[:: len(SEEDS)]
    captions = [scenes.caption(scene) for scene in held_out_scenes(len(first))]
    short = [text.removeprefix("a ").replace(" background", "") for text in captions]
    grid(list(first), columns=8, captions=short, size=96).save(arguments.out / "held-out.png")
    for name, limit in LIMITS.items():
        print(f"{name:12} {figures[name]:.3f}  limit {limit:g}  {'kept' if kept[name] else 'NOT KEPT'}")
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
