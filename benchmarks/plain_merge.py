"""A merge as a short script does it, all in memory: `python -m benchmarks.plain_merge BASE LORA OUT`."""

from __future__ import annotations

import sys

from safetensors.torch import load_file, save_file

from copier.checkpoint.names import module_from_kohya


def main(base: str, lora: str, out: str) -> None:
    """Load both, add each product to its weight in float32, save in the dtype that the weight had."""
    weights, factors = load_file(base), load_file(lora)
    for key in list(factors):
        name, _, part = key.partition(".")
        if part != "alpha":
            continue
        up, down = (factors[f"{name}.lora_{side}.weight"].float() for side in ("up", "down"))
        change = float(factors[key]) / down.shape[0] * up.flatten(1) @ down.flatten(1)
        target = module_from_kohya(name).ldm
        weight = weights[target]
        weights[target] = (weight.float() + change.reshape(weight.shape)).to(weight.dtype)
    save_file(weights, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
