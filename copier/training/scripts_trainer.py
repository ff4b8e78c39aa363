"""sd-scripts as a trainer: takes the builtin trainer's requests, and carries them out with its scripts."""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from copier.checkpoint.family import detect
from copier.checkpoint.header import read_header
from copier.checkpoint.prediction import parameterisation
from copier.errors import BadInput, Cancelled, CopierError
from copier.images.sizes import by_size, file_sizes
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore
from copier.recipe import Optimiser, TrainingSpec
from copier.request import NOTHING_MORE, ScriptOptions
from copier.training import kohya_log, sd_scripts
from copier.training.command import Pictures, SamplePrompt, ScriptJob, build_command
from copier.training.command_parts import PictureCopy, TrainingCommand
from copier.training.environment import TrainerEnvironment
from copier.training.machine import Device
from copier.training.protocol import TrainRequest, TrainResult
from copier.training.scripts_inputs import is_in_ldm_names, write_autoencoder, write_start


class ScriptsTrainer:
    """Trains LoRAs with the scripts of sd-scripts, one child process for each."""

    def __init__(
        self,
        scripts: sd_scripts.SdScripts,
        environment: TrainerEnvironment,
        *,
        device: Device,
        logs: Path,
        options: ScriptOptions = NOTHING_MORE,
        samples: Sequence[tuple[str, int]] = (),
    ) -> None:
        """
        Args:
            scripts: sd-scripts and how it is run.
            environment: where its tokenizers are, and whether the 8-bit optimisers are.
            device: what it trains on.
            logs: a folder that keeps the log of a training that failed.
            options: of the run.
            samples: prompts and seeds of the pictures that are drawn on the way, where ``options`` ask.
        """
        self._scripts = scripts
        self._environment = environment
        self._device = device
        self._logs = logs
        self._options = options
        self._samples = tuple(samples)

    def train(
        self,
        request: TrainRequest,
        *,
        observer: Observer = ignore,
        cancel: CancelToken | None = None,
        on_saved: sd_scripts.SavedSeen | None = None,
    ) -> TrainResult:
        """Train a LoRA; its log and samples stay in the folder of ``request.output``.

        Losses are those that sd-scripts shows: the mean over the last epoch, which is as short as whole
        batches allow. Raises as ``sd_scripts.train``; the log of a training that failed is kept.
        """
        folder = request.output.parent
        training = self._trainable(request, observer)
        rewritten = folder / "rewritten"
        try:
            readable = _readable(request, training, rewritten)
            return self._train(readable, training, observer=observer, cancel=cancel, on_saved=on_saved)
        finally:
            shutil.rmtree(rewritten, ignore_errors=True)

    def _train(
        self,
        request: TrainRequest,
        training: TrainingSpec,
        *,
        observer: Observer,
        cancel: CancelToken | None,
        on_saved: sd_scripts.SavedSeen | None,
    ) -> TrainResult:
        folder = request.output.parent
        # So that each of the two comes at its own steps.
        save_every = math.gcd(request.save_every, self._options.save_every)
        job, copies = script_job(
            request,
            training,
            folder / "work",
            self._environment.tokenizers,
            extra=self._options.extra,
            save_every=save_every,
            sample_every=self._options.sample_every,
            samples=self._samples,
        )
        options = sd_scripts.list_options(self._scripts, job.script.file) if job.extra else ()
        command = build_command(job, options)
        losses, chosen = _Losses(guarded(observer)), _Chosen(request.save_every, on_saved)
        try:
            done = sd_scripts.train(
                sd_scripts.TrainingJob(
                    TrainingCommand(command.script, command.argv, command.files(), copies),
                    output=request.output,
                    folder=folder,
                    stage=request.stage,
                ),
                self._scripts,
                reader=kohya_log.LogReader(request.stage, training.steps),
                explain=functools.partial(kohya_log.explain, training=training),
                device=self._device,
                observer=losses.observe,
                cancel=cancel,
                on_sample=lambda path: losses.observe(ProgressEvent(request.stage, pictures=(str(path),))),
                on_saved=chosen.look if on_saved else None,
            )
        except Cancelled:
            raise
        except CopierError:
            self._keep_log(folder, request.stage, observer)
            raise
        return TrainResult(request.output, losses.until(chosen.step), done.seconds)

    def _trainable(self, request: TrainRequest, observer: Observer) -> TrainingSpec:
        """The training as this machine can do it, with a note where that differs from what was asked for.

        Raises:
            BadInput: sd-scripts has no such loss, and would train with its own.
        """
        training = request.training
        names = (*training.of_builtin_only, *(("concept",) if request.concept else ()))
        if names:
            raise BadInput(f"sd-scripts does not have {', '.join(names)}: train with the builtin trainer")
        if training.optimiser is Optimiser.ADAMW_8BIT and not self._environment.eight_bit:
            observer(ProgressEvent(request.stage, message="adamw8bit needs CUDA: adamw takes its place"))
            return replace(training, optimiser=Optimiser.ADAMW)
        return training

    def _keep_log(self, folder: Path, stage: str, observer: Observer) -> None:
        """Move the log out of the folder, which does not outlive the failure."""
        log, kept = folder / sd_scripts.LOG_NAME, self._logs / f"sd-scripts-{stage}.log"
        if not log.is_file():
            return
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            os.replace(log, kept)
        except OSError:
            return
        observer(ProgressEvent(stage, message=f"the log of sd-scripts is in {kept}"))


