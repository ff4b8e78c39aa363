"""The recipes by text alone, measured on the pocket checkpoint: ``python -m copier.pocket.concepts --help``.

Each with the training seeds that are asked for. Its LoRA is drawn at weight 1 with prompts that no training
had, and shape, colour and background are read back by ``copier.pocket.judge``. What was trained or drawn once
is found again, so a run that was stopped goes on.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from copier.codec import load_recipe
from copier.images.sheet import Block, Row
from copier.pocket.bench import TILE, Bench, hand_over, parser, picture_row, short_name, summary
from copier.pocket.judge import Verdict, judge
from copier.recipe import reseeded

BACKGROUNDS = ("yellow", "cyan", "purple", "gray", "orange", "black")
"""Contexts that the recipes do not train in."""
SETS = {
    "red star": ("red star",),
    "blue star": ("blue star",),
    "red heart": ("red heart",),
    "star": ("star",),
    "others": (
        "green heart",
        "blue circle",
        "pink cross",
        "purple square",
        "cyan triangle",
        "white crescent",
    ),
}
"""What is asked for, by the name of the set."""
PICTURES = 36
"""Of each set."""
FIRST_SEED = 3001
STEPS = 10
"""Sampling steps."""
METHODS = {"erase": "erase-pocket", "move": "move-pocket"}


def prompts(name: str) -> tuple[str, ...]:
    """Everything that the set asks for on every background."""
    return tuple(f"a {asked} on {place} background" for asked in SETS[name] for place in BACKGROUNDS)


def seeds_of(name: str) -> range:
    """As many seeds as make ``PICTURES`` pictures of the set."""
    return range(FIRST_SEED, FIRST_SEED + PICTURES // len(prompts(name)))


def shares(asked: Sequence[str], seen: Sequence[Verdict]) -> dict[str, float]:
    """Shares of pictures that are red, stars, hearts, and that have shape, colour and background as asked.

    A prompt without a colour asks for none.
    """
    words = [prompt.removesuffix(" background").split() for prompt in asked]
    pairs = list(zip(words, seen, strict=True))
    told = {
        "red": [one.colour == "red" for one in seen],
        "star": [one.shape == "star" for one in seen],
        "heart": [one.shape == "heart" for one in seen],
        "shape as asked": [one.shape == word[word.index("on") - 1] for word, one in pairs],
        "colour as asked": [one.colour == word[1] for word, one in pairs],
        "background as asked": [one.background == word[-1] for word, one in pairs],
    }
    return {figure: sum(having) / len(seen) for figure, having in told.items()}


def measure(bench: Bench, seeds: int, wanted: Sequence[str]) -> tuple[dict[str, Any], list[Row]]:
    """Shares of every recipe, set and training seed, and the rows of a sheet: of the first training seed."""
    found: dict[str, Any] = {}
    rows: dict[str, list[Row]] = {name: [] for name in SETS}
    for label, kept, lora in _loras(bench, seeds, wanted):
        for name in SETS:
            pictures = bench.drawn(lora, prompts(name), seeds_of(name), f"{kept}-{name}", steps=STEPS)
            asked = [prompt for prompt in prompts(name) for _ in seeds_of(name)]
            title = f"{label}: {name}"
            if title not in found:
                rows[name].append(picture_row(title, pictures))
            found.setdefault(title, []).append(shares(asked, [judge(picture) for picture in pictures]))
            print(title, found[title][-1], file=sys.stderr, flush=True)
    return found, list(itertools.chain.from_iterable(rows.values()))


def _loras(bench: Bench, seeds: int, wanted: Sequence[str]) -> Iterator[tuple[str, str, Path | None]]:
    """Label, name of the pictures and LoRA: none, and then of every recipe and training seed."""
    yield "the checkpoint", "checkpoint", None
    for label in wanted:
        for offset in range(seeds):
            recipe = reseeded(load_recipe(METHODS[label]), offset)
            yield label, short_name(recipe), bench.trained(recipe, {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write ``concepts.json`` and ``concepts.png``."""
    given = parser("Measure the recipes by text alone.", [*METHODS]).parse_args(arguments)
    bench = Bench(given.work, given.threads)
    found, rows = measure(bench, given.seeds, given.only or [*METHODS])
    data = {"pictures": PICTURES, "summary": summary(found), "shares": found}
    hand_over(given.out, "concepts", data, [Block(tuple(rows), size=TILE)])


if __name__ == "__main__":
    main()
