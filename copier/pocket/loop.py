"""The training loop that every stage of the pocket checkpoint shares: seeded, resumable, with a log."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from copier.digest import file_digest
from copier.temporary import replace_file

SAVE_EVERY = 250
BFLOAT16 = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
"""Whether this CPU multiplies bfloat16 in tiles: it is several times faster there, and slower elsewhere."""


def half_precision() -> torch.autocast:
    """bfloat16 for the autoencoder where the CPU is fast at it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16)


def fast_layout(value: Any) -> Any:
    """A module or a batch (n, c, h, w) in the memory layout that suits ``half_precision``."""
    layout = torch.channels_last if BFLOAT16 else torch.contiguous_format
    return value.to(memory_format=layout)


class Log:
    """Appends one JSON object a line to ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` whole or not at all."""
    content = io.BytesIO()
    torch.save(state, content)
    replace_file(path, content.getvalue())


def cosine(step: int, steps: int, *, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then a cosine down to ``floor`` times ``peak``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def run(
    name: str,
    work: Path,
    *,
    steps: int,
    peak: float,
    parameters: list[torch.nn.Parameter],
    state_of: Callable[[], dict[str, Any]],
    load: Callable[[dict[str, Any]], None],
    loss_at: Callable[[int], torch.Tensor],
    after: Callable[[int], dict[str, Any]] | None = None,
    weight_decay: float = 1e-4,
    seed: int = 0,
    inputs: Sequence[str] = (),
) -> None:
    """The training loop of every stage: AdamW, cosine, clipped gradients, saved and resumable.

    ``inputs`` are names of files in ``work`` that the stage stands on.

    Raises:
        ValueError: the state that is there came from another seed or from other inputs.
    """
    log = Log(work / "train.log.jsonl")
    path = work / f"{name}.pt"
    optimiser = torch.optim.AdamW(
        parameters, lr=peak, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    first = 0
    origin = origin_of(work, seed, inputs)
    if path.exists():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        check_origin(path, saved, origin)
        load(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    total, count, since = 0.0, 0, time.monotonic()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = cosine(step, steps, peak=peak)
        optimiser.zero_grad(set_to_none=True)
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        total, count, done = total + loss.item(), count + 1, step + 1
        extra = after(done) if after else {}
        if done % 50 == 0 or done == steps:
            seconds = time.monotonic() - since
            log.write(stage=name, step=done, loss=round(total / count, 5), seconds=round(seconds, 1), **extra)
            total, count, since = 0.0, 0, time.monotonic()
        if done % SAVE_EVERY == 0 or done == steps:
            state = {"model": state_of(), "optimiser": optimiser.state_dict(), "step": done}
            save(path, {**state, "origin": origin})


def origin_of(work: Path, seed: int, inputs: Sequence[str]) -> dict[str, Any]:
    """What a state was made from: the seed, and the SHA-256 of the files in ``work`` that it stands on."""
    return {"seed": seed, **{name: file_digest(work / name) for name in inputs}}


def check_origin(path: Path, saved: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Raise ValueError unless the state ``saved``, from ``path``, has that seed and those files' digests."""
    if saved.get("origin") != origin:
        raise ValueError(f"{path} was made with another seed or from other files: remove it first")
