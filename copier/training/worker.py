"""The worker child: ``python -m copier.training.worker``; trains and samples for its parent.

It reads requests from standard input and answers on standard output, one JSON object a line
(``copier.training.protocol``); whatever else prints goes to standard error. The checkpoint is loaded
once and kept. It ends when its input ends, so also when the parent dies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed
from copier.progress import CancelToken, Observer, ProgressEvent, ignore
from copier.recipe import Precision
from copier.training import protocol

if TYPE_CHECKING:
    # torch takes seconds to import; until then the child must already hear its parent.
    from copier.diffusion.model import DiffusionModel
    from copier.diffusion.pictures import Array
    from copier.images.sizes import Size
    from copier.training import builtin

log = logging.getLogger(__name__)

EVENT_SECONDS = 0.2
"""Progress events come at most this often; those with a message and the last one always."""
POLL_SECONDS = 0.1
ORPHAN_SECONDS = 30.0
"""Time that a running request has to stop after the parent is gone."""


class Outbox:
    """The real standard output, for messages alone; ``sys.stdout`` is standard error from now on."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._next_event = 0.0

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; a parent that is gone is noticed at the input."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._stream.write(json.dumps(message) + "\n")
            self._stream.flush()

    def observe(self, event: ProgressEvent) -> None:
        """Send a progress event, unless the last one was just now."""
        now = time.monotonic()
        if now >= self._next_event or event.message or event.step == event.steps:
            self._next_event = now + EVENT_SECONDS
            self.send(protocol.event_to_json(event))


@dataclass
class Inbox:
    """The requests, read by a thread of its own so that "cancel" is heard during one."""

    requests: queue.SimpleQueue[tuple[dict[str, Any], CancelToken] | None] = field(
        default_factory=queue.SimpleQueue
    )
    token: CancelToken = field(default_factory=CancelToken)
    verdicts: queue.SimpleQueue[bool] = field(default_factory=queue.SimpleQueue)

    def read(self) -> None:
        """Read until the input ends; then stop what runs, and the process."""
        for line in sys.stdin:
            message = _parsed(line)
            if message is None:
                continue
            if message.get("op") == "cancel":
                self.token.cancel()
            elif message.get("op") == "verdict":
                self.verdicts.put(message.get("passed") is True)
            elif message.get("op") == "stop":
                break
            else:
                # A verdict on a training that was stopped meanwhile concerns no other.
                self.token, self.verdicts = CancelToken(), queue.SimpleQueue()
                self.requests.put((message, self.token))
        self.finish()
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)  # outputs are whole or absent: nothing is lost that way

    def verdict(self, cancel: CancelToken) -> bool:
        """What the parent says of a check, as soon as it does. Raises ``Cancelled``."""
        while True:
            cancel.check()
            with contextlib.suppress(queue.Empty):
                return self.verdicts.get(timeout=POLL_SECONDS)

    def finish(self, *_: object) -> None:
        """Stop the running request and then the process; also the handler of signals."""
        self.token.cancel()
        self.requests.put(None)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], CancelToken]]:
        while (item := self.requests.get()) is not None:
            yield item


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if isinstance(message, dict):
        return message
    if line.strip():
        log.error("not a request: %s", line.strip()[:200])
    return None


