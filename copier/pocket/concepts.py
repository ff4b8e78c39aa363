"""What a LoRA by text alone does on the pocket checkpoint: ``python -m copier.pocket.concepts LORA...``.

Draws prompts that the ``*-pocket`` recipes never train on, with each LoRA at weight 0, 1 and -1, and reads
shape and colours back by the judge. Prints JSON: how many pictures of each set have which of the asked parts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from copier.diffusion.load import load_checkpoint
from copier.diffusion.model import DiffusionModel
from copier.diffusion.sample import sample
from copier.ops.lora_file import read_lora
from copier.ops.merge_modules import merge_into_modules
from copier.pocket.checkpoint import checkpoint_path
from copier.pocket.judge import Verdict, judge

BACKGROUNDS = ("yellow", "cyan", "purple", "gray", "orange", "black")
"""Contexts that the recipes do not train in."""
OTHERS = ("green heart", "blue circle", "pink cross", "purple square", "cyan triangle", "white crescent")
PICTURES = 36
FIRST_SEED = 3001
STEPS, GUIDANCE = 10, 4.0
WEIGHTS = (0.0, 1.0)


def prompts(asked: Sequence[str]) -> tuple[str, ...]:
    """``PICTURES`` prompts: colours and shapes in turn, on backgrounds that turn at another pace."""
    count = len(BACKGROUNDS)
    places = [BACKGROUNDS[(i + i // count) % count] for i in range(PICTURES)]
    return tuple(f"a {asked[i % len(asked)]} on {place} background" for i, place in enumerate(places))


SETS = {
    "red star": prompts(("red star",)),
    "star": prompts(("star",)),
    "red heart": prompts(("red heart",)),
    "others": prompts(OTHERS),
}


def verdicts(model: DiffusionModel, asked: Sequence[str], lora: Path, weight: float) -> list[Verdict]:
    """What the judge sees in one picture of each prompt."""
    seeds = range(FIRST_SEED, FIRST_SEED + len(asked))
    with merge_into_modules(model.weight_of, read_lora(lora).weights, weight):
        pictures = sample(model, asked, seeds, steps=STEPS, guidance=GUIDANCE, width=128, height=128)
    return [judge(picture) for picture in pictures]


def counts(asked: Sequence[str], seen: Sequence[Verdict]) -> dict[str, int]:
    """How many pictures are red, stars, hearts, and how many have the shape, colour and background asked for.

    A prompt without a colour asks for none.
    """
    words = [prompt.removesuffix(" background").split() for prompt in asked]
    shapes, colours = [one[one.index("on") - 1] for one in words], [one[1] for one in words]
    return {
        "pictures": len(seen),
        "red": sum(one.colour == "red" for one in seen),
        "star": sum(one.shape == "star" for one in seen),
        "heart": sum(one.shape == "heart" for one in seen),
        "shape as asked": sum(one.shape == shape for one, shape in zip(seen, shapes, strict=True)),
        "colour as asked": sum(one.colour == colour for one, colour in zip(seen, colours, strict=True)),
        "background as asked": sum(one.background == word[-1] for one, word in zip(seen, words, strict=True)),
    }


def main() -> None:
    """Measure the LoRAs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loras", nargs="+", type=Path)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=sorted(SETS))
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    arguments = parser.parse_args()
    model = load_checkpoint(checkpoint_path())
    for lora in arguments.loras:
        for name in arguments.sets:
            for weight in arguments.weights:
                found = counts(SETS[name], verdicts(model, SETS[name], lora, weight))
                about = {"lora": lora.name, "set": name, "weight": weight}
                sys.stdout.write(json.dumps({**about, **found}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
