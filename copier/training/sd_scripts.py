"""Runs one training of kohya's sd-scripts in a child process, from the check before it to the verified LoRA.

The run's folder, which is the caller's: ``train.log``, ``samples/`` and ``saved/`` stay; ``work/`` is there
while the training runs and holds the copies of the pictures and what the script writes. How sd-scripts
behaves, and so why this is more than starting it: its exit code is 0 without pictures too, it saves beside
the pictures, and it goes on with a loss that is no number.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copier.checkpoint.header import Header, read_header
from copier.checkpoint.targets import Target
from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore
from copier.temporary import create_temporary, move_into_place, remove_leftovers
from copier.training import launcher
from copier.training.command_parts import TrainingCommand, TrainingPicture
from copier.training.machine import Device, find_device
from copier.training.outcome import expected_targets, verify_lora
from copier.training.preflight import copy_picture, preflight
from copier.training.process import Child, StopTimes, available_cores, describe_exit, quoted

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SCAN_SECONDS = 0.5
"""How often the output folder is looked through for samples and saved LoRAs."""
SILENT_SECONDS = 1800.0
"""A child that writes nothing for so long is taken for hung. On a processor one step can take minutes."""
STOP_TIMES = StopTimes(interrupt=0.0, terminate=3.0, kill=5.0)
"""TERM ends sd-scripts within half a second; INT does nothing where the parent ignored it."""
NAN_STATES = 10
"""So many states of the progress bar in a row without a loss that is a number (two a step) end a training."""
LIST_SECONDS = 300.0
LOG_NAME = "train.log"

_STEP_FILE = re.compile(r"-step(\d+)\.safetensors$")  # train_util.py: STEP_FILE_NAME
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_DISTRIBUTED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

ReadLine = Callable[[str], Iterable[ProgressEvent]]
"""What a line, or a state of a progress bar, says about the training."""
Remedy = Callable[[int | None, Sequence[str]], str]
"""What to do about a failure, from the exit code (None: it was ended) and the last lines; "": unknown."""
SampleSeen = Callable[[Path], None]
SavedSeen = Callable[[Path, int], bool]
"""Gets a LoRA that verifies and the step at which it was saved; True ends the training with this LoRA."""


@dataclass(frozen=True)
class SdScripts:
    """An installed sd-scripts and how it is run.

    Attributes:
        python: the interpreter; it has torch.
        folder: sd-scripts' folder.
        overlay: the folder with its packages; None: ``python`` has them.
        stand_in: a folder with a package in place of a torchvision that cannot be imported.
        accelerate: a configuration file of accelerate, to train on several devices; None: plain Python.
        threads: of torch on the processor; None: one for each core that may be used.
        skip_init: leave out the random initialisation of weights that the checkpoint overwrites.
        silent_seconds: a child that writes nothing for so long is ended.
        times: how it is stopped.
    """

    python: str
    folder: Path
    overlay: Path | None = None
    stand_in: Path | None = None
    accelerate: Path | None = None
    threads: int | None = None
    skip_init: bool = True
    silent_seconds: float = SILENT_SECONDS
    times: StopTimes = STOP_TIMES

    def __post_init__(self) -> None:
        if not self.silent_seconds > 0:
            raise BadInput(f"silent_seconds is {self.silent_seconds}: give more than 0")
        if self.threads is not None and self.threads < 1:
            raise BadInput(f"threads is {self.threads}: give at least 1, or None")

    def launch(self, script: str, *options: str, arguments: Sequence[str] = ()) -> list[str]:
        """The command line that runs a script of it with ``arguments``; ``options`` are the launcher's."""
        command = [self.python, launcher.__file__, "--sd-scripts", str(self.folder), "--script", script]
        for name, path in (("--overlay", self.overlay), ("--stand-in", self.stand_in)):
            command += [name, str(path)] if path else []
        return [*command, *options, "--", *arguments]

    def environment(self) -> dict[str, str]:
        """The child's environment: ours, less what an ``accelerate launch`` of the host left in it."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in _DISTRIBUTED and not name.startswith("ACCELERATE_")
        }
        return {
            **inherited,
            "PYTHONUNBUFFERED": "1",
            # Two threads on a busy machine of two cores took five times as long as one: never left to chance.
            "OMP_NUM_THREADS": str(self.threads or available_cores()),
            "TOKENIZERS_PARALLELISM": "false",
            # What is missing is an error at once, not after a minute of attempts to reach the hub.
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }


@dataclass(frozen=True)
class TrainingJob:
    """One training: what the script is told, on which pictures, and where the LoRA goes.

    ``output`` must not exist; its name without ending is the LoRA's name. ``folder`` is the run's own;
    ``stage`` is the name that its progress events bear.
    """

    command: TrainingCommand
    pictures: tuple[TrainingPicture, ...]
    output: Path
    folder: Path
    stage: str = "train"

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise BadInput(f"{self.output.name!r} does not end with .safetensors: choose such a name")


@dataclass(frozen=True)
class Trained:
    """The outcome: the LoRA in its place, the log, what was drawn and saved on the way, and the seconds."""

    output: Path
    log: Path
    samples: tuple[Path, ...]
    saved: tuple[Path, ...]
    seconds: float


def list_options(trainer: SdScripts, script: str) -> tuple[str, ...]:
    """The option strings that the script's own parser knows, such as ``--network_dim``; takes seconds.

    Raises:
        TrainingFailed: the script cannot be loaded.
    """
    command = trainer.launch(script, "--list-options")
    try:
        done = subprocess.run(
            command, capture_output=True, env=trainer.environment(), timeout=LIST_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TrainingFailed(
            f"{trainer.python!r} cannot be run ({error}): check the path of Python"
        ) from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        raise TrainingFailed(f"{script} cannot be loaded: install the trainer's packages{quoted(lines)}")
    return tuple(json.loads(done.stdout.decode("utf-8").splitlines()[-1]))


def train(
    job: TrainingJob,
    trainer: SdScripts,
    *,
    read_line: ReadLine,
    remedy: Remedy,
    device: Device | None = None,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    on_sample: SampleSeen | None = None,
    on_saved: SavedSeen | None = None,
) -> Trained:
    """Run one training and put the LoRA into its place, whole and verified, or nothing there.

    The thread that calls it must live until it returns: on Linux the child ends with that thread.
    ``observer`` is called from other threads, one call at a time; ``on_sample`` and ``on_saved`` from this
    one, while the training goes on. ``device`` None: it is found out, which takes seconds.

    Raises:
        BadInput, BadPicture, BadCheckpoint: the check before the start failed; nothing was started.
        TrainingFailed: the child crashed, hung, learnt nothing or wrote no LoRA that verifies; the message
            has its last lines and a remedy.
        Cancelled: the token was set; no child is left and no part of a file.
    """
    started = time.monotonic()
    cancel, observer = cancel or CancelToken(), guarded(observer)
    cancel.check()
    if job.output.exists():
        raise BadInput(f"{str(job.output)!r} exists: choose another name")
    if not (trainer.folder / job.command.script).is_file():
        raise BadInput(f"there is no {job.command.script} in {str(trainer.folder)!r}: install sd-scripts")
    header, notes = preflight(
        job.command,
        job.pictures,
        device=device or find_device(trainer.python),
        folders=(job.folder, job.output.parent),
    )
    for note in notes:
        observer(ProgressEvent(job.stage, message=note))
    cancel.check()
    work = job.folder / "work"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    try:
        work.mkdir(parents=True)
        listener = _Listener(read_line, observer)
        files = _Files(job, work / "out", header, on_sample, on_saved)
        lora = _run(job, trainer, _arguments(job, work), listener, files, remedy, cancel)
        cancel.check()
        job.output.parent.mkdir(parents=True, exist_ok=True)
        _put(lora, job.output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    seconds = time.monotonic() - started
    return Trained(job.output, job.folder / LOG_NAME, tuple(files.samples), tuple(files.saved), seconds)


def _arguments(job: TrainingJob, work: Path) -> list[str]:
    """Lay out the run's files in ``work``; the script's whole command line."""
    _write_pictures(job, work)
    dataset = work / "dataset.json"
    dataset.write_text(json.dumps(_placed(job.command.dataset, work), indent=1), encoding="utf-8")
    out = work / "out"
    out.mkdir()
    arguments = [*job.command.argv, f"--dataset_config={dataset}", f"--output_dir={out}"]
    # With "=": a name may begin with a dash.
    arguments += [f"--output_name={job.output.stem}", "--save_model_as=safetensors"]
    if job.command.sample_prompts:
        prompts = work / "prompts.txt"
        prompts.write_text("\n".join(job.command.sample_prompts) + "\n", encoding="utf-8")
        arguments.append(f"--sample_prompts={prompts}")
    return arguments


def _write_pictures(job: TrainingJob, work: Path) -> None:
    endings = _caption_endings(job.command.dataset)
    for number, picture in enumerate(job.pictures):
        folder = work / picture.folder
        if not folder.resolve().is_relative_to(work.resolve()) or folder.resolve() == work.resolve():
            raise BadInput(
                f"the folder {picture.folder!r} of a picture is not within the run's: name one there"
            )
        folder.mkdir(parents=True, exist_ok=True)
        copy_picture(picture, folder / f"{number:04d}.png")
        if picture.caption is not None:
            place = folder / f"{number:04d}{endings[picture.folder]}"
            place.write_text(picture.caption, encoding="utf-8")


def _caption_endings(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Folder -> the ending of its caption files: the subset's, the dataset's, the general one, or .txt."""
    general = dataset.get("general", {})
    return {
        subset["image_dir"]: {"caption_extension": ".txt", **general, **one, **subset}["caption_extension"]
        for one in dataset.get("datasets", ())
        for subset in one.get("subsets", ())
    }