@dataclass
class Engine:
    """Carries out requests, with the checkpoint of the last one still in memory."""

    device: str
    threads: int
    tokenizer_folder: Path | None
    observer: Observer
    ask: Callable[[int, CancelToken], bool]
    """Tells the parent what a check drew after so many steps, and waits for its verdict."""
    _prepared: bool = False
    _key: tuple[object, ...] | None = None
    _model: DiffusionModel | None = None

    def run(self, request: protocol.Request, cancel: CancelToken) -> dict[str, Any]:
        """The result of the request as JSON; raises ``CopierError``."""
        self._prepare()
        cancel.check()
        if isinstance(request, protocol.TrainRequest):
            return protocol.result_to_json(self._train(request, cancel))
        if isinstance(request, protocol.SampleRequest):
            return protocol.result_to_json(self._sample(request, cancel))
        return protocol.result_to_json(self._reconstruct(request, cancel))

    def _prepare(self) -> None:
        """What needs torch, once, and when a failure has somewhere to go."""
        if self._prepared:
            return
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        self.device = _device(self.device)
        self._prepared = True

    def forget(self) -> None:
        """Drop the checkpoint: after a failure nobody knows what state it is in."""
        self._key = self._model = None

    def _train(self, request: protocol.TrainRequest, cancel: CancelToken) -> protocol.TrainResult:
        import torch

        from copier.images.sizes import size_of
        from copier.training import builtin

        pictures = None if request.concept else _read_pictures(request.pictures)
        model = self._loaded(request, request.training.precision)
        job = builtin.TrainingJob(
            output=request.output,
            captions=request.captions,
            originals=_read_pictures(request.originals) if request.originals else None,
            masks=None if pictures is None else _read_masks(request.masks, [*map(size_of, pictures)]),
            concept=request.concept,
            check=self._check(request, model, cancel),
            base=request.base,
            start=request.start,
            metadata=request.metadata,
            precision=request.save_precision,
            clip_skip=request.model.clip_skip,
            stage=request.stage,
        )
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        done = builtin.train(
            model, request.training, pictures, job, observer=self.observer, cancel=cancel
        )
        return protocol.TrainResult(request.output, done.losses, done.seconds, _peak_memory(self.device))

    def _check(
        self, request: protocol.TrainRequest, model: DiffusionModel, cancel: CancelToken
    ) -> builtin.Check | None:
        """Draws with the model as it is in the midst of the training, and asks the parent."""
        from copier.training import builtin

        if not (request.check and request.save_every):
            return None

        def passed(step: int) -> bool:
            for drawn in request.check:
                started = time.monotonic()
                _written(self._drawn(drawn, model, cancel, observer=ignore), drawn.out, started)
            return self.ask(step, cancel)

        return builtin.Check(request.save_every, passed)

    def _sample(
        self, request: protocol.SampleRequest, cancel: CancelToken
    ) -> protocol.PicturesResult:
        from copier.ops.lora_file import read_lora
        from copier.ops.merge_modules import merge_into_modules

        loras = [(read_lora(path).weights, weight) for path, weight in request.loras]
        model = self._loaded(request, request.precision)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            for lora, weight in loras:
                stack.enter_context(merge_into_modules(model.weight_of, lora, weight))
            pictures = self._drawn(request, model, cancel, observer=self.observer)
        return _written(pictures, request.out, started)

    def _drawn(
        self,
        request: protocol.SampleRequest,
        model: DiffusionModel,
        cancel: CancelToken,
        *,
        observer: Observer,
    ) -> Array:
        from copier.diffusion.sample import sample

        return sample(
            model,
            request.prompts,
            request.seeds,
            negative=request.negative,
            steps=request.steps,
            guidance=request.guidance,
            width=request.width,
            height=request.height,
            clip_skip=request.model.clip_skip,
            batch_size=request.batch_size,
            observer=observer,
            cancel=cancel,
            stage=request.stage,
        )

    def _reconstruct(
        self, request: protocol.ReconstructRequest, cancel: CancelToken
    ) -> protocol.PicturesResult:
        from copier.diffusion.pictures import reconstruct
        from copier.images.sizes import in_stacks

        pictures = _read_pictures(request.pictures)
        model = self._loaded(request, request.precision)
        started = time.monotonic()
        drawn: list[Array] = in_stacks(pictures, lambda stack: reconstruct(model, stack, cancel=cancel))
        return _written(drawn, request.out, started)

    def _loaded(self, request: protocol.Request, precision: Precision) -> DiffusionModel:
        """The checkpoint, from memory where files, options and precision are those of the last request."""
        import torch

        from copier.checkpoint.dtypes import chosen_dtype
        from copier.diffusion.load import load_checkpoint

        path, options = request.checkpoint, request.model
        dtype = chosen_dtype(precision.value)
        if self.device == "cpu" and dtype is torch.float16:
            dtype = torch.float32
            note = "fp16 is for CUDA: on the CPU the weights are fp32"
            self.observer(ProgressEvent(request.stage, message=note))
        key: tuple[object, ...] | None = None
        with contextlib.suppress(OSError):
            files = [path] if options.vae is None else [path, options.vae]
            # Clip skip takes no part in loading.
            key = (*map(_file_key, files), replace(options, clip_skip=1), dtype)
        if self._model is None or key is None or key != self._key:
            self.forget()
            self.observer(ProgressEvent(request.stage, message=f"loading {path.name}"))
            self._model = load_checkpoint(
                path, options, device=self.device, dtype=dtype, tokenizer_folder=self.tokenizer_folder
            )
            self._key = key
        return self._model


