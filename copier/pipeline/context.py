"""What a stage may use while it runs: the request, finished stages, and the children that train and draw."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from copier.images.effects import Picture
from copier.images.sizes import by_size, shared_out
from copier.pipeline.files import IDEAL, LORA, load_set, picture_sizes
from copier.pipeline.plan import Draws, Plan, PlannedStage, drawing_precision
from copier.pipeline.store import Entry
from copier.progress import CancelToken, Observer
from copier.request import RunRequest
from copier.training.client import Drawn
from copier.training.protocol import (
    PicturesResult,
    ReconstructRequest,
    SampleRequest,
    TrainRequest,
    TrainResult,
)
from copier.training.sd_scripts import SavedSeen


class Train(Protocol):
    """Trains a LoRA: the builtin worker child, sd-scripts, or what stands for them.

    sd-scripts asks ``on_saved`` whether to end, the builtin trainer ``on_drawn``.
    """

    def __call__(
        self,
        request: TrainRequest,
        *,
        observer: Observer,
        cancel: CancelToken,
        on_saved: SavedSeen | None = None,
        on_drawn: Drawn | None = None,
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

    def pictures(self, role: str) -> list[Picture]:
        """The set of pictures needed in that role."""
        return load_set(self.needed(role))

    def sample(self, request: SampleRequest) -> PicturesResult:
        """Let the worker draw."""
        return self.worker().sample(request, observer=self.observer, cancel=self.cancel)


SizedRequest = tuple[SampleRequest, list[int]]
"""A request for pictures of one size, and the places that they have among those of all sizes."""


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


def draw_pictures(context: Context, draws: Draws, out: Path, loras: Sequence[tuple[Path, float]]) -> None:
    """Draw the pictures of ``draws`` with these LoRAs into a new folder ``out``, in the sizes of ``like``."""
    requests = draw_requests(context, draws, out, loras)
    out.mkdir(parents=True)
    for request, _ in requests:
        context.sample(request)
    gather(requests, out)


def draw_requests(
    context: Context, draws: Draws, out: Path, loras: Sequence[tuple[Path, float]]
) -> list[SizedRequest]:
    """What draws the pictures of ``draws`` with these LoRAs, into folders in ``out``.

    Of several sizes each is drawn as often (``shared_out``), by a request of its own.
    """
    sizes = shared_out(picture_sizes(context.done[draws.like]), len(draws.prompts))
    return [
        (
            SampleRequest(
                checkpoint=context.request.checkpoint,
                prompts=tuple(draws.prompts[place] for place in places),
                seeds=tuple(draws.seeds[place] for place in places),
                out=out / f"{size[0]}x{size[1]}",
                loras=tuple(loras),
                steps=draws.steps,
                guidance=tuple(draws.guidance[place] for place in places),
                width=size[0],
                height=size[1],
                model=context.request.model,
                precision=drawing_precision(context.request.recipe),
                stage=context.stage.name,
            ),
            places,
        )
        for size, places in by_size(sizes).items()
    ]


def gather(requests: Sequence[SizedRequest], out: Path) -> None:
    """Put what was drawn for the requests into the folder ``out``, each picture at its place."""
    for request, places in requests:
        for place, path in zip(places, sorted(request.out.glob("*.png")), strict=True):
            path.rename(out / f"{place:04d}.png")
        shutil.rmtree(request.out)
