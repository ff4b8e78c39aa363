"""What a stage may use while it runs: the request, finished stages, and the children that train and draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from copier.images.effects import Picture
from copier.pipeline.files import IDEAL, LORA, load_set, picture_paths
from copier.pipeline.plan import Draws, Plan, PlannedStage, drawing_precision
from copier.pipeline.store import Entry
from copier.progress import CancelToken, Observer
from copier.request import RunRequest
from copier.training.protocol import (
    PicturesResult,
    ReconstructRequest,
    SampleRequest,
    TrainRequest,
    TrainResult,
)
from copier.training.sd_scripts import SavedSeen


class Train(Protocol):
    """Trains a LoRA: the builtin worker child, sd-scripts, or what stands for them."""

    def __call__(
        self,
        request: TrainRequest,
        *,
        observer: Observer,
        cancel: CancelToken,
        on_saved: SavedSeen | None = None,
    ) -> TrainResult: ...


class Worker(Protocol):
    """Draws: the builtin worker child, or what stands for it."""

    def sample(
        self, request: SampleRequest, *, observer: Observer, cancel: CancelToken
    ) -> PicturesResult: ...

    def reconstruct(
        self, request: ReconstructRequest, *, observer: Observer, cancel: CancelToken
    ) -> PicturesResult: ...


@dataclass(frozen=True)
class Context:
    """What a stage may use. ``done`` holds the finished stages by name; ``worker`` starts on demand."""

    request: RunRequest
    plan: Plan
    stage: PlannedStage
    folder: Path
    done: Mapping[str, Entry]
    worker: Callable[[], Worker]
    trainer: Train
    observer: Observer
    cancel: CancelToken

    def needed(self, role: str) -> Entry:
        """The finished stage that this one needs in that role."""
        return self.done[self.stage.needs[role]]

    def lora(self, role: str) -> Path:
        """The LoRA file of the stage needed in that role."""
        return self.needed(role).path(LORA)

    @property
    def masked(self) -> bool:
        """Whether this set's pictures are kept with their masks."""
        return bool(self.stage.ingredients.get("masks"))

    def pictures(self, role: str) -> Picture:
        """The set of pictures needed in that role, (n, height, width, 3) in [0, 1]."""
        return load_set(self.needed(role))

    def sample(self, request: SampleRequest) -> PicturesResult:
        """Let the worker draw."""
        return self.worker().sample(request, observer=self.observer, cancel=self.cancel)


def reconstruct(context: Context, pictures: list[Picture]) -> None:
    """decode(encode(x)) of each picture into the stage's folder ``IDEAL``."""
    inputs = context.folder / "inputs"
    inputs.mkdir()
    paths = tuple(inputs / f"{i:04d}.npy" for i in range(len(pictures)))
    for path, picture in zip(paths, pictures, strict=True):
        np.save(path, picture.astype(np.float32))
    context.worker().reconstruct(
        ReconstructRequest(
            checkpoint=context.request.checkpoint,
            pictures=paths,
            out=context.folder / IDEAL,
            model=context.request.model,
            precision=drawing_precision(context.request.recipe),
            stage=context.stage.name,
        ),
        observer=context.observer,
        cancel=context.cancel,
    )
    shutil.rmtree(inputs)


def draw_request(
    context: Context, draws: Draws, out: Path, loras: Sequence[tuple[Path, float]]
) -> SampleRequest:
    """The request for the pictures of ``draws`` with these LoRAs, in the size of ``draws.like``."""
    with Image.open(picture_paths(context.done[draws.like])[0]) as like:
        width, height = like.size
    return SampleRequest(
        checkpoint=context.request.checkpoint,
        prompts=draws.prompts,
        seeds=draws.seeds,
        out=out,
        loras=tuple(loras),
        steps=draws.steps,
        guidance=draws.guidance,
        width=width,
        height=height,
        model=context.request.model,
        precision=drawing_precision(context.request.recipe),
        stage=context.stage.name,
    )