def _peak_memory(device: str) -> int | None:
    """Bytes: what torch reserved on the card for the training, at most; else what the whole process took."""
    import torch

    if device == "cuda":
        return int(torch.cuda.max_memory_reserved())
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _file_key(path: Path) -> tuple[object, ...]:
    """What tells a file from another, and from itself once it has changed. Raises OSError."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _read_pictures(paths: Sequence[Path]) -> list[Array]:
    """Picture files and float arrays, each float32 (h, w, 3) in [0, 1]."""
    import numpy as np

    from copier.errors import BadPicture
    from copier.images.effects import to_array
    from copier.images.pairs import read_picture

    if not paths:
        raise BadInput("there are no pictures: give at least one")
    pictures = []
    for path in paths:
        if path.suffix != ".npy":
            pictures.append(to_array(read_picture(path)))
            continue
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadPicture(f"{str(path)!r} is no array that can be read ({error})") from error
        if array.ndim != 3 or array.shape[-1] != 3:
            raise BadPicture(f"{path.name!r} has the shape {array.shape}: expected is (h, w, 3)")
        pictures.append(np.clip(array.astype(np.float32), 0.0, 1.0))
    return pictures


def _read_masks(paths: Sequence[Path | None], sizes: Sequence[Size]) -> list[Array] | None:
    """Mask files in grey, float32 (h, w) in [0, 1]; None counts everywhere. None where there are none."""
    import numpy as np

    from copier.errors import BadPicture
    from copier.images.pairs import read_picture

    if not paths:
        return None
    if len(paths) != len(sizes):
        raise BadInput(f"there are {len(paths)} masks for {len(sizes)} pictures: give one, or none, for each")
    masks: list[Array] = []
    for path, (width, height) in zip(paths, sizes, strict=True):
        if path is None:
            masks.append(np.ones((height, width), dtype=np.float32))
            continue
        mask = read_picture(path).convert("L")
        if mask.size != (width, height):
            raise BadPicture(
                f"the mask {path.name!r} is {mask.width} x {mask.height} px, its picture {width} x {height} "
                "px: give it the size of the picture"
            )
        masks.append((np.asarray(mask) / 255.0).astype(np.float32))
    return masks


def _written(
    pictures: Array | Sequence[Array], folder: Path, started: float
) -> protocol.PicturesResult:
    """Write all pictures as PNG, or none of them."""
    import numpy as np

    from copier.images.effects import to_image

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.png" for number in range(len(pictures))]
    temporary = [path.with_suffix(".png.tmp") for path in paths]
    try:
        for picture, place in zip(pictures, temporary, strict=True):
            to_image(np.asarray(picture)).save(place, format="PNG")
        for place, path in zip(temporary, paths, strict=True):
            os.replace(place, path)
    except BaseException:
        for place in temporary:
            place.unlink(missing_ok=True)
        raise
    return protocol.PicturesResult(tuple(paths), time.monotonic() - started)


def answer(engine: Engine, message: dict[str, Any], cancel: CancelToken) -> dict[str, Any]:
    """The last message of a request: ``done`` with its result, or ``error``."""
    try:
        return {"type": "done", "result": engine.run(_request(message), cancel)}
    except (BadInput, Cancelled) as error:
        return protocol.error_to_json(error)
    except CopierError as error:
        engine.forget()
        return protocol.error_to_json(error)
    except Exception as error:
        log.exception("the request failed")
        engine.forget()
        return protocol.error_to_json(_as_failure(error))


def _as_failure(error: Exception) -> TrainingFailed:
    text = f"{type(error).__name__}: {error}"
    memory = ("out of memory", "not enough memory", "can't allocate memory")
    if isinstance(error, MemoryError) or any(part in str(error) for part in memory):
        return TrainingFailed(
            f"the memory does not suffice ({text[:200]}): use a smaller batch size or resolution, "
            "turn on gradient checkpointing, or use the precision bf16"
        )
    return TrainingFailed(f"the worker failed ({text}); its log has the details")


def _device(name: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise BadInput("there is no CUDA device that this torch can use: choose the device 'cpu'")
    return "cuda" if available and name != "cpu" else "cpu"


def main() -> None:
    """Serve requests until the input ends, "stop" comes, or a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it alone")
    parser.add_argument("--tokenizer", type=Path, help="folder that keeps the tokenizer's files")
    arguments = parser.parse_args()
    outbox, inbox = Outbox(), Inbox()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), inbox.finish)
    threading.Thread(target=inbox.read, daemon=True).start()

    def ask(step: int, cancel: CancelToken) -> bool:
        outbox.send(protocol.check_to_json(step))
        return inbox.verdict(cancel)

    engine = Engine(arguments.device, arguments.threads, arguments.tokenizer, outbox.observe, ask)
    for message, cancel in inbox:
        outbox.send(answer(engine, message, cancel))
    os._exit(0)


def _request(message: dict[str, Any]) -> protocol.Request:
    try:
        return protocol.request_from_json(message)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"not a request that this worker knows: {error!r}") from error


if __name__ == "__main__":
    main()