def _placed(dataset: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """The dataset with the folders' whole paths, and the ending of the captions stated in every subset."""
    endings = _caption_endings(dataset)
    plain: dict[str, Any] = json.loads(json.dumps(dataset, default=_as_plain))
    for one in plain.get("datasets", ()):
        for subset in one.get("subsets", ()):
            # Without it sd-scripts looks for .caption.
            subset["caption_extension"] = endings[subset["image_dir"]]
            subset["image_dir"] = str(work / subset["image_dir"])
    return plain


def _as_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no JSON: {value!r}")


def _run(
    job: TrainingJob,
    trainer: SdScripts,
    arguments: Sequence[str],
    listener: _Listener,
    files: _Files,
    remedy: Remedy,
    cancel: CancelToken,
) -> Path:
    """Run the child to its end; the LoRA that verifies, still in the run's folder."""
    options = ["--parent", str(os.getpid()), *(["--skip-init"] if trainer.skip_init else [])]
    options += ["--accelerate", str(trainer.accelerate)] if trainer.accelerate else []
    try:
        child = Child(
            trainer.launch(job.command.script, *options, arguments=arguments),
            environment=trainer.environment(),
            folder=job.folder,
            log_path=job.folder / LOG_NAME,
            on_line=listener.hear,
        )
    except OSError as error:
        raise TrainingFailed(
            f"the trainer cannot be started with {trainer.python!r} ({error.strerror}): check the path of "
            "the Python interpreter"
        ) from error
    try:
        chosen = _watch(child, trainer, listener, files, remedy, cancel)
    finally:
        child.stop(trainer.times)
    if chosen is not None:
        return chosen
    files.look(ended=True)
    problem = f"the training {describe_exit(child.exit_code)}"
    if child.exit_code == 0:
        if files.lora.is_file():
            verify_lora(files.lora, files.checkpoint, files.expected)
            return files.lora
        problem = "the training ended as if all were well, but wrote no LoRA"
    raise _failure(problem, child.exit_code, child.tail, remedy)


def _watch(
    child: Child,
    trainer: SdScripts,
    listener: _Listener,
    files: _Files,
    remedy: Remedy,
    cancel: CancelToken,
) -> Path | None:
    """Wait for the child's end, or for a reason to end it; a saved LoRA that is good enough, or None."""
    scan = time.monotonic() + SCAN_SECONDS
    while not child.wait(POLL_SECONDS):
        if cancel.cancelled:
            raise Cancelled("stopped")
        if child.silent_seconds > trainer.silent_seconds:
            problem = f"the training wrote nothing for {trainer.silent_seconds:g} s and was ended"
            raise _failure(problem, None, child.tail, remedy)
        if listener.lost:
            problem = "the loss is no number any more, the training was ended"
            raise _failure(problem, None, [*child.tail, listener.last], remedy)
        if time.monotonic() > scan:
            scan = time.monotonic() + SCAN_SECONDS
            if (chosen := files.look(ended=False)) is not None:
                return chosen
    cancel.check()
    return None


def _failure(problem: str, exit_code: int | None, lines: Sequence[str], remedy: Remedy) -> TrainingFailed:
    what = remedy(exit_code, lines) or "run it again; if it happens again, its log says more"
    return TrainingFailed(f"{problem}: {what}{quoted(lines)}")


class _Listener:
    """Turns what the child says into progress events, and notices a loss that is no number."""

    def __init__(self, read_line: ReadLine, observer: Observer) -> None:
        self._read_line, self._observer = read_line, observer
        self._unread = False
        self._lost_states = 0
        self.last = ""

    @property
    def lost(self) -> bool:
        """Whether the loss has been no number for long."""
        return self._lost_states >= NAN_STATES

    def hear(self, text: str) -> None:
        """One line or state of a progress bar; never fails: the child would wait for its reader forever."""
        self.last = text
        try:
            for event in self._read_line(text):
                if event.loss is not None:
                    self._lost_states = 0 if math.isfinite(event.loss) else self._lost_states + 1
                self._observer(event)
        except Exception:
            if not self._unread:
                self._unread = True
                log.exception("a line of the trainer could not be read: %s", text[:200])


class _Files:
    """What the script writes: samples and LoRAs on the way are moved out as soon as they are whole."""

    def __init__(
        self,
        job: TrainingJob,
        out: Path,
        checkpoint: Header,
        on_sample: SampleSeen | None,
        on_saved: SavedSeen | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.expected: frozenset[Target] | None = expected_targets(job.command, checkpoint)
        self.lora = out / job.output.name
        self.samples: list[Path] = []
        self.saved: list[Path] = []
        self._out, self._folder = out, job.folder
        self._on_sample, self._on_saved = on_sample, on_saved
        self._before: dict[Path, tuple[int, int]] = {}

    def look(self, *, ended: bool) -> Path | None:
        """Report what is new; a saved LoRA with which the training may end, or None.

        Before the script has ``ended`` a file counts as whole when it did not change between two looks.
        """
        for path in self._whole("sample/*.png", ended=ended):
            if _ends_as_png(path):
                self.samples.append(self._moved(path, "samples"))
                if self._on_sample:
                    self._on_sample(self.samples[-1])
        for path in self._whole("*.safetensors", ended=ended):
            step = _STEP_FILE.search(path.name)
            if step is None or path == self.lora or not self._verifies(path):
                continue
            self.saved.append(self._moved(path, "saved"))
            if self._on_saved and self._on_saved(self.saved[-1], int(step[1])):
                return self.saved[-1]
        return None

    def _whole(self, pattern: str, *, ended: bool) -> Iterator[Path]:
        for path in sorted(self._out.glob(pattern)):
            status = path.stat()
            state = (status.st_size, status.st_mtime_ns)
            if ended or self._before.get(path) == state:
                yield path
            self._before[path] = state

    def _verifies(self, path: Path) -> bool:
        try:
            read_header(path)
        except CopierError:
            return False  # it is still being written, though not just now
        try:
            verify_lora(path, self.checkpoint, self.expected)
        except TrainingFailed as error:
            log.warning("%s is left out: %s", path.name, error)
            return False
        return True

    def _moved(self, path: Path, folder: str) -> Path:
        place = self._folder / folder / path.name
        place.parent.mkdir(exist_ok=True)
        os.replace(path, place)
        return place


def _ends_as_png(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-min(len(_PNG_END), path.stat().st_size), os.SEEK_END)
        return file.read() == _PNG_END


def _put(source: Path, target: Path) -> None:
    """Copy ``source`` to ``target``, which is whole or absent; they may be on two disks."""
    remove_leftovers(target)
    file, place = create_temporary(target)
    try:
        with file:
            with open(source, "rb") as whole, open(file.fileno(), "wb", closefd=False) as copy:
                shutil.copyfileobj(whole, copy, 1 << 22)
            os.fsync(file.fileno())
            move_into_place(file, place, target)
    finally:
        place.unlink(missing_ok=True)
