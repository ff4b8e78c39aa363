"""Services around pictures: draw from prompts, apply an edit, measure a LoRA that exists."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.app.checks import check_device, check_output
from copier.app.crew import Crew
from copier.app.service import check_checkpoint, check_folders, check_lora
from copier.app.settings import Settings
from copier.checkpoint.family import Family, detect
from copier.checkpoint.header import Header
from copier.checkpoint.prediction import parameterisation
from copier.checkpoint.structure import STRUCTURES
from copier.errors import BadInput
from copier.fields import GUIDANCE, LARGEST_SIDE, SAMPLING_STEPS, SEED, check_number
from copier.images.effects import apply_effect, effect_parameters
from copier.images.pairs import difference_map, read_picture
from copier.model_options import AS_IT_IS, ModelOptions
from copier.ops.report import check_weights, refuse_own_input
from copier.pipeline.plan import SMALLEST_SIDE
from copier.pipeline.results import prepare_folder, publish
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer, ignore
from copier.recipe import Precision
from copier.temporary import replace_file
from copier.training.protocol import SampleRequest

SD2_VELOCITY_SIDE = 768
"""What SD 2.x for velocity was trained at, in pixels."""
MOST_PICTURES = 10_000
_USUAL_WIDTH = 320
"""Channels of every family's first convolution; a narrower network is a small model, for small pictures."""
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"


@dataclass(frozen=True)
class DrawRequest:
    """Every prompt with every seed. ``width`` and ``height`` 0: what the checkpoint is used to."""

    checkpoint: Path
    prompts: tuple[str, ...]
    seeds: Sequence[int]
    out: Path
    loras: tuple[tuple[Path, float], ...] = ()
    negative: str = ""
    steps: int = 20
    guidance: float = 7.0
    width: int = 0
    height: int = 0
    device: str = "auto"
    threads: int | None = None
    model: ModelOptions = AS_IT_IS

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if value % 64 or not 0 <= value <= LARGEST_SIDE:
                raise BadInput(
                    f"the {name} is {value} px: it must be a multiple of 64, as 128 or 512 are, and at most "
                    f"{LARGEST_SIDE}"
                )
        if not self.prompts or not self.seeds:
            raise BadInput("there is nothing to draw: give a prompt and a seed")
        count = len(self.prompts) * len(self.seeds)
        if count > MOST_PICTURES:
            raise BadInput(f"the number of pictures is {count}: the largest allowed value is {MOST_PICTURES}")
        check_number("the number of sampling steps", self.steps, SAMPLING_STEPS)
        check_number("the guidance", self.guidance, GUIDANCE)
        check_number("the first seed", min(self.seeds), SEED)
        check_number("the last seed", max(self.seeds), SEED)


@dataclass(frozen=True)
class Drawn:
    """One picture that was drawn."""

    path: Path
    prompt: str
    seed: int


def usual_side(checkpoint: Header, options: ModelOptions = AS_IT_IS) -> int:
    """Side of the pictures that the checkpoint is used to, in pixels.

    Of SD 2.x those that predict velocity were trained on larger pictures (Stability AI's model cards).
    """
    first = checkpoint.tensors.get(_FIRST_CONVOLUTION)
    if first is not None and first.shape[0] < _USUAL_WIDTH:
        return SMALLEST_SIDE
    family = detect(checkpoint).family
    if family is Family.SD2 and parameterisation(checkpoint, options).velocity:
        return SD2_VELOCITY_SIDE
    return STRUCTURES[family].side


def usual_precision(checkpoint: Header) -> Precision:
    """The number format that pictures are drawn in where no recipe says one: half of it for SDXL's size."""
    large = detect(checkpoint).family is Family.SDXL and usual_side(checkpoint) != SMALLEST_SIDE
    return Precision.FP16 if large else Precision.FP32


def check_loras(loras: Sequence[tuple[Path, float]], checkpoint: Header) -> None:
    """Raise ``BadInput`` unless every LoRA fits the checkpoint, at a weight that can be added."""
    check_weights(loras)
    for path, _ in loras:
        check_lora(path, checkpoint)


def draw(
    request: DrawRequest,
    settings: Settings,
    *,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    crew: Crew | None = None,
) -> tuple[Drawn, ...]:
    """Draw the pictures of ``request`` into its folder; never over another file.

    ``crew``: the one whose worker draws, and is there afterwards; None: a new one for this call.

    Raises:
        BadInput and its kin: before anything is drawn or written.
        TrainingFailed, Cancelled: nothing was written.
    """
    header = check_checkpoint(request.checkpoint, options=request.model)
    check_loras(request.loras, header)
    check_device(request.device)
    check_folders(request.out, settings, report=False)
    side = usual_side(header, request.model)
    pairs = [(prompt, seed) for prompt in request.prompts for seed in request.seeds]
    with StageStore(settings.stages).scratch("generate") as folder:
        with contextlib.ExitStack() as stack:
            if crew is None:
                crew = stack.enter_context(Crew(settings, device=request.device, threads=request.threads))
            result = crew.worker().sample(
                SampleRequest(
                    checkpoint=request.checkpoint,
                    prompts=tuple(prompt for prompt, _ in pairs),
                    seeds=tuple(seed for _, seed in pairs),
                    out=folder,
                    loras=request.loras,
                    steps=request.steps,
                    guidance=request.guidance,
                    width=request.width or side,
                    height=request.height or side,
                    negative=request.negative,
                    model=request.model,
                    precision=usual_precision(header),
                    stage="generate",
                ),
                observer=observer,
                cancel=cancel,
            )
        prepare_folder(request.out)
        drawn = []
        for (prompt, seed), picture in zip(pairs, result.pictures, strict=True):
            name = picture_stem(prompt, seed, request.loras)
            drawn.append(Drawn(publish(picture, request.out / f"{name}.png"), prompt, seed))
    return tuple(drawn)


def picture_stem(prompt: str, seed: int, loras: Sequence[tuple[Path, float]]) -> str:
    """File name, without ending, of a picture: what it was drawn from, shortened."""
    with_loras = [f"{path.stem}{weight:+g}" for path, weight in loras]
    parts = [prompt[:60] or "empty", f"seed{seed}", *with_loras]
    return "-".join(re.sub(r"[^A-Za-z0-9+._-]+", "-", part).strip("-.") for part in parts)[:180]


def edit_picture(
    name: str, source: Path, out: Path, values: Mapping[str, float], *, overwrite: bool = False
) -> dict[str, Any]:
    """Write the picture ``source`` with the edit ``name`` to ``out``, a PNG file; what changed, as JSON.

    Raises:
        UnknownName, BadPicture, BadInput: the edit, a value, the picture or ``out`` cannot be used;
            nothing is written.
    """
    parameters = effect_parameters(name, values)
    if out.suffix.lower() != ".png":
        raise BadInput(f"{out} is no .png file: B must be saved without loss, so give a name ending in .png")
    check_output(out, overwrite=overwrite)
    refuse_own_input(out, [source])
    before = read_picture(source)
    after = apply_effect(before, name, parameters)
    found = difference_map(before, after)
    content = io.BytesIO()
    after.save(content, format="PNG")
    replace_file(out, content.getvalue())
    return {
        "edit": name,
        "parameters": parameters,
        "input": str(source),
        "output": str(out),
        "width": after.width,
        "height": after.height,
        "changed": round(found.changed, 6),
        "mean": round(found.mean, 6),
        "warnings": list(found.warnings),
    }
