"""The ports without a WebUI: folders that the settings name, and a worker child that draws.

The child is kept for a while after a generation, with its checkpoint in memory; it is ended before a
training, and when nothing was drawn for ``IDLE_SECONDS``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from copier.app.crew import Crew
from copier.app.pictures import DrawRequest, draw
from copier.app.ports import (
    THIS_MACHINE,
    CheckpointInfo,
    Folders,
    GeneratedPicture,
    GenerateRequest,
    Security,
)
from copier.app.settings import Settings
from copier.captioning import Captioner
from copier.errors import NotNow, UnknownName
from copier.host.drawn import keep_drawn
from copier.host.known_files import KnownFiles, tensors_in
from copier.pipeline.store import StageStore
from copier.progress import CancelToken, Observer

IDLE_SECONDS = 120.0
"""The child is ended when it has drawn nothing for so long."""
_SAMPLER = "DDIM"


class StandaloneHost:
    """``HostServices`` without a WebUI."""

    def __init__(
        self,
        settings: Settings,
        embedded: Path,
        *,
        security: Security = THIS_MACHINE,
        device: str = "auto",
        threads: int | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """
        Args:
            embedded: the pocket checkpoint, which is always the first of the list.
            security: who can reach the page.
            device: auto, cpu or cuda.
            threads: of the child on the processor; None for all.
        """
        self._settings = settings
        self._embedded = embedded
        self._security = security
        self._device = device
        self._threads = threads
        self._idle_seconds = idle_seconds
        self._current = embedded
        self._known = KnownFiles(settings)
        # Held while the child draws, and while someone else has the memory.
        self._memory = threading.RLock()
        self._away = 0
        self._away_lock = threading.Lock()
        self._crew: Crew | None = None
        self._timer: threading.Timer | None = None
        self._drawing: CancelToken | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return "standalone"

    def folders(self) -> Folders:
        """What the settings say."""
        settings = self._settings
        return Folders(
            settings.loras,
            settings.output,
            settings.data,
            (self._embedded.parent, *settings.checkpoints),
            settings.checkpoints,
        )

    def security(self) -> Security:
        """Who can reach it."""
        return self._security

    def current_checkpoint(self) -> CheckpointInfo | None:
        """The one that was chosen, at first the embedded one, which also counts where that one is gone."""
        return self._described(self._current if self._current.is_file() else self._embedded)

    def checkpoints(self) -> Sequence[CheckpointInfo]:
        """The embedded one, then those in the folders and below them, by name."""
        found = [path for path in self._files() if not self._is_vae(path)]
        return [self._described(path) for path in (self._embedded, *found)]

    def choose_checkpoint(self, path: Path) -> None:
        """Make one of the list the current one. Raises ``UnknownName`` for another."""
        known = {one.path: one.name for one in self.checkpoints()}
        if path not in known:
            raise UnknownName("checkpoint in the list", str(path), map(str, known))
        self._current = path

    def vaes(self) -> Sequence[CheckpointInfo]:
        """Files of autoencoders in the folders of checkpoints and below them."""
        return [self._described(path) for path in self._files() if self._is_vae(path)]

    def loras(self) -> Sequence[Path]:
        """The files in the LoRA folder and below it, by name."""
        return tensors_in(self._settings.loras)

    def samplers(self) -> Sequence[str]:
        """DDIM is what the program draws with."""
        return (_SAMPLER,)

    def generate(
        self, request: GenerateRequest, observer: Observer, cancel: CancelToken
    ) -> Sequence[GeneratedPicture]:
        """Draw with the worker child into the folder ``drawn`` of the output folder.

        Raises:
            UnknownName: another sampler.
            NotNow: a job has the memory.
            BadInput: as ``app.pictures.draw``.
            Cancelled: ``cancel`` was set, or ``interrupt`` called.
        """
        if request.sampler not in ("", _SAMPLER):
            raise UnknownName("sampler", request.sampler, self.samplers())
        self._refuse_while_away()
        with self._memory:
            self._refuse_while_away()
            self._stop_timer()
            self._drawing = cancel
            try:
                return self._drawn(request, observer, cancel)
            except BaseException:
                # Nobody knows what state the child is in.
                self._end_child()
                raise
            finally:
                self._drawing = None
                self._start_timer()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """While the block runs there is no child, and none is started."""
        with self._away_lock:
            self._away += 1
        try:
            with self._memory:
                self._stop_timer()
                self._end_child()
            yield
        finally:
            with self._away_lock:
                self._away -= 1

    def refresh(self) -> None:
        """Nothing to do: the folders are read whenever a list is asked for."""

    def interrupt(self) -> None:
        """Stop what is being drawn."""
        drawing = self._drawing
        if drawing is not None:
            drawing.cancel()

    def busy(self) -> str:
        """What is done right now."""
        return "drawing" if self._drawing is not None else ""

    def captioners(self) -> Mapping[str, Captioner]:
        """There is no interrogator without a WebUI; the program has a tagger of its own."""
        return {}

    def close(self) -> None:
        """End the child. Harmless when repeated."""
        self.interrupt()
        with self._memory:
            self._stop_timer()
            self._end_child()

    def _drawn(
        self, request: GenerateRequest, observer: Observer, cancel: CancelToken
    ) -> list[GeneratedPicture]:
        checkpoint = request.checkpoint or self._chosen()
        self._crew = self._crew or Crew(self._settings, device=self._device, threads=self._threads)
        with StageStore(self._settings.stages).scratch("drawn") as folder:
            drawn = draw(
                DrawRequest(
                    checkpoint=checkpoint,
                    prompts=(request.prompt,),
                    seeds=range(request.seed, request.seed + request.count),
                    out=folder,
                    loras=request.loras,
                    negative=request.negative,
                    steps=request.steps,
                    guidance=request.guidance,
                    width=request.width,
                    height=request.height,
                    device=self._device,
                    threads=self._threads,
                    model=request.model,
                ),
                self._settings,
                observer=observer,
                cancel=cancel,
                crew=self._crew,
            )
            return [self._kept(one.path, one.seed, request, checkpoint) for one in drawn]

    def _kept(
        self, picture: Path, seed: int, request: GenerateRequest, checkpoint: Path
    ) -> GeneratedPicture:
        with Image.open(picture) as image:
            image.load()
        text = infotext(request, seed, image.size, checkpoint)
        return keep_drawn(image, seed, text, request, self._settings.output)

    def _chosen(self) -> Path:
        current = self.current_checkpoint()
        assert current is not None, "the embedded checkpoint is always there"
        return current.path

    def _refuse_while_away(self) -> None:
        if self._away:
            raise NotNow("a job is running and has the memory: draw when it has ended, or stop it")

    def _end_child(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def _start_timer(self) -> None:
        if self._crew is not None:
            self._timer = threading.Timer(self._idle_seconds, self._idle)
            self._timer.daemon = True
            self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _idle(self) -> None:
        timer = threading.current_thread()
        with self._memory:
            if self._timer is timer:
                self._timer = None
                self._end_child()

    def _files(self) -> list[Path]:
        folders = self._settings.checkpoints
        found = dict.fromkeys(path for folder in folders for path in tensors_in(folder))
        return [path for path in found if path != self._embedded]

    def _described(self, path: Path) -> CheckpointInfo:
        return self._known.described(path, embedded=path == self._embedded)

    def _is_vae(self, path: Path) -> bool:
        return self._known.identity(path).vae


def infotext(request: GenerateRequest, seed: int, size: tuple[int, int], checkpoint: Path) -> str:
    """What a picture was drawn from, as A1111 writes it into a PNG file."""
    tags = "".join(f" <lora:{path.stem}:{weight:g}>" for path, weight in request.loras)
    lines = [request.prompt + tags]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(
        f"Steps: {request.steps}, Sampler: {_SAMPLER}, CFG scale: {request.guidance:g}, Seed: {seed}, "
        f"Size: {size[0]}x{size[1]}, Model: {checkpoint.stem}"
    )
    return "\n".join(lines)
