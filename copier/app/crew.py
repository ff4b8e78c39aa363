"""Who trains and draws for the runs of one call: child processes, started on demand."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType

from copier.app.settings import Settings
from copier.digest import file_digest
from copier.errors import BadInput
from copier.pipeline.plan import paired
from copier.progress import CancelToken, Observer
from copier.recipe import EvaluateStage, GateStage, Optimiser, Recipe, Trainer
from copier.request import RunRequest
from copier.training.client import BuiltinWorker, Drawn
from copier.training.environment import TrainerEnvironment, require_environment
from copier.training.interpreter import ask_interpreter
from copier.training.machine import Device, device_of
from copier.training.protocol import TrainRequest, TrainResult
from copier.training.scripts_folder import COMMIT, ScriptsFolder, find_sd_scripts
from copier.training.scripts_trainer import ScriptsTrainer
from copier.training.sd_scripts import SILENT_SECONDS, SavedSeen, SdScripts
from copier.training.tagger_packages import require_tagger

_DISTRIBUTION = "sd-webui-copier"
_SAMPLES = 4
"""Pictures that are drawn at a time while sd-scripts trains."""


@dataclass(frozen=True)
class Kit:
    """An installed sd-scripts: the Python that runs it, its packages, its folder, and the device."""

    environment: TrainerEnvironment
    folder: ScriptsFolder
    device: Device
    more_packages: tuple[Path, ...] = ()

    def engine(self, settings: Settings, recipe: Recipe) -> str:
        """What of it changes the outcome of the recipe's trainings, beside what every such kit has.

        Several processes make one batch of theirs, another version of sd-scripts may do anything, and AdamW
        takes the place of its 8-bit form where that is not there.
        """
        parts = []
        if settings.accelerate is not None:
            parts.append(f"accelerate {file_digest(settings.accelerate)}")
        if self.folder.own and self.folder.commit not in ("", COMMIT):
            parts.append(f"sd-scripts {self.folder.commit}")
        wanted = {stage.training.optimiser for stage in recipe.trainings()}
        if Optimiser.ADAMW_8BIT in wanted and not self.environment.eight_bit:
            parts.append("adamw for adamw8bit")
        return ", ".join(parts)

    def scripts(self, settings: Settings, *, threads: int | None) -> SdScripts:
        """How its scripts are run."""
        return SdScripts(
            self.environment.interpreter.path,
            self.folder.folder,
            overlay=self.environment.packages,
            more_packages=self.more_packages,
            stand_in=self.environment.stand_in,
            accelerate=settings.accelerate,
            threads=threads,
            cpu=self.device.kind == "cpu",
            silent_seconds=settings.silent_seconds or SILENT_SECONDS,
        )


def find_tagger_kit(settings: Settings) -> Kit:
    """What runs the tagger of sd-scripts, on the processor.

    Raises as ``find_kit``, also where the tagger's own packages are not there.
    """
    kit = find_kit(settings, device="cpu")
    packages = require_tagger(settings.tagger, kit.environment.interpreter)
    return replace(kit, more_packages=(packages,))


def find_kit(settings: Settings, *, device: str) -> Kit:
    """What trains with sd-scripts on ``device`` (auto, cpu or cuda).

    Raises:
        NotInstalled: sd-scripts or its packages are not there; the message says how to get them.
        BadInput: the Python or the folder that the settings name cannot be used.
    """
    interpreter = ask_interpreter(settings.python)
    environment = require_environment(settings.trainer, interpreter)
    folder = find_sd_scripts(settings.sd_scripts_dir)
    found = Device("cpu", chosen=True) if device == "cpu" else device_of(interpreter)
    if device == "cuda" and found.kind != "cuda":
        raise BadInput(
            f"the device is cuda, but the torch of {interpreter.path}, which trains, finds none: use "
            "--device auto, or name another Python in COPIER_PYTHON"
        )
    return Kit(environment, folder, found)


class Crew:
    """Starts the children at their first call; a context manager that ends them.

    The worker that draws is ended before sd-scripts trains: two checkpoints in memory are one too many. Only
    such a training that checks the gate on its way (``check_every``) has it beside itself.
    """

    def __init__(self, settings: Settings, *, device: str, threads: int | None) -> None:
        """
        Args:
            settings: where things are.
            device: auto, cpu or cuda.
            threads: of torch on the processor; None for all.
        """
        self._settings = settings
        self._device = device
        self._threads = threads
        self._kit: Kit | None = None
        self._worker: BuiltinWorker | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.__exit__(kind, error, trace)

    def close(self) -> None:
        """End the child that draws; the next ``worker`` starts another. Harmless when repeated."""
        self.__exit__(None, None, None)

    def engine(self, recipe: Recipe) -> str:
        """What of the trainer's installation changes the outcome of the recipe; raises as ``find_kit``."""
        return "" if recipe.trainer is Trainer.BUILTIN else self._found_kit().engine(self._settings, recipe)

    def _found_kit(self) -> Kit:
        self._kit = self._kit or find_kit(self._settings, device=self._device)
        return self._kit

    def worker(self) -> BuiltinWorker:
        """The child that draws, and that trains where the recipe says ``builtin``."""
        if self._worker is None:
            self._settings.logs.mkdir(parents=True, exist_ok=True)
            python, search_path = self._worker_python()
            self._worker = BuiltinWorker(
                python=python,
                threads=self._threads,
                device=self._device,
                log_path=self._settings.logs / "worker.log",
                tokenizer_folder=self._settings.tokenizer,
                search_path=search_path,
            ).__enter__()
        return self._worker

    def _worker_python(self) -> tuple[str, tuple[Path, ...]]:
        """The Python of the worker, and what goes first on its path.

        An installed program has the packages itself. An extension runs in a host's Python, which lacks them
        or has others: there they come from the trainer's own.
        """
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.version(_DISTRIBUTION)
            return sys.executable, ()
        interpreter = ask_interpreter(self._settings.python)
        return interpreter.path, require_environment(self._settings.trainer, interpreter).search_path

    def train(
        self,
        run: RunRequest,
        request: TrainRequest,
        *,
        observer: Observer,
        cancel: CancelToken,
        on_saved: SavedSeen | None = None,
        on_drawn: Drawn | None = None,
    ) -> TrainResult:
        """Train a LoRA with the trainer of the run's recipe, which asks ``on_saved`` or ``on_drawn``.

        Raises:
            CopierError: as ``BuiltinWorker.train``, or ``find_kit`` and ``ScriptsTrainer.train``.
        """
        if run.recipe.trainer is Trainer.BUILTIN:
            return self.worker().train(request, observer=observer, cancel=cancel, on_drawn=on_drawn)
        kit = self._found_kit()
        self.close()
        trainer = ScriptsTrainer(
            kit.scripts(self._settings, threads=self._threads),
            kit.environment,
            device=kit.device,
            logs=self._settings.logs,
            options=run.scripts,
            samples=_samples(run.recipe),
        )
        return trainer.train(request, observer=observer, cancel=cancel, on_saved=on_saved)


def _samples(recipe: Recipe) -> tuple[tuple[str, int], ...]:
    """Prompts and seeds for pictures on the way: the first that the recipe measures with."""
    for stage in recipe.stages:
        if isinstance(stage, (GateStage, EvaluateStage)):
            return paired(stage.prompts, stage.seeds)[:_SAMPLES]
    return (("", 1),)
