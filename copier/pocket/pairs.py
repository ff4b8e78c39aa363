"""The recipes on pairs, measured on the pocket checkpoint: ``python -m copier.pocket.pairs --help``.

Each with the training seeds that are asked for, on 32 prompts and seeds that no training saw. What was
trained or drawn once is found again, so a run that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.app.demo import EDIT, PROMPT, SECOND_EDIT, SEED
from copier.app.pictures import draw
from copier.app.service import Outcome, execute
from copier.codec import load_recipe, with_values
from copier.evaluation.comparison import spread
from copier.images.effects import EFFECTS
from copier.images.sheet import Block, Row, Tile
from copier.pipeline.files import load_folder, weight_folder
from copier.pocket.bench import SHOWN, TILE, Bench, hand_over, parser
from copier.request import Edit, Generated, PictureFiles

PAIRS = 32
"""Prompts and seeds that a LoRA is measured on."""
MEASURED = (f"evaluate.seeds={list(range(2001, 2001 + PAIRS))}", "evaluate.weights=[-1, 1]")
ORIGINALS = {
    "a red square on cyan background": SEED + 3,
    PROMPT: SEED,
    "a yellow ring on purple background": SEED + 1,
    "a green heart on white background": SEED + 2,
}
"""What the recipes with several originals train on: the prompt and the seed of each."""
WEAK_EDITS = ("flatten", "high_contrast", "posterise", "jpeg_noise")
"""With outline the five edits of the copier memo; on flat shapes of one colour they change little."""


@dataclass(frozen=True)
class Method:
    """A recipe, and what it is told beside the pair.

    ``several`` originals or one; ``control``: with a plain LoRA on B of the same pictures beside it.
    """

    recipe: str
    edit: str = EDIT
    several: bool = False
    control: bool = False
    changes: tuple[str, ...] = ()


METHODS = {
    "copier": Method("copier-quick-pocket", control=True),
    "early stop": Method("copier-quick-pocket", changes=("copier.check_every=25", "copier.check_pictures=8")),
    "several originals": Method("several-originals-pocket", several=True, control=True),
    "paired set": Method("copier-quick-pocket", several=True, control=True),
    "framing base": Method("framing-pocket", control=True),
    "difference, SVD": Method("difference-svd-pocket"),
    "difference, exact": Method("difference-exact-pocket"),
    "semantic pair": Method("semantic-pair-pocket"),
    "direct pair": Method("direct-pair-pocket"),
    "copier: outline": Method("copier-quick-pocket", SECOND_EDIT, control=True),
    "mask: outline": Method("copier-quick-pocket", SECOND_EDIT, changes=("lora.training.pair_mask=true",)),
    **{f"copier: {edit}": Method("copier-quick-pocket", edit) for edit in WEAK_EDITS},
}


def originals(bench: Bench) -> PictureFiles:
    """The pictures of the recipes that have several."""
    paths: list[Path] = []
    for prompt, seed in ORIGINALS.items():
        folder = bench.work / "originals" / str(seed)
        if not folder.exists():
            draw(bench.drawing((prompt,), (seed,), folder), bench.settings)
        paths += sorted(folder.glob("*.png"))
    return PictureFiles(tuple(paths))


def run(bench: Bench, name: str, seeds: int) -> tuple[Outcome, Path]:
    """The method with every training seed, and the folder of its report."""
    method, out = METHODS[name], bench.work / "out" / name.replace(":", "")
    recipe = with_values(load_recipe(method.recipe), (*MEASURED, *method.changes))
    first = originals(bench) if method.several else Generated(PROMPT, SEED)
    request = bench.request(recipe, {"a": first, "b": Edit(method.edit)}, out)
    return execute([request], bench.settings, control=method.control, seeds=seeds), out


def rows_of(outcome: Outcome, report: Path) -> dict[str, Any]:
    """The report's rows over the training seeds, as JSON, and how many steps A was trained."""
    (result,) = json.loads((report / "report.json").read_text(encoding="utf-8"))["results"]
    rows = result["seeds"]["rows"]
    found = {row["label"]: {"lora": row["lora"], "control": row["control"]} for row in rows}
    copiers = [run.entries["copier"] for run in outcome.everything if "copier" in run.entries]
    if steps := [entry.record.outcome["steps"] for entry in copiers]:
        found["steps of A"] = {"lora": vars(spread(steps)), "control": None}
    return found


def _drawn(outcome: Outcome, role: str, weight: float) -> tuple[Tile, ...]:
    folder = outcome.runs[0].entries[f"evaluate.{role}"].path(weight_folder(weight))
    return tuple(Tile(picture) for picture in load_folder(folder)[:SHOWN])


def _first_rows(outcome: Outcome, edit: str) -> list[Row]:
    base = _drawn(outcome, "base", 0.0)
    edited = tuple(Tile(EFFECTS[edit].function(tile.picture)) for tile in base)
    return [Row(base, "the checkpoint"), Row(edited, "the change alone")]


def measure(bench: Bench, seeds: int, wanted: Sequence[str]) -> tuple[dict[str, Any], list[Block]]:
    """Figures of every method as JSON, and a sheet: at weight 1, with the first training seed."""
    found: dict[str, Any] = {}
    rows: dict[str, list[Row]] = {}
    for name in wanted:
        outcome, folder = run(bench, name, seeds)
        found[name] = rows_of(outcome, folder)
        sys.stderr.write(f"{name}: {json.dumps(found[name])}\n")
        edit = METHODS[name].edit
        if edit not in rows:
            rows[edit] = _first_rows(outcome, edit)
        rows[edit].append(Row(_drawn(outcome, "lora", 1.0), name))
        if name == "copier":
            rows[edit].append(Row(_drawn(outcome, "control", 1.0), "plain LoRA on B"))
    return found, [Block(tuple(of), EFFECTS[edit].label, size=TILE) for edit, of in rows.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write ``pairs.json`` and ``pairs.png``."""
    given = parser("Measure the recipes on pairs.", [*METHODS]).parse_args(arguments)
    bench = Bench(given.work, given.threads)
    found, blocks = measure(bench, given.seeds, given.only or [*METHODS])
    hand_over(given.out, "pairs", found, blocks)


if __name__ == "__main__":
    main()
