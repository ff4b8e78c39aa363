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

from copier.app.pictures import DrawRequest
from copier.app.settings import Settings
from copier.images.sheet import Block, Row, contact_sheet
from copier.pocket.checkpoint import checkpoint_path
from copier.recipe import Recipe
from copier.request import RunRequest, Source


@dataclass(frozen=True)
class Bench:
    """Where a measurement works: ``work`` keeps pictures, stages and LoRAs, and finds them again."""

    work: Path
    threads: int | None = None

    @property
    def settings(self) -> Settings:
        """With a store of its own."""
        return Settings(self.work / "data")

    def run_of(self, recipe: Recipe, pictures: Mapping[str, Source], out: Path) -> RunRequest:
        """The recipe on these pictures."""
        return RunRequest(recipe, checkpoint_path(), dict(pictures), out, device="cpu", threads=self.threads)

    def drawing_of(self, prompts: Sequence[str], seeds: Sequence[int], out: Path, **more: Any) -> DrawRequest:
        """Pictures of the prompts and seeds; ``more`` as of ``DrawRequest``."""
        return DrawRequest(
            checkpoint_path(), tuple(prompts), tuple(seeds), out, device="cpu", threads=self.threads, **more
        )


def parser(description: str, choices: Sequence[str]) -> argparse.ArgumentParser:
    """What every measurement is told on the command line."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--work", type=Path, required=True, help="folder of what is trained and drawn")
    made.add_argument("--out", type=Path, required=True, help="folder of the outcome")
    made.add_argument("--seeds", type=int, default=3, help="training seeds (default: 3)")
    made.add_argument("--only", action="append", choices=choices, help="what is measured (default: all)")
    made.add_argument("--threads", type=int, default=None)
    return made


def hand_over(out: Path, name: str, data: Mapping[str, Any], rows: Sequence[Row], size: int = 128) -> None:
    """Write ``name.json`` and a sheet, ``name.png``, of tiles of ``size`` pixels, into the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    contact_sheet([Block(tuple(rows), size=size)]).quantize(128).save(out / f"{name}.png", optimize=True)