def _readable(request: TrainRequest, training: TrainingSpec, folder: Path) -> TrainRequest:
    """``request`` with files that sd-scripts reads rightly; others are rewritten in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    vae, start = request.model.vae, request.start
    if vae is not None and not is_in_ldm_names(vae):
        write_autoencoder(vae, folder / "vae.safetensors")
        request = replace(request, model=replace(request.model, vae=folder / "vae.safetensors"))
    if start is not None:
        write_start(start, folder / "start.safetensors", training, read_header(request.checkpoint))
        request = replace(request, start=folder / "start.safetensors")
    return request


def script_job(
    request: TrainRequest,
    training: TrainingSpec,
    work: Path,
    tokenizers: Path,
    *,
    extra: tuple[str, ...] = (),
    save_every: int = 0,
    sample_every: int = 0,
    samples: Sequence[tuple[str, int]] = (),
) -> tuple[ScriptJob, tuple[PictureCopy, ...]]:
    """The job of a request, and the copies of its pictures in ``work``; only headers are read.

    ``samples`` are prompts and seeds, drawn in the size of the first picture every ``sample_every`` steps.

    Raises:
        BadInput, BadPicture, BadCheckpoint: sd-scripts cannot do it.
    """
    header = read_header(request.checkpoint)
    known = parameterisation(header, request.model)
    work = work.absolute()
    sets, copies = _picture_sets(request, work)
    prompts = tuple(SamplePrompt(prompt, seed, sets[0].width, sets[0].height) for prompt, seed in samples)
    job = ScriptJob(
        checkpoint=request.checkpoint.absolute(),
        family=detect(header).family,
        training=training,
        pictures=sets,
        work=work,
        output_folder=work / "out",
        output_name=request.output.stem,
        tokenizers=tokenizers.absolute(),
        base=tuple((path.absolute(), multiplier) for path, multiplier in request.base),
        start=None if request.start is None else request.start.absolute(),
        vae=None if request.model.vae is None else request.model.vae.absolute(),
        clip_skip=request.model.clip_skip,
        velocity=known.velocity,
        zero_terminal_snr=known.zero_terminal_snr,
        save_precision=request.save_precision,
        save_every=save_every,
        samples=prompts if sample_every else (),
        sample_every=sample_every,
        extra=extra,
    )
    return job, copies


def _picture_sets(
    request: TrainRequest, work: Path
) -> tuple[tuple[Pictures, ...], tuple[PictureCopy, ...]]:
    """A folder for the pictures of each size, and the copies that go there."""
    sets, copies = [], []
    for (width, height), numbers in by_size(file_sizes(request.pictures)).items():
        folder = work / f"pictures-{width}x{height}"
        names = tuple(f"{number + 1:04d}.png" for number in numbers)
        captions = tuple(request.captions[number] for number in numbers) if request.captions else ()
        sets.append(Pictures(folder, names, width, height, captions))
        for number, name in zip(numbers, names, strict=True):
            mask = request.masks[number] if request.masks else None
            copies.append(PictureCopy(request.pictures[number], folder / name, mask))
    return tuple(sets), tuple(copies)


class _Losses:
    """Keeps the loss of every step on its way to the observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._found: dict[int, float] = {}

    def observe(self, event: ProgressEvent) -> None:
        """Pass it on; the last event of a step has its loss."""
        if event.loss is not None and event.step:
            self._found[event.step] = event.loss
        self._observer(event)

    def until(self, last: int | None) -> tuple[float, ...]:
        """One a step, to ``last`` or all; a step whose loss was not shown has that of the step before."""
        losses: list[float] = []
        for step in range(1, (last or max(self._found, default=0)) + 1):
            if step in self._found or losses:
                losses.append(self._found.get(step, losses[-1] if losses else 0.0))
        return tuple(losses)


class _Chosen:
    """Asks about what was saved, every so many steps, and keeps the step that was chosen."""

    def __init__(self, every: int, ask: sd_scripts.SavedSeen | None) -> None:
        self._every = every
        self._ask = ask
        self.step: int | None = None

    def look(self, path: Path, step: int) -> bool:
        """Whether the training ends with the LoRA of that step."""
        if self._ask is None or step % self._every or not self._ask(path, step):
            return False
        self.step = step
        return True
