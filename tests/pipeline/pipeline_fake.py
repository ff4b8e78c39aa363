"""A worker that draws synthetic pictures and writes small LoRA files: quick, and always the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from copier.algebra.delta import LowRankDelta
from copier.algebra.lora import LoraWeights
from copier.checkpoint.family import Family
from copier.codec import spec_to_json
from copier.digest import DigestMemory, file_digest
from copier.images.effects import to_image
from copier.ops.lora_file import network_metadata, read_lora, write_lora
from copier.pipeline import results
from copier.pipeline.files import load_picture
from copier.pipeline.plan import Plan, plan
from copier.pipeline.runner import FinishedRun, run
from copier.pipeline.store import StageStore
from copier.pocket.scenes import random_scene, render
from copier.progress import CancelToken, Observer, ProgressEvent, ignore
from copier.recipe import (
    PAIR,
    BaseLora,
    CombineStage,
    DifferenceStage,
    EvaluateStage,
    FileStage,
    GateStage,
    Optimiser,
    PictureSet,
    RankPolicy,
    Recipe,
    ResizeStage,
    TrainingSpec,
    TrainStage,
    WeightedLora,
    with_control,
)
from copier.request import Edit, Generated, RunRequest, Source
from copier.training.protocol import (
    PicturesResult,
    ReconstructRequest,
    SampleRequest,
    TrainRequest,
    TrainResult,
)

MODULES = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_mid_block_attentions_0_proj_in",
)
WIDTH = 12
SIDE = 64
PROMPTS = ("a red star on white background", "a blue ring on pink background", "a green heart")
TRAINING = TrainingSpec(steps=4, rank=4, alpha=2.0, resolution=0, optimiser=Optimiser.ADAMW)


def random_lora(seed: int, rank: int, alpha: float = 2.0) -> LoraWeights:
    """Two modules of random factors."""
    source = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    return LoraWeights(
        {name: LowRankDelta(factor(WIDTH, rank), factor(rank, WIDTH), alpha) for name in MODULES}
    )


def _seed(*parts: Any) -> int:
    return int(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12], 16)


@dataclass
class FakeWorker:
    """Stands for the worker child. ``calls`` are the operations done, ``op stage``, in order.

    ``log`` is a file that keeps them too; ``fail`` is called with each of them before it is done.
    """

    log: Path | None = None
    fail: Callable[[str], None] = lambda call: None
    calls: list[str] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    def _called(self, op: str, request: Any) -> None:
        call = f"{op} {request.stage}"
        self.fail(call)
        self.calls.append(call)
        self.requests.append(request)
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(call + "\n")

    def train(
        self,
        request: TrainRequest,
        *,
        observer: Observer,
        cancel: CancelToken,
        on_saved: Any = None,
        on_drawn: Any = None,
    ) -> TrainResult:
        self._called("train", request)
        losses = []
        for step in range(request.training.steps):
            cancel.check()
            losses.append(1.0 / (step + 1))
            observer(ProgressEvent(request.stage, step + 1, request.training.steps, loss=losses[-1]))
            if request.check and (step + 1) % request.save_every == 0:
                for check in request.check:
                    self.sample(check, observer=observer, cancel=cancel)
                if on_drawn(step + 1):
                    break
        base = [(file_digest(path), weight) for path, weight in request.base]
        start = None if request.start is None else file_digest(request.start)
        pictures = [file_digest(path) for path in request.pictures]
        seed = _seed(pictures, spec_to_json(request.training), base, start, list(request.captions))
        weights = random_lora(seed, request.training.rank, request.training.alpha)
        metadata = network_metadata(weights, name=request.output.stem, family=Family.SD1)
        write_lora(request.output, weights, metadata, dtype="fp32")
        return TrainResult(request.output, tuple(losses), seconds=0.5)

    def sample(self, request: SampleRequest, *, observer: Observer, cancel: CancelToken) -> PicturesResult:
        self._called("sample", request)
        push = sum(weight * _push(path) for path, weight in request.loras)
        shift = np.tanh(push)
        side = max(request.width, request.height)
        pictures = []
        for prompt, seed in zip(request.prompts, request.seeds, strict=True):
            cancel.check()
            rng = np.random.default_rng(_seed(prompt, seed))
            plain = render(random_scene(rng, styles=0.0), side)[: request.height, : request.width]
            pictures.append(plain + shift * (plain.mean(axis=-1, keepdims=True) - plain))
            observer(ProgressEvent(request.stage, len(pictures), len(request.prompts)))
        return PicturesResult(_written(request.out, pictures), seconds=0.1)

    def reconstruct(
        self, request: ReconstructRequest, *, observer: Observer, cancel: CancelToken
    ) -> PicturesResult:
        self._called("reconstruct", request)
        pictures = []
        for path in request.pictures:
            cancel.check()
            picture = np.load(path) if path.suffix == ".npy" else load_picture(path)
            pictures.append(0.9 * picture + 0.05)
            observer(ProgressEvent(request.stage, len(pictures), len(request.pictures)))
        return PicturesResult(_written(request.out, pictures), seconds=0.1)


def _push(path: Path) -> float:
    return float(sum(delta.dense().mean() for delta in read_lora(path).weights.values()))


def _written(folder: Path, pictures: Sequence[np.ndarray]) -> tuple[Path, ...]:
    folder.mkdir(parents=True)
    paths = tuple(folder / f"{i:04d}.png" for i in range(len(pictures)))
    for path, picture in zip(paths, pictures, strict=True):
        to_image(picture).save(path)
    return paths


def every_kind(training: TrainingSpec = TRAINING) -> Recipe:
    """A small recipe, with its control, in which every kind of stage of the built-in recipes occurs."""
    on_copier = (BaseLora("copier", 1.0),)
    common = {"prompts": PROMPTS, "sampling_steps": 2}
    recipe = Recipe(
        name="every-kind",
        title="Every kind of stage",
        explanation="For tests.",
        stages=(
            TrainStage("copier", "a", training=training),
            GateStage("gate", "copier", seeds=(11, 12), **common),
            TrainStage("wide", "b", base=on_copier, training=training),
            GateStage("second", "wide", pictures="b", base=on_copier, seeds=(11,), **common),
            DifferenceStage("sum", "wide", "copier", 1.0, -0.5, RankPolicy(rank=6)),
            ResizeStage("lora", "sum", RankPolicy(rank=3)),
            EvaluateStage("evaluate", "lora", seeds=(21, 22), weights=(-1.0, 1.0), **common),
        ),
        result="lora",
    )
    return with_control(recipe)


def every_kind_there_is() -> Recipe:
    """``every_kind``, and a sum with a LoRA that a file brings."""
    recipe = every_kind()
    terms = (WeightedLora("lora", 1.0), WeightedLora("look", 0.25))
    more = (FileStage("look"), CombineStage("mixture", terms, RankPolicy(rank=4)))
    parts = (
        PictureSet("a-views", part_of="a", views=2),
        PictureSet("b-views", "a-views", part_of="b", views=2),
    )
    return replace(recipe, stages=(*recipe.stages, *more), pictures=(*PAIR, *parts), result="mixture")


def given(request: RunRequest, **pictures: Source) -> RunRequest:
    """``request`` with other pictures."""
    return replace(request, pictures={**request.pictures, **pictures})


def make_request(folder: Path, **changes: Any) -> RunRequest:
    """A request for ``every_kind`` on a generated original, with a "checkpoint" in ``folder``.

    ``a`` and ``b`` change its pictures, the others its fields.
    """
    pictures = {"a": Generated("an orange cross", seed=5, steps=2, size=SIDE), "b": Edit("grayscale")}
    pictures |= {name: changes.pop(name) for name in ("a", "b") if name in changes}
    recipe = changes.setdefault("recipe", every_kind())
    loras = {name: folder / f"{name}.safetensors" for name in recipe.files}
    for seed, path in enumerate(loras.values()):
        if not path.exists():
            weights = random_lora(seed, 2)
            described = network_metadata(weights, name=path.stem, family=Family.SD1)
            write_lora(path, weights, described, dtype="fp32")
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        checkpoint.write_bytes(b"weights")
    request = RunRequest(
        recipe=recipe,
        checkpoint=checkpoint,
        pictures=pictures,
        loras=loras,
        out=folder / "out",
    )
    return replace(request, **changes)


def make_plan(request: RunRequest) -> Plan:
    """The plan, with digests that nobody remembers."""
    return plan(request, file_digest)


def execute(
    request: RunRequest,
    data: Path,
    worker: FakeWorker,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> FinishedRun:
    """Plan and run ``request`` with the store in ``data``; nothing is published."""
    data.mkdir(parents=True, exist_ok=True)
    store = StageStore(data / "stages")
    store.remove_leftovers()
    planned = plan(request, DigestMemory(data / "digests").digest)
    return run(request, planned, store, lambda: worker, worker.train, observer, cancel or CancelToken())


def execute_and_publish(request: RunRequest, data: Path, worker: FakeWorker) -> Mapping[str, Path]:
    """As the program does it: run, publish, report."""
    results.check_folder(request.out)
    results.prepare_folder(request.out)
    done = execute(request, data, worker)
    published = results.publish_run(done)
    results.report([done], [published])
    return published


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` by its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
