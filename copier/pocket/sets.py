"""The recipes on sets, measured on the pocket checkpoint: ``python -m copier.pocket.sets --help``.

Pictures are drawn by ``copier.pocket.scenes``: characters (a shape, a colour and an ornament that the
checkpoint does not know) in a rendered look (glossy, without outline). Every LoRA is then drawn on the plain
checkpoint, with prompts and seeds that no training saw, and the pictures are read back by
``copier.pocket.judge``:

    character   share of the pictures with the character's shape, colour and ornament
    look        how far the rim's darkness is from that of plain pictures of it (0) to that of rendered
                ones (1), both as the checkpoint's autoencoder shows them: that is what a LoRA learns

What was trained or drawn once is found again, so a run that was stopped goes on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from copier.app.distilling import WEIGHT, candidates, new_set
from copier.codec import load_recipe, with_values
from copier.diffusion.load import load_checkpoint
from copier.diffusion.pictures import reconstruct
from copier.images.effects import to_image
from copier.images.sheet import Block, Row
from copier.pipeline.files import load_picture
from copier.pocket.bench import TILE, Bench, hand_over, parser, picture_row, short_name, summary
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.judge import dressed, judge, outlined
from copier.pocket.scenes import Scene, jittered, ornament_rgb, render
from copier.recipe import Recipe, reseeded
from copier.request import PictureFiles

LOOK = "3d"
"""The style of scenes that is the look: no caption names it."""
HERO = Scene("star", "purple", "white", LOOK, ornament="belt")
OTHERS = tuple(
    Scene(shape, colour, "white", LOOK, ornament=ornament)
    for shape, colour, ornament in (
        ("circle", "red", "cap"),
        ("heart", "yellow", "spots"),
        ("square", "blue", "cap"),
        ("triangle", "green", "spots"),
        ("cross", "orange", "belt"),
        ("ring", "pink", "spots"),
        ("crescent", "cyan", "belt"),
    )
)
"""The characters of the base set; the article has about five."""
CAPTION = "white background"
"""What is left of the character's captions: what is constant."""
PROMPTS = tuple(
    f"{CAPTION}, {word}"
    for word in ("large", "small", "drawing", "nice", "centered", "simple", "picture", "toy")
)
"""The training's caption and a word that no training of the checkpoint had: nothing of shape, colour or look.

Behind the caption, as tags are added. In front of it such words change the colours of what is drawn.
"""
SEEDS = (3001, 3002, 3003, 3004)
STEPS, GUIDANCE = 8, 1.0
"""Sampling steps, and no guidance: at 4 the checkpoint draws white shapes where a prompt only names a white
background, and that pales what a LoRA brings."""
WEIGHTS = (1.0, 1.4)
"""At which every LoRA is drawn."""
DISTILLED = "distilled"
"""What is trained on pictures of the LoRA without a base, at half weight."""
HALF_SEEDS = range(11, 27)
"""Of those pictures."""
SCALE_VIEWS = 12
"""Pictures of which each end of the look's scale is the mean."""
LEAST_BODY, LEAST_WORN = 0.3, 0.08
"""Shares of a shape's pixels from which it has the colour, and wears the ornament."""


@dataclass(frozen=True)
class Figures:
    """What was read from pictures: shares of all of them, and the mean look."""

    character: float
    shape: float
    colour: float
    ornament: float
    look: float


def write_set(folder: Path, characters: Sequence[Scene], each: int, *, seed: int) -> Path:
    """A training set: ``each`` pictures of every character, upright, with caption files of tags."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number, character in enumerate(characters):
        for view in range(each):
            scene = _upright(character, rng)
            name = f"{number}-{view}"
            to_image(render(scene)).save(folder / f"{name}.png")
            tags = f"a {scene.colour} {scene.shape}, {scene.ornament}, {scene.background} background, 3d"
            (folder / f"{name}.txt").write_text(f"{tags}\n", encoding="utf-8")
    return folder


def _upright(character: Scene, rng: np.random.Generator) -> Scene:
    return replace(jittered(character, rng), angle=0.0)


def as_encoded(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The pictures as the checkpoint's autoencoder shows them."""
    return list(reconstruct(load_checkpoint(checkpoint_path()), np.stack(pictures)))


@functools.cache
def look_scale() -> tuple[float, float]:
    """``outlined`` of the character drawn plainly, and as it is rendered; means of ``SCALE_VIEWS`` each."""
    views = []
    for style in (None, LOOK):
        rng = np.random.default_rng(1)
        views += [render(_upright(replace(HERO, style=style), rng)) for _ in range(SCALE_VIEWS)]
    seen = [outlined(picture) for picture in as_encoded(views)]
    return float(np.mean(seen[:SCALE_VIEWS])), float(np.mean(seen[SCALE_VIEWS:]))


