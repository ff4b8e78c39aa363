"""Doubles for what takes minutes: a checkpoint of a few tensors, LoRAs that fit it, and a worker that
draws and trains nothing, but keeps the protocol.
"""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.checkpoint.header import read_header
from copier.checkpoint.shapes import Sizes, TextSizes, checkpoint_shapes
from copier.checkpoint.writer import write_tensors
from copier.ops.lora_file import network_metadata, write_lora
from copier.progress import ProgressEvent
from copier.training.protocol import PicturesResult, TrainResult

WIDTH = 8
STRENGTH = "doubles.strength"
BLOCK = "lora_unet_mid_block_attentions_0_"
SHAPES = {BLOCK + "proj_in": (WIDTH, WIDTH, 1, 1), BLOCK + "transformer_blocks_0_attn2_to_q": (WIDTH, WIDTH)}


def write_checkpoint(path: Path, **more: torch.Tensor) -> Path:
    """What is a small SD 1.x checkpoint in names and shapes, and takes LoRAs of ``SHAPES``."""
    sizes = Sizes(Family.SD1, (WIDTH,) * 4, (WIDTH,) * 4, (TextSizes(WIDTH, WIDTH, 12),))
    tensors = {key: torch.randn(shape) for key, shape in checkpoint_shapes(sizes).items()}
    write_tensors(path, {**tensors, **more})
    return path


def write_small_lora(path: Path, *, rank: int = 2, seed: int = 0, **metadata: str) -> Path:
    """A LoRA that fits ``write_checkpoint``'s."""
    noise = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, (out, *rest) in SHAPES.items():
        up = torch.randn(out, rank, *([1] * len(rest[1:])), generator=noise)
        deltas[name] = LowRankDelta(up, torch.randn(rank, *rest, generator=noise), float(rank))
    weights = LoraWeights(deltas)
    described = {**network_metadata(weights, name=path.stem, family=Family.SD1), **metadata}
    write_lora(path, weights, described, dtype="fp32")
    return path


def write_picture(path: Path, width: int = 64, height: int = 64, *, seed: int = 0) -> Path:
    """A picture of random coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path


class FakeWorker:
    """Stands for ``BuiltinWorker``: pictures depend on prompt and seed, a LoRA makes them darker.

    ``calls`` lists (operation, stage) of every request to any of them. Set ``on_train`` to do
    something while a training runs.
    """

    calls: list[tuple[str, str]] = []  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012
    on_train: Any = None
    alive = 0

    def __init__(self, **options: Any) -> None:
        type(self).options = options

    def __enter__(self) -> FakeWorker:
        type(self).alive += 1
        return self

    def __exit__(self, *_: object) -> None:
        type(self).alive -= 1

    def train(self, request: Any, *, observer: Any, cancel: Any, on_drawn: Any = None) -> TrainResult:
        type(self).calls.append(("train", request.stage))
        for step in range(1, 4):
            if self.on_train:
                self.on_train(cancel)
            cancel.check()
            observer(ProgressEvent(request.stage, step, 3, loss=1.0 / step, rate=0.01))
        number = zlib.crc32(request.stage.encode()) + request.training.seed
        write_small_lora(request.output, seed=number, **{STRENGTH: str(1 + 37 * number % 97 / 97)})
        return TrainResult(request.output, (1.0, 0.5, 1 / 3), 0.1)

    def sample(self, request: Any, *, observer: Any, cancel: Any) -> PicturesResult:
        type(self).calls.append(("sample", request.stage))
        request.out.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, (prompt, seed) in enumerate(zip(request.prompts, request.seeds, strict=True)):
            if cancel:
                cancel.check()
            noise = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
            blocks = noise.integers(64, 192, (8, 8, 3)).astype(float)
            blocks -= 20 * sum(weight * _strength(path) for path, weight in request.loras)
            picture = Image.fromarray(np.clip(blocks, 0, 255).astype(np.uint8))
            paths.append(request.out / f"{i:04d}.png")
            picture.resize((request.width, request.height), Image.Resampling.NEAREST).save(paths[-1])
            observer(ProgressEvent(request.stage, i + 1, len(request.prompts)))
        return PicturesResult(tuple(paths), 0.1)

    def reconstruct(self, request: Any, *, observer: Any, cancel: Any) -> PicturesResult:
        type(self).calls.append(("reconstruct", request.stage))
        request.out.mkdir(parents=True, exist_ok=True)
        paths = []
        for i, path in enumerate(request.pictures):
            array = np.load(path)
            paths.append(request.out / f"{i:04d}.png")
            Image.fromarray((np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8)).save(paths[-1])
        return PicturesResult(tuple(paths), 0.1)


def _strength(lora: Path) -> float:
    """How much a LoRA darkens: 1, or what stage and seed make of it for one that was trained."""
    return float(read_header(lora).metadata.get(STRENGTH, 1.0))


def short_recipe() -> dict[str, Any]:
    """A recipe of the usual shape with little to draw, as JSON."""
    training = {"steps": 3, "resolution": 0, "rank": 2, "alpha": 2, "optimiser": "adamw"}
    prompts = ["one", "two"]
    return {
        "format": "copier-recipe",
        "version": 1,
        "name": "short",
        "title": "Short",
        "trainer": "builtin",
        "stages": [
            {"kind": "train", "name": "copier", "pictures": "a", "training": training},
            {"kind": "gate", "name": "gate", "lora": "copier", "prompts": prompts, "seeds": [1, 2]},
            {
                "kind": "train",
                "name": "lora",
                "pictures": "b",
                "base": [{"lora": "copier"}],
                "training": training,
            },
            {
                "kind": "evaluate",
                "name": "evaluate",
                "lora": "lora",
                "prompts": prompts,
                "seeds": [1, 2],
                "weights": [-1, 1],
            },
        ],
        "result": "lora",
    }


def write_recipe(path: Path) -> Path:
    """``short_recipe`` as a file."""
    path.write_text(json.dumps(short_recipe()), encoding="utf-8")
    return path


def until_cancelled(cancel: Any, seconds: float = 20.0) -> None:
    """Wait for ``cancel``, as a step of a training would that takes long."""
    limit = time.monotonic() + seconds
    while not cancel.cancelled:
        assert time.monotonic() < limit, "nobody cancelled"
        time.sleep(0.01)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file beneath ``folder`` with its content, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"<folder>"
        for path in sorted(folder.rglob("*"))
    }
