"""What the parent and the worker child say to each other: values, and their JSON, one a line.

Requests: ``{"op": "train" | "sample" | "reconstruct", ...fields}``, ``{"op": "cancel"}`` (stop the
running request) and ``{"op": "stop"}``. Answers: any number of ``{"type": "progress", ...event}``, and
``{"type": "check", "step": n}`` where a training waits for ``{"op": "verdict", "passed": bool}``;
then one ``{"type": "done", "result": {...}}`` or ``{"type": "error", "error": class name,
"message": text}``. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Union

from copier import errors
from copier.codec import spec_from_json, spec_to_json
from copier.errors import CopierError, TrainingFailed
from copier.model_options import AS_IT_IS, ModelOptions
from copier.progress import Phase, ProgressEvent
from copier.recipe import ConceptSpec, Precision, TrainingSpec


@dataclass(frozen=True)
class TrainRequest:
    """Train a LoRA on ``pictures`` (files of one or several sizes, all sides multiples of 8), or ``concept``.

    Attributes:
        output: the LoRA file to write; it must not exist.
        captions: texts of the caption files, one a picture, for the caption policy ``files``.
        originals: what the pictures are changes of, in their order, where the target needs them.
        masks: for each picture the file of its mask, in grey, or None: where the loss counts.
        concept: what is trained by text alone; then there are no pictures. Builtin only.
        base: LoRA files and multipliers, merged into the checkpoint in memory, undone afterwards.
        start: a LoRA file to go on from.
        save_every: every so many steps a LoRA is saved on the way (sd-scripts), or ``check`` drawn; 0: never.
        check: what the builtin trainer draws then with the LoRA as it is, before it asks whether to end.
        metadata: written into the LoRA beside kohya's keys, which it overrides.
        save_precision: number format of the written LoRA.
        model: how the checkpoint is used.
        stage: the name that its progress events bear.
    """

    checkpoint: Path
    pictures: tuple[Path, ...]
    output: Path
    training: TrainingSpec
    captions: tuple[str, ...] = ()
    originals: tuple[Path, ...] = ()
    masks: tuple[Path | None, ...] = ()
    concept: ConceptSpec | None = None
    base: tuple[tuple[Path, float], ...] = ()
    start: Path | None = None
    save_every: int = 0
    check: tuple[SampleRequest, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    save_precision: Precision = Precision.FP32
    model: ModelOptions = AS_IT_IS
    stage: str = "train"


@dataclass(frozen=True)
class SampleRequest:
    """Draw one picture for each pair of prompt and seed; written as ``out``/0000.png, 0001.png, ...

    Attributes:
        loras: LoRA files and weights, merged beneath the sampling and undone.
        guidance: one scale for all, or one each; 1 leaves out the unconditional half.
        batch_size: None chooses by the size.
    """

    checkpoint: Path
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    loras: tuple[tuple[Path, float], ...] = ()
    steps: int = 20
    guidance: float | tuple[float, ...] = 7.0
    width: int = 512
    height: int = 512
    negative: str = ""
    batch_size: int | None = None
    model: ModelOptions = AS_IT_IS
    precision: Precision = Precision.FP32
    stage: str = "sample"


@dataclass(frozen=True)
class ReconstructRequest:
    """decode(encode(x)) of pictures, files or float arrays (.npy, (h, w, 3) in [0, 1]).

    Written as ``out``/0000.png, 0001.png, ...; sides must be multiples of 8.
    """

    checkpoint: Path
    pictures: tuple[Path, ...]
    out: Path
    model: ModelOptions = AS_IT_IS
    precision: Precision = Precision.FP32
    stage: str = "reconstruct"


Request = Union[TrainRequest, SampleRequest, ReconstructRequest]  # noqa: UP007

OPERATIONS: Mapping[str, type[Request]] = MappingProxyType(
    {"train": TrainRequest, "sample": SampleRequest, "reconstruct": ReconstructRequest}
)


@dataclass(frozen=True)
class TrainResult:
    """The loss of every step, and the seconds of the whole training without loading.

    ``memory`` is the peak in bytes, of the card or else of the process; None where it was not measured.
    """

    output: Path
    losses: tuple[float, ...]
    seconds: float
    memory: int | None = None


@dataclass(frozen=True)
class PicturesResult:
    """The PNG files that were written, in the order of the request."""

    pictures: tuple[Path, ...]
    seconds: float


def request_to_json(request: Request) -> dict[str, Any]:
    """The request with its ``op``."""
    op = next(name for name, kind in OPERATIONS.items() if type(request) is kind)
    return {"op": op, **_to_json(request)}


def request_from_json(data: Mapping[str, Any]) -> Request:
    """The inverse of ``request_to_json``; raises KeyError or TypeError on anything else."""
    request: Request = _read(OPERATIONS[data["op"]], data)
    return request


def result_to_json(result: TrainResult | PicturesResult) -> dict[str, Any]:
    """The result as JSON values."""
    return _to_json(result)


def train_result(data: Mapping[str, Any]) -> TrainResult:
    """The result of a training from its JSON."""
    return TrainResult(Path(data["output"]), tuple(data["losses"]), data["seconds"], data.get("memory"))


def pictures_result(data: Mapping[str, Any]) -> PicturesResult:
    """The result of sampling or reconstructing from its JSON."""
    return PicturesResult(_paths(data["pictures"]), data["seconds"])


def event_to_json(event: ProgressEvent) -> dict[str, Any]:
    """A progress event as a message."""
    return {"type": "progress", **asdict(event)}


def event_from_json(data: Mapping[str, Any]) -> ProgressEvent:
    """The inverse of ``event_to_json``."""
    names = _names(ProgressEvent, data)
    return ProgressEvent(**{name: _EVENT_READERS.get(name, _same)(data[name]) for name in names})


def check_to_json(step: int) -> dict[str, Any]:
    """A training's question whether to end, as a message."""
    return {"type": "check", "step": step}