def figures(pictures: Sequence[np.ndarray], scale: tuple[float, float] | None = None) -> Figures:
    """How far the pictures show the character, and the look; ``scale`` is as of ``look_scale``."""
    plain, rendered = scale or look_scale()
    seen = []
    for picture in pictures:
        body, worn = dressed(picture, HERO.colour, ornament_rgb(HERO.colour))
        told = (judge(picture).shape == HERO.shape, body >= LEAST_BODY, worn >= LEAST_WORN)
        seen.append((all(told), *told, (outlined(picture) - plain) / (rendered - plain)))
    return Figures(*(float(value) for value in np.mean(np.array(seen, dtype=float), axis=0)))


def recipes() -> dict[str, Recipe]:
    """What is compared: the recipes via a base and via a style, and trainings without any."""
    via_base, alone = load_recipe("character-pocket"), load_recipe("picture-set-pocket")
    (*_, last) = via_base.trainings()
    as_long = f"training.steps={last.training.steps}"
    return {
        "via a base": via_base,
        "without a base": with_values(alone, ['training.captions.kept="constant"', as_long]),
        "style-separated": load_recipe("style-subject-pocket"),
        DISTILLED: alone,
    }


def distilled_set(bench: Bench, lora: Path, name: str) -> Path:
    """A training set: the LoRA's pictures at half weight, those with shape and ornament; kept as ``name``."""
    request = bench.drawing(
        (CAPTION,), HALF_SEEDS, bench.work / name, loras=((lora, WEIGHT),), steps=STEPS, guidance=GUIDANCE
    )
    seen = [(one, figures([load_picture(one.path)])) for one in candidates(request, bench.settings)]
    return new_set([one for one, told in seen if told.shape and told.ornament], bench.work / name)


def measure(
    bench: Bench, seeds: int, wanted: Sequence[str], changes: Sequence[str] = ()
) -> tuple[dict[str, Any], list[Row]]:
    """Figures of every LoRA and seed as JSON, and the rows of a sheet."""
    sets = {"base": write_set(bench.work / "base", OTHERS, 3, seed=5)}
    sets["character"] = sets["set"] = write_set(bench.work / "character", [HERO], 6, seed=6)
    sets |= {"style": sets["base"], "subject": sets["character"]}
    trained_on = [load_picture(path) for path in sorted(sets["character"].glob("*.png"))]
    found: dict[str, Any] = {"trained on": [vars(figures(as_encoded(trained_on)))]}
    rows = [picture_row("trained on", trained_on)]
    for offset in range(seeds):
        for name in wanted:
            lora, kept = _lora(bench, name, sets, offset, changes)
            for weight in WEIGHTS:
                told = name if weight == 1 else f"{name}, weight {weight:g}"
                pictures = _drawn(bench, lora, f"{kept}-{weight:g}", weight)
                found.setdefault(told, []).append(vars(figures(pictures)))
                print(told, offset, found[told][-1], file=sys.stderr, flush=True)
                if not offset:
                    rows.append(picture_row(told, pictures))
    base = _drawn(bench, None, "checkpoint")
    found["the checkpoint"] = [vars(figures(base))]
    return found, [*rows, picture_row("the checkpoint", base)]


def _drawn(bench: Bench, lora: Path | None, name: str, weight: float = 1.0) -> list[np.ndarray]:
    return bench.drawn(lora, PROMPTS, SEEDS, name, steps=STEPS, weight=weight, guidance=GUIDANCE)


def _lora(
    bench: Bench, name: str, sets: Mapping[str, Path], offset: int, changes: Sequence[str]
) -> tuple[Path, str]:
    """The LoRA with that training seed, and a name for what it draws."""
    given = dict(sets)
    if name == DISTILLED:
        plain, kept = _lora(bench, "without a base", sets, offset, changes)
        given["set"] = distilled_set(bench, plain, f"half-{kept}")
    recipe = reseeded(with_values(recipes()[name], changes), offset)
    lora = bench.trained(recipe, {one.name: PictureFiles.at(given[one.name]) for one in recipe.given})
    return lora, f"{name}-{short_name(recipe)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write ``character.json`` and ``character.png``."""
    asked = parser("Measure the recipes on sets.", [*recipes()])
    asked.add_argument("--set", action="append", default=[], help="as of `copier run`, for each of them")
    given = asked.parse_args(arguments)
    bench = Bench(given.work, given.threads)
    found, rows = measure(bench, given.seeds, given.only or [*recipes()], given.set)
    data = {
        "prompts": list(PROMPTS),
        "seeds": list(SEEDS),
        "set": given.set,
        "summary": summary(found),
        "figures": found,
    }
    hand_over(given.out, "character", data, [Block(tuple(rows), size=TILE)])


if __name__ == "__main__":
    main()
