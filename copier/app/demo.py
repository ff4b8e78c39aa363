"""What the demo runs: its original, its edits and its recipes, in one place."""

from __future__ import annotations

from pathlib import Path

from copier.codec import load_recipe
from copier.request import Edit, Generated, RunRequest

PROMPT = "a blue star on red background"
SEED = 7
EDIT = "grayscale"
SECOND_EDIT = "outline"
RECIPE = "copier-quick-pocket"
DIFFERENCE_RECIPE = "difference-svd-pocket"
DIFFERENCE_TITLE = "Grayscale by difference"


def demo_requests(
    checkpoint: Path,
    out: Path,
    *,
    full: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> tuple[RunRequest, ...]:
    """One run of the method; ``full`` adds a second edit, with the same copier, and the difference."""
    wanted = [(RECIPE, EDIT, "")]
    if full:
        wanted += [(RECIPE, SECOND_EDIT, ""), (DIFFERENCE_RECIPE, EDIT, DIFFERENCE_TITLE)]
    return tuple(
        RunRequest(
            recipe=load_recipe(recipe),
            checkpoint=checkpoint,
            pictures={"a": Generated(PROMPT, SEED), "b": Edit(edit)},
            out=out,
            title=title,
            device=device,
            threads=threads,
        )
        for recipe, edit, title in wanted
    )