def verdict_to_json(*, passed: bool) -> dict[str, Any]:
    """The answer to it."""
    return {"op": "verdict", "passed": passed}


def error_to_json(error: CopierError) -> dict[str, Any]:
    """A failure as a message: class, text, and the simple attributes it has."""
    simple = {
        name: value for name, value in vars(error).items() if isinstance(value, (str, int, list))
    }
    return {
        "type": "error",
        "error": type(error).__name__,
        "message": str(error),
        "attributes": simple,
    }


def error_from_json(data: Mapping[str, Any]) -> CopierError:
    """The failure with the class it had in the child; one that is not ours is TrainingFailed."""
    kind = getattr(errors, str(data.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, CopierError)):
        kind = TrainingFailed
    # Not called: subclasses may build their message from other arguments.
    error = kind.__new__(kind)
    error.args = (str(data.get("message", "")),)
    vars(error).update(data.get("attributes", {}))
    return error


def _to_json(value: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, (TrainingSpec, ConceptSpec)):
        return spec_to_json(value)
    if isinstance(value, (ModelOptions, SampleRequest)):
        return _to_json(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    return value


def _read(kind: Any, data: Mapping[str, Any]) -> Any:
    return kind(**{name: _READERS.get(name, _same)(data[name]) for name in _names(kind, data)})


def _names(kind: Any, data: Mapping[str, Any]) -> list[str]:
    return [field.name for field in fields(kind) if field.name in data]


def _same(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _paths(values: list[str]) -> tuple[Path, ...]:
    return tuple(map(Path, values))


def _weighted(values: list[tuple[str, float]]) -> tuple[tuple[Path, float], ...]:
    return tuple((Path(path), float(weight)) for path, weight in values)


_READERS: Mapping[str, Any] = MappingProxyType(
    {
        "checkpoint": Path,
        "output": Path,
        "out": Path,
        "start": lambda value: None if value is None else Path(value),
        "pictures": _paths,
        "originals": _paths,
        "concept": lambda value: None if value is None else spec_from_json(ConceptSpec, value),
        "check": lambda values: tuple(_read(SampleRequest, value) for value in values),
        "masks": lambda values: tuple(None if value is None else Path(value) for value in values),
        "base": _weighted,
        "loras": _weighted,
        "model": lambda value: spec_from_json(ModelOptions, value),
        "training": lambda value: spec_from_json(TrainingSpec, value),
        "precision": Precision,
        "save_precision": Precision,
    }
)
"""How fields that are no JSON values are read, by their name."""

_EVENT_READERS: Mapping[str, Any] = MappingProxyType({"phase": Phase})
