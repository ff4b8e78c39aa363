"""Runs one training of kohya's sd-scripts in a child process, from the check before it to the verified LoRA.

The run's folder, which is the caller's: ``train.log``, ``samples/`` and ``saved/`` stay; ``work/`` is there
while the training runs and holds the copies of the pictures and what the script writes. How sd-scripts
behaves, and so why this is more than starting it: its exit code is 0 without pictures too, it saves beside
the pictures, and it goes on with a loss that is no number.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from copier.checkpoint.header import Header, read_header
from copier.checkpoint.targets import Target
from copier.errors import BadInput, Cancelled, CopierError, TrainingFailed
from copier.progress import CancelToken, Observer, ProgressEvent, guarded, ignore
from copier.temporary import copy_file
from copier.training import launcher
from copier.training.command_parts import TrainingCommand
from copier.training.machine import Device, find_device
from copier.training.outcome import expected_targets, verify_lora
from copier.training.preflight import copy_picture, preflight
from copier.training.process import Child, StopTimes, available_cores, quoted

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
SCAN_SECONDS = 0.5
"""How often the output folder is looked through for samples and saved LoRAs."""
SILENT_SECONDS = 1800.0
"""A child that writes nothing for so long is taken for hung. On a processor one step can take minutes."""
STOP_TIMES = StopTimes(interrupt=0.0, terminate=3.0, kill=5.0)
"""TERM ends sd-scripts within half a second; INT does nothing where the parent ignored it."""
LIST_SECONDS = 300.0
LOG_NAME = "train.log"

_STEP_FILE = re.compile(r"-step(\d+)\.safetensors$")  # train_util.py: STEP_FILE_NAME
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_NOT_INHERITED = {
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("COLUMNS", "LINES"),
}
_NOT_INHERITED_FAMILIES = ("ACCELERATE_", "TQDM_")

Explain = Callable[[Sequence[str], int | None], CopierError]
"""The error of a training that failed, with its remedy: from the last lines, and the exit code (None: it was
ended)."""
SampleSeen = Callable[[Path], None]
SavedSeen = Callable[[Path, int], bool]
"""Gets a LoRA that verifies and the step at which it was saved; True ends the training with this LoRA."""


class LineReader(Protocol):
    """Makes progress events of what the trainer says; it may keep what was said before."""

    @property
    def broken_at(self) -> int | None:
        """The step at which the loss was no number; None as long as every loss is one."""

    def feed(self, line: str) -> Iterable[ProgressEvent]:
        """The events of one line, or state of a progress bar."""


@dataclass(frozen=True)
class SdScripts:
    """An installed sd-scripts and how it is run.

    Attributes:
        python: the interpreter; it has torch.
        folder: sd-scripts' folder.
        overlay: the folder with its packages; None: ``python`` has them.
        more_packages: folders with further ones, which come behind it on the path.
        stand_in: a folder with a package in place of a torchvision that cannot be imported.
        accelerate: a configuration file of accelerate, to train on several devices; None: plain Python.
        threads: of torch on the processor; None: one for each core that may be used.
        cpu: train on the processor although there is a GPU.
        skip_init: leave out the random initialisation of weights that the checkpoint overwrites.
        silent_seconds: a child that writes nothing for so long is ended.
        times: how it is stopped.
    """

    python: str
    folder: Path
    overlay: Path | None = None
    more_packages: tuple[Path, ...] = ()
    stand_in: Path | None = None
    accelerate: Path | None = None
    threads: int | None = None
    cpu: bool = False
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
        command = [self.python, launcher.__file__, "--sd-scripts", str(self.folder.absolute())]
        for folder in (self.overlay, *self.more_packages):
            command += ["--overlay", str(folder.absolute())] if folder else []
        command += ["--stand-in", str(self.stand_in.absolute())] if self.stand_in else []
        command += ["--script", script]
        return [*command, *options, "--", *arguments]

    def environment(self, *, online: bool = False) -> dict[str, str]:
        """The child's environment: ours, less what an ``accelerate launch`` of the host left in it.

        And less the size of a terminal: tqdm would cut its bar to it. ``online``: it may download.
        """
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in _NOT_INHERITED and not name.startswith(_NOT_INHERITED_FAMILIES)
        }
        hidden = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "-1") if self.cpu else {}
        hidden |= {"ACCELERATE_USE_CPU": "true"} if self.cpu else {}
        # What is missing is an error at once, not after a minute of attempts to reach the hub.
        offline = "0" if online else "1"
        return {
            **inherited,
            **hidden,
            "PYTHONUNBUFFERED": "1",
            # Two threads on a busy machine of two cores took five times as long as one: never left to chance.
            "OMP_NUM_THREADS": str(self.threads or available_cores()),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": offline,
            "TRANSFORMERS_OFFLINE": offline,
        }


@dataclass(frozen=True)
class TrainingJob:
    """One training: its command, where the LoRA goes in the end, and the run's own folder.

    ``output`` must not exist. What the command writes, and the files that it needs, lie in ``work``.
    ``stage`` is the name that the events of this module bear.

    Raises:
        BadInput: ``output`` has another ending, or a file of the command lies elsewhere.
    """

    command: TrainingCommand
    output: Path
    folder: Path
    stage: str = "train"

    def __post_init__(self) -> None:
        if self.output.suffix != ".safetensors":
            raise BadInput(f"{self.output.name!r} does not end with .safetensors: choose such a name")
        work = os.path.abspath(self.work)
        places = [*self.command.files, *(picture.place for picture in self.command.pictures)]
        for place in (*places, self.command.output):
            if not place.is_absolute() or not Path(os.path.abspath(place)).is_relative_to(work):
                raise BadInput(f"{str(place)!r} is not in {work!r}, where the run's files are: put it there")

    @property
    def work(self) -> Path:
        """The folder that is there while the training runs."""
        return self.folder / "work"


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
    reader: LineReader,
    explain: Explain,
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
        TrainingFailed, or what ``explain`` makes of it: the child crashed, hung, learnt nothing or wrote no
            LoRA that verifies; the message has its last lines and a remedy.
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
        device=device or find_device(trainer.python),
        folders=(job.folder, job.output.parent),
    )
    for note in notes:
        observer(ProgressEvent(job.stage, message=note))
    cancel.check()
    shutil.rmtree(job.work, ignore_errors=True)  # of a run that was killed
    try:
        _lay_out(job)
        files = _Files(job, header, on_sample, on_saved)
        lora = _run(job, trainer, _Listener(reader, observer), files, explain, cancel)
        cancel.check()
        _put(lora, job.output)
    finally:
        shutil.rmtree(job.work, ignore_errors=True)
    seconds = time.monotonic() - started
    return Trained(job.output, job.folder / LOG_NAME, tuple(files.samples), tuple(files.saved), seconds)


def _lay_out(job: TrainingJob) -> None:
    """Write the files and the copies of the pictures; raises ``TrainingFailed`` where the disk refuses."""
    try:
        job.command.output.parent.mkdir(parents=True)
        for path, text in job.command.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for picture in job.command.pictures:
            picture.place.parent.mkdir(parents=True, exist_ok=True)
            copy_picture(picture)
    except OSError as error:
        raise TrainingFailed(
            f"{str(job.work)!r} cannot be written ({error}): free some room, or choose another folder"
        ) from error


def _run(
    job: TrainingJob,
    trainer: SdScripts,
    listener: _Listener,
    files: _Files,
    explain: Explain,
    cancel: CancelToken,
) -> Path:
    """Run the child to its end; the LoRA that verifies, still in the run's folder."""
    options = ["--parent", str(os.getpid()), *(["--skip-init"] if trainer.skip_init else [])]
    options += ["--accelerate", str(trainer.accelerate.absolute())] if trainer.accelerate else []
    try:
        child = Child(
            trainer.launch(job.command.script, *options, arguments=job.command.argv),
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
        chosen = _watch(child, trainer, listener, files, explain, cancel)
    finally:
        child.stop(trainer.times)
    chosen = chosen or files.look(ended=True)
    if chosen is not None:
        return chosen
    lora = job.command.output
    if child.exit_code == 0 and lora.is_file():
        verify_lora(lora, files.checkpoint, files.expected)
        return lora
    # Also with the exit code 0: so sd-scripts ends where it finds no picture.
    raise explain(listener.last_lines(child), child.exit_code)


def _watch(
    child: Child,
    trainer: SdScripts,
    listener: _Listener,
    files: _Files,
    explain: Explain,
    cancel: CancelToken,
) -> Path | None:
    """Wait for the child's end, or for a reason to end it; a saved LoRA that is good enough, or None."""
    scan = time.monotonic() + SCAN_SECONDS
    while not child.wait(POLL_SECONDS):
        if cancel.cancelled:
            raise Cancelled("stopped")
        if child.silent_seconds > trainer.silent_seconds:
            raise TrainingFailed(
                f"the training said nothing for {trainer.silent_seconds:g} s and was ended: if a step takes "
                "so long on this machine, allow more with the environment variable COPIER_SILENT_SECONDS, "
                f"else run it again{quoted(child.tail)}"
            )
        if listener.reader.broken_at is not None:
            raise explain(listener.last_lines(child), None)
        if time.monotonic() > scan:
            scan = time.monotonic() + SCAN_SECONDS
            if (chosen := files.look(ended=False)) is not None:
                return chosen
    cancel.check()
    return None


class _Listener:
    """Passes on as progress events what the child says, and keeps the last state of its progress bar."""

    def __init__(self, reader: LineReader, observer: Observer) -> None:
        self.reader = reader
        self._observer = observer
        self._failed = False
        self._last = ""

    def hear(self, text: str) -> None:
        """One line or state of a progress bar; never fails: the child would wait for its reader forever."""
        self._last = text
        try:
            for event in self.reader.feed(text):
                self._observer(event)
        except Exception:
            if not self._failed:
                self._failed = True
                log.exception("a line of the trainer could not be read: %s", text[:200])

    def last_lines(self, child: Child) -> list[str]:
        """The last lines, and what was said last: a state of the progress bar may tell the reason."""
        lines = child.tail
        return lines if self._last in lines[-1:] else [*lines, self._last]


class _Files:
    """What the script writes: samples and LoRAs on the way are moved out as soon as they are whole."""

    def __init__(
        self,
        job: TrainingJob,
        checkpoint: Header,
        on_sample: SampleSeen | None,
        on_saved: SavedSeen | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.expected: frozenset[Target] | None = expected_targets(job.command, checkpoint)
        self.samples: list[Path] = []
        self.saved: list[Path] = []
        self._lora, self._folder = job.command.output, job.folder
        self._on_sample, self._on_saved = on_sample, on_saved
        self._before: dict[Path, tuple[int, int]] = {}
        self._refused: set[Path] = set()
        self._unseen: list[tuple[Path, int]] = []

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
            if step is None or path == self._lora or path in self._refused or not self._verifies(path):
                continue
            self.saved.append(self._moved(path, "saved"))
            self._unseen.append((self.saved[-1], int(step[1])))
        # All are in safety before the first is judged: that may take longer than the next one needs.
        while self._on_saved and self._unseen:
            saved, number = self._unseen.pop(0)
            if self._on_saved(saved, number):
                return saved
        return None

    def _whole(self, pattern: str, *, ended: bool) -> Iterator[Path]:
        for path in sorted(self._lora.parent.glob(pattern)):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # the script keeps the last few only
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
            self._refused.add(path)
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
    """Copy ``source`` to ``target``, which is whole or absent; they may be on two disks.

    Raises:
        TrainingFailed: it cannot be written there.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(source, target)
    except OSError as error:
        raise TrainingFailed(
            f"the LoRA cannot be written to {str(target)!r} ({error}): free some room, or choose another "
            "folder"
        ) from error
