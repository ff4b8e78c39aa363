"""The ports inside a WebUI."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from copier.app.pictures import usual_side
from copier.app.ports import (
    CheckpointInfo,
    Folders,
    GeneratedPicture,
    GenerateRequest,
    Security,
)
from copier.app.service import check_checkpoint
from copier.app.settings import Settings
from copier.captioning import Captioner
from copier.errors import BadInput, NotNow, UnknownName
from copier.host.drawn import keep_drawn
from copier.host.known_files import KnownFiles, tensors_in
from copier.host.webui import drawing, loras, memory
from copier.host.webui.flavour import flavour
from copier.host.webui.interrogation import interrogators
from copier.host.webui.options import output_folder
from copier.host.webui.security import security_of_host
from copier.host.webui.turns import Shown, Turns, Watch
from copier.progress import CancelToken, Observer, ProgressEvent

TRAINING, WORKING, DRAWING = "Copier training", "Copier at work", "Copier drawing"
"""What the host's progress says."""


class WebUiHost:
    """``HostServices`` on A1111 and Forge."""

    def __init__(self, settings: Settings, pocket_title: str) -> None:
        """
        Args:
            pocket_title: the title in the metadata of the checkpoint that comes with the program.
        """
        self._settings = settings
        self._pocket_title = pocket_title
        self._known = KnownFiles(settings)
        self.turns = Turns()
        self._job = Watch()

    def watch_jobs(self, stop: Callable[[], None], shown: Callable[[], Shown]) -> None:
        """While a job has the host: ``stop`` it when Interrupt is pressed; what the progress says of it."""
        self._job = Watch(interrupted=stop, shown=shown)

    @property
    def name(self) -> str:
        """A1111, Forge or reForge."""
        return flavour()

    def folders(self) -> Folders:
        """The host's own."""
        from modules import sd_models, sd_vae, shared

        options = shared.cmd_opts
        checkpoints = [sd_models.model_path, getattr(options, "ckpt_dir", None)]
        vaes = [sd_vae.vae_path, getattr(options, "vae_dir", None)]
        return Folders(
            loras.lora_folder(),
            output_folder(),
            self._settings.data,
            tuple(Path(one) for one in checkpoints if one),
            tuple(Path(one) for one in vaes if one),
        )

    def security(self) -> Security:
        """By the options that the host was started with."""
        return security_of_host()

    def current_checkpoint(self) -> CheckpointInfo | None:
        """The chosen one. ``shared.sd_model`` is not asked: it loads, and in Forge is an older one."""
        from modules import sd_models

        try:
            return self._described(sd_models.select_checkpoint())
        except FileNotFoundError:
            return None

    def checkpoints(self) -> Sequence[CheckpointInfo]:
        """The host's list."""
        from modules import sd_models

        return [self._described(one) for one in list(sd_models.checkpoints_list.values())]

    def choose_checkpoint(self, path: Path) -> None:
        """Make one of the list the current one, without the host's callback, which loads it under the lock.

        Raises:
            UnknownName: it is none of them. BadInput: the host does not let settings be changed.
        """
        from modules import shared

        found = self._listed(path)
        try:
            shared.opts.set("sd_model_checkpoint", found.title, run_callbacks=False)
        except AssertionError as error:
            raise BadInput(f"the WebUI keeps its settings as they are ({error}): choose it there") from error
        _tell_forge()

    def vaes(self) -> Sequence[CheckpointInfo]:
        """Files in the host's folders of autoencoders; in Forge text encoders may lie there too."""
        found = dict.fromkeys(path for folder in self.folders().vaes for path in tensors_in(folder))
        return [
            self._known.described(path, name=path.name, embedded=False)
            for path in found
            if self._known.identity(path).vae
        ]

    def loras(self) -> Sequence[Path]:
        """The files in the host's LoRA folder, for our own reader: Forge renames what its cannot read."""
        return tensors_in(loras.lora_folder())

    def samplers(self) -> Sequence[str]:
        """The host's list."""
        return drawing.sampler_names()

    def generate(
        self, request: GenerateRequest, observer: Observer, cancel: CancelToken
    ) -> Sequence[GeneratedPicture]:
        """Draw with the host's own pipeline, when it is our turn, into the folder ``drawn`` of the output.

        Raises:
            UnknownName: a sampler or a checkpoint that the host has not.
            NotNow: a job has the memory.
            BadInput: the request cannot be met.
            Cancelled: ``cancel`` was set, or someone pressed Interrupt.
            CopierError: the host failed.
        """
        self._refuse_while_away()
        if request.sampler and request.sampler not in self.samplers():
            raise UnknownName("sampler", request.sampler, self.samplers())
        drawing.check_model_options(request)
        current = self.current_checkpoint()
        chosen = request.checkpoint or (current.path if current is not None else None)
        if chosen is None:
            raise BadInput("the WebUI has no checkpoint: put one into its folder and refresh the list")
        title = "" if current is not None and current.path == chosen else self._listed(chosen).title
        whole = request.width and request.height
        side = 0 if whole else usual_side(check_checkpoint(chosen), request.model)
        with self.turns.turn(DRAWING, Watch(interrupted=cancel.cancel, cancelled=lambda: cancel.cancelled)):
            cancel.check()
            sketches = drawing.draw(request, side, title)
        output = self.folders().output
        observer(ProgressEvent("generate", len(sketches), request.count))
        return [keep_drawn(one.image, one.seed, one.infotext, request, output) for one in sketches]

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """While the block runs the host's queue is ours, and its model in no memory."""
        if self.turns.mine:
            yield
            return
        with (
            self.turns.turn(TRAINING, self._job),
            memory.freed(memory.memory_of_host(), loras.forget),
        ):
            yield

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """While the block runs the host's queue is ours; its model stays."""
        with self.turns.turn(WORKING, self._job):
            yield

    def refresh(self) -> None:
        """Have the host read its folders; what it remembers of LoRA files is forgotten when it is idle."""
        from modules import sd_models, sd_vae

        sd_models.list_models()
        sd_vae.refresh_vae_list()
        loras.list_again()
        threading.Thread(target=self._forget, name="copier-refresh", daemon=True).start()

    def _forget(self) -> None:
        from modules import call_queue

        with call_queue.queue_lock:
            loras.forget()

    def interrupt(self) -> None:
        """Stop what the host draws; in a job of ours that stops the job."""
        from modules import shared

        shared.state.interrupt()

    def busy(self) -> str:
        """What the host does right now, as its progress says it."""
        from modules import shared

        return str(shared.state.job or "")

    def captioners(self) -> Mapping[str, Captioner]:
        """The host's interrogators."""
        return interrogators(self.turns)

    def _refuse_while_away(self) -> None:
        if self.turns.taken:
            raise NotNow("a job of Copier has the WebUI: draw when it has ended, or stop it")

    def _listed(self, path: Path) -> Any:
        """The host's own record of the checkpoint."""
        from modules import sd_models

        every = list(sd_models.checkpoints_list.values())
        for one in every:
            if Path(one.filename) == path:
                return one
        raise UnknownName("checkpoint in the list", str(path), (str(one.filename) for one in every))

    def _described(self, found: Any) -> CheckpointInfo:
        path = Path(found.filename)
        return self._known.described(
            path,
            name=str(found.name_for_extra),
            sha256=found.sha256 or "",
            embedded=self._known.identity(path).title == self._pocket_title,
        )


def _tell_forge() -> None:
    """Forge takes the checkpoint of a generation from a record of its own."""
    entry = sys.modules.get("modules_forge.main_entry")
    if hasattr(entry, "refresh_model_loading_parameters"):
        entry.refresh_model_loading_parameters()
