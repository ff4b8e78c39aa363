"""What the measurements of the recipes have in common: where they work, what they are told, what they write.

Everything is trained and drawn on the pocket checkpoint, on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from copier.app.distilling import candidates
from copier.app.pictures import DrawRequest
from copier.app.service import execute
from copier.app.settings import Settings
from copier.codec import recipe_to_json
from copier.digest import json_digest
from copier.evaluation.comparison import spread
from copier.images.sheet import Block, Row, Tile, contact_sheet
from copier.pipeline.files import load_picture
from copier.pocket.checkpoint import checkpoint_path
from copier.recipe import Recipe
from copier.request import RunRequest, Source

SHOWN, TILE = 8, 96
"""Pictures of each row of a sheet, and the longer side of each in pixels."""


@dataclass(frozen=True)
class Bench:
    """Where a measurement works: ``work`` keeps pictures, stages and LoRAs, and finds them again."""

    work: Path
    threads: int | None = None

    @property
    def settings(self) -> Settings:
        """With a store of its own."""
        return Settings(self.work / "data")

    def request(self, recipe: Recipe, pictures: Mapping[str, Source], out: Path) -> RunRequest:
        """The recipe on these pictures."""
        return RunRequest(recipe, checkpoint_path(), dict(pictures), out, device="cpu", threads=self.threads)

    def drawing(self, prompts: Sequence[str], seeds: Sequence[int], out: Path, **more: Any) -> DrawRequest:
        """Every prompt with every seed; ``more`` as of ``DrawRequest``."""
        return DrawRequest(
            checkpoint_path(), tuple(prompts), tuple(seeds), out, device="cpu", threads=self.threads, **more
        )

    def trained(self, recipe: Recipe, pictures: Mapping[str, Source]) -> Path:
        """The LoRA of the recipe on these pictures."""
        request = self.request(recipe, pictures, self.work / "runs" / short_name(recipe))
        return execute([request], self.settings).result

    def drawn(
        self,
        lora: Path | None,
        prompts: Sequence[str],
        seeds: Sequence[int],
        name: str,
        *,
        steps: int,
        weight: float = 1.0,
        guidance: float = 4.0,
    ) -> list[np.ndarray]:
        """Pictures (height, width, 3), sRGB in [0, 1], of every prompt and seed with the LoRA at ``weight``.

        On the plain checkpoint where there is no LoRA; kept as ``name``.
        """
        loras = () if lora is None else ((lora, weight),)
        out = self.work / "drawn" / name
        request = self.drawing(prompts, seeds, out, loras=loras, steps=steps, guidance=guidance)
        return [load_picture(one.path) for one in candidates(request, self.settings)]


def short_name(recipe: Recipe) -> str:
    """A name for the recipe's files: other values make another name."""
    return f"{recipe.name}-{json_digest(recipe_to_json(recipe))[:12]}"


def summary(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Mean, smallest and largest over the training seeds, for each figure of each thing measured."""
    told: dict[str, Any] = {}
    for name, seeds in found.items():
        spreads = {figure: spread([one[figure] for one in seeds]) for figure in seeds[0]}
        told[name] = {
            figure: {"mean": round(one.mean, 3), "low": round(one.low, 3), "high": round(one.high, 3)}
            for figure, one in spreads.items()
        }
    return told


def picture_row(label: str, pictures: Sequence[np.ndarray]) -> Row:
    """Up to ``SHOWN`` of the pictures, at equal distances, as a row of a sheet."""
    step = max(1, len(pictures) // SHOWN)
    return Row(tuple(Tile(picture) for picture in pictures[::step][:SHOWN]), label)


def parser(description: str, choices: Sequence[str]) -> argparse.ArgumentParser:
    """What every measurement is told on the command line."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--work", type=Path, required=True, help="folder of what is trained and drawn")
    made.add_argument("--out", type=Path, required=True, help="folder of the outcome")
    made.add_argument("--seeds", type=int, default=3, help="training seeds (default: 3)")
    made.add_argument("--only", action="append", choices=choices, help="what is measured (default: all)")
    made.add_argument("--threads", type=int, default=None)
    return made


def hand_over(out: Path, name: str, data: Mapping[str, Any], blocks: Sequence[Block]) -> None:
    """Write ``name.json`` and the sheet ``name.png`` into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    contact_sheet(blocks).quantize(128).save(out / f"{name}.png", optimize=True)
