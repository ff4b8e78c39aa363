"""What sd-scripts prints, understood: a line in, progress or a phase out; and a failure from its last lines.

Pure. Lines come from both of its outputs: the progress bar (tqdm's) from standard error, each of its states
a line of its own, the rest, with ``--console_log_simple``, from standard output. The wordings are those of
sd-scripts v0.10.1 and of the libraries that it uses. tqdm changes its bar by the environment
variables ``TQDM_...``, and older ones cut it by ``COLUMNS``: a child that is read should inherit neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from copier.errors import BadCheckpoint, BadInput, BadPicture, CopierError, OutOfMemory, TrainingFailed
from copier.progress import ProgressEvent
from copier.recipe import TrainingSpec
from copier.training.memory import savings
from copier.training.process import describe_exit, quoted


class Phase(str, Enum):
    """What sd-scripts is doing; the values are for people."""

    STARTING = "starting"
    LOADING = "loading the checkpoint"
    LATENTS = "caching latents"
    CAPTIONS = "caching captions"
    MERGING = "merging base LoRAs"
    PREPARING = "preparing the training"
    TRAINING = "training"
    SAMPLING = "drawing samples"
    SAVING = "saving"


_PHASES = (
    ("loading model for process", Phase.LOADING),
    ("caching latents with caching strategy", Phase.LATENTS),
    ("caching Text Encoder outputs with caching strategy", Phase.CAPTIONS),
    ("merging module: ", Phase.MERGING),
    ("prepare optimizer, data loader etc.", Phase.PREPARING),
    ("running training / ", Phase.TRAINING),
    ("generating sample images at step", Phase.SAMPLING),
    ("saving checkpoint: ", Phase.SAVING),
)
"""Words of a line that begin a phase."""

_BAR = re.compile(
    # Not the bar of a validation, which ends its name with the same word.
    r"(?<!validation )steps: +\d+%\|[^|]*\| *(?P<step>\d+)/(?P<steps>\d+) "
    r"\[[^<\]]*<[^,\]]*, *(?P<rate>[\d.]+|\?) ?(?P<unit>s/it|it/s)(?P<more>[^\]]*\])?"
)
_LOSS = re.compile(r"avr_loss=(?P<loss>-?(\d[\d.]*(e[+-]?\d+)?|nan|inf))[,\]]")


@dataclass(frozen=True)
class BarState:
    """One state of the progress bar: steps done of all, the mean loss of the last epoch, seconds a step.

    ``loss`` is None before the first one, and may be no finite number; ``rate`` is None until known.
    """

    step: int
    steps: int
    loss: float | None
    rate: float | None


def bar_state(line: str) -> BarState | None:
    """The last state of the progress bar in ``line``; None where there is none.

    Several states, or a state and other text, may be glued together; one that is cut off has no loss.
    """
    states = list(_BAR.finditer(line))
    if not states:
        return None
    match = states[-1]
    loss = _LOSS.search(match["more"] or "")
    return BarState(
        step=int(match["step"]),
        steps=int(match["steps"]),
        loss=float(loss["loss"]) if loss else None,
        rate=_seconds(match["rate"], match["unit"]),
    )


def phase_of(line: str) -> Phase | None:
    """The phase that begins with ``line``; None of any other line."""
    return next((phase for words, phase in _PHASES if words in line), None)


class LogReader:
    """Makes progress events of the lines, one after the other.

    tqdm shows each step twice, first with the loss of the step before: the last event of a step has its
    loss. An event without a message is a step; one with a message begins a phase. A loss that is not a
    number is told once, and is None in events; ``broken_at`` is then the step at which it appeared.
    """

    def __init__(self, stage: str, steps: int) -> None:
        """
        Args:
            stage: the name that the events bear.
            steps: of the training, until the bar says how many there are.
        """
        self._stage = stage
        self._last = BarState(0, steps, None, None)
        self.phase = Phase.STARTING
        self.broken_at: int | None = None

    def feed(self, line: str) -> tuple[ProgressEvent, ...]:
        """The events of one line, mostly none."""
        found = []
        state = bar_state(line)
        if state is not None:
            if state.step > self._last.step and self.phase is not Phase.TRAINING:
                self.phase = Phase.TRAINING
            if state != self._last:
                self._last = state
                found.append(self._event())
            if state.loss is not None and not math.isfinite(state.loss) and self.broken_at is None:
                self.broken_at = state.step
                found.append(self._event(f"the loss is {state.loss} at step {state.step}"))
        phase = phase_of(line)
        if phase is not None and phase is not self.phase:
            self.phase = phase
            found.append(self._event(phase.value))
        return tuple(found)

    def _event(self, message: str = "") -> ProgressEvent:
        state = self._last
        loss = state.loss if state.loss is not None and math.isfinite(state.loss) else None
        return ProgressEvent(self._stage, state.step, state.steps, loss, state.rate, message)


@dataclass(frozen=True)
class Failure:
    """A pattern of a line, and what it means.

    ``text`` is the message and its remedy; it may use the pattern's groups, and ``{lower}`` for the
    settings that save memory. A ``vague`` one counts only where no line says more.
    """

    name: str
    pattern: re.Pattern[str]
    error: type[CopierError]
    text: str
    vague: bool = False


def _failure(
    name: str, pattern: str, error: type[CopierError], text: str, *, vague: bool = False
) -> Failure:
    return Failure(name, re.compile(pattern), error, text, vague)


_AGAIN = "install the trainer's packages again (copier trainer install)"

FAILURES: tuple[Failure, ...] = (
    _failure(
        "card memory",
        r"CUDA out of memory|OutOfMemoryError|(HIP|MPS backend) out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        OutOfMemory,
        "the graphics card's memory did not suffice: close other programs that use it, then {lower}",
    ),
    _failure(
        "main memory",
        r"DefaultCPUAllocator|^MemoryError|bad_alloc|\[WinError 1455\]|Cannot allocate memory",
        TrainingFailed,
        "the main memory (RAM) did not suffice: close other programs, unload the WebUI's own checkpoint, or "
        "enlarge the swap or page file",
    ),
    _failure(
        "latents without numbers",
        r"NaN detected in latents: (?P<path>.+)|NaN found in latents",
        TrainingFailed,
        "the checkpoint's autoencoder makes no numbers of a picture: give another autoencoder (VAE) file",
    ),
    _failure(
        "loss without number",
        r"avr_loss=(?P<loss>-?nan|-?inf)",
        TrainingFailed,
        "the loss became {loss}: lower the learning rate, or train in another precision: "
        "--set training.precision=bf16 or fp32",
    ),
    _failure(
        "no pictures",
        r"No data found\. Please verify arguments",
        BadPicture,
        "sd-scripts found no picture in its folder: were the copies of the pictures removed? Run it again",
    ),
    _failure(
        "8-bit optimiser",
        r"ImportError: No bitsandbytes|No module named 'bitsandbytes'",
        TrainingFailed,
        "adamw8bit needs the package bitsandbytes, which is not there: --set training.optimiser=adamw, or "
        + _AGAIN,
    ),
    _failure(
        "missing module",
        # Triton is optional: torch and diffusers tell of its absence and go on.
        r"ModuleNotFoundError: No module named '(?P<module>(?!triton)[^']+)'",
        TrainingFailed,
        f"the trainer's Python lacks the package {{module}}: {_AGAIN}",
    ),
    _failure(
        "torchvision",
        r"operator torchvision::nms does not exist",
        TrainingFailed,
        f"torchvision does not fit torch: install the pair that belongs together, or {_AGAIN}, which "
        "stands in for it",
    ),
    _failure(
        "hub",
        r"We couldn't connect to 'https://huggingface\.co'|Can't load tokenizer for|OfflineModeIsEnabled"
        r"|LocalEntryNotFoundError|outgoing traffic has been disabled|Max retries exceeded with url",
        TrainingFailed,
        f"a file is missing here that sd-scripts would download, and nothing is downloaded: {_AGAIN}, which "
        "brings the tokenizers",
    ),
    _failure(
        "no such checkpoint",
        r"neither a valid local path nor a valid repo id",
        BadCheckpoint,
        "the checkpoint's file is gone: was it moved or renamed while the run waited? Give its path again",
    ),
    _failure(
        "damaged checkpoint",
        r"MetadataIncompleteBuffer|SafetensorError: Error while deserializing header|HeaderTooLarge"
        r"|InvalidHeaderDeserialization|PytorchStreamReader failed",
        BadCheckpoint,
        "the checkpoint's file (or a LoRA's) is cut off or damaged: copy or download it again",
    ),
    _failure(
        "start of another shape",
        r"Error\(s\) in loading state_dict for LoRANetwork",
        BadInput,
        "the LoRA to start from has another rank than the training: give both the same rank and conv_rank",
    ),
    _failure(
        "wrong family",
        r"KeyError: '[\w.]+\.(weight|bias|alpha)'|Error\(s\) in loading state_dict for \w+",
        BadCheckpoint,
        "the checkpoint has not the weights of its family: it may be a U-Net alone, a LoRA or of another "
        "family; `copier inspect` says what it is",
    ),
    _failure(
        "empty caption file",
        r"caption file is empty / \S+: (?P<path>.+)",
        BadInput,
        "the caption file {path} is empty: write an empty line into it, or delete it",
    ),
    _failure(
        "unreadable picture",
        r"(Error loading file: |cannot identify image file )(?P<path>.+)",
        BadPicture,
        "the picture {path} cannot be read to its end: save it again, as PNG",
    ),
    _failure(
        # sd-scripts takes a picture that it cannot read for one of 0 x 0 px, and divides by its height.
        "picture without size",
        r"^ZeroDivisionError|image file is truncated",
        BadPicture,
        "a picture cannot be read: save all of them again, as PNG",
        vague=True,
    ),
    _failure(
        "disk full",
        r"No space left on device|\[WinError 112\]|os error 28",
        TrainingFailed,
        "the disk is full: make room, for instance with `copier cache`, and run it again",
    ),
    _failure(
        "broken pipe",
        r"BrokenPipeError|\[Errno 32\]",
        TrainingFailed,
        "nobody read what the trainer printed: the program that started it had ended; run it again",
    ),
    _failure(
        "arguments",
        r"error: (?P<complaint>unrecognized arguments: .+|argument .+)",
        BadInput,
        "sd-scripts does not take its arguments ({complaint}): leave out the extra argument; without any, "
        "its version is not the one that this program brings",
    ),
    _failure(
        "dataset",
        r"voluptuous\.error\.\w+: (?P<complaint>.+)",
        TrainingFailed,
        "sd-scripts does not take the dataset's description ({complaint}): its version is not the one that "
        "this program brings; remove the environment variable COPIER_SD_SCRIPTS_DIR, or empty the WebUI's "
        "setting of that folder",
    ),
    _failure(
        "no bf16",
        r"bf16 mixed precision requires",
        BadInput,
        "this card has no bf16: --set training.precision=fp16",
    ),
    _failure(
        "no card",
        r"fp16 mixed precision requires a GPU|no CUDA-capable device|CUDA driver version is insufficient"
        r"|no kernel image is available",
        BadInput,
        "torch finds no graphics card that it can use: update the card's driver or torch, or train on the "
        "processor with --set training.precision=fp32",
    ),
)
"""Patterns of lines; of one line the first that fits counts."""

KILLED = (-9, 137)
"""SIGKILL, as Popen and as a shell tell it."""
_CRASHED = (-11, 139, -7, 135, 0xC0000005)
"""A segmentation or bus error, and Windows' access violation."""


def failure_in(
    lines: Sequence[str], table: Sequence[Failure] = FAILURES
) -> tuple[Failure, re.Match[str]] | None:
    """What the last line with a known pattern says, one that is not vague before others; None without any.

    The last, because libraries print tracebacks of what they can do without, and go on.
    """
    vague = None
    for line in reversed(lines):
        for failure in table:
            match = failure.pattern.search(line)
            if match and not failure.vague:
                return failure, match
            if match and vague is None:
                vague = failure, match
    return vague


def explain(lines: Sequence[str], exit_code: int | None, training: TrainingSpec) -> CopierError:
    """The error of a training that ended without a LoRA, with a remedy and the last lines.

    To be asked whatever the exit code was: without a picture sd-scripts ends with 0.

    Args:
        lines: the last that it printed on both outputs, the oldest first, states of the bar among them.
        exit_code: negative for a signal; None where it was ended because it no longer answered.
        training: names the settings to lower where the memory did not suffice.
    """
    last = quoted([line for line in lines if bar_state(line) is None])
    found = failure_in(lines)
    if found is not None:
        failure, match = found
        settings = savings(training)
        text = failure.text.format(**match.groupdict(), lower=_lower(settings)) + last
        return OutOfMemory(text, settings) if failure.error is OutOfMemory else failure.error(text)
    if exit_code in KILLED:
        return TrainingFailed(
            "the system ended sd-scripts, probably because the main memory (RAM) did not suffice: close "
            f"other programs, unload the WebUI's own checkpoint, or enlarge the swap or page file{last}"
        )
    if exit_code in _CRASHED:
        return TrainingFailed(
            f"sd-scripts {describe_exit(exit_code)}, a fault in torch or a driver: update the card's driver, "
            f"then {_AGAIN}{last}"
        )
    if exit_code is None:
        return TrainingFailed(
            "sd-scripts printed nothing for too long and was ended: another program may hold the card, or "
            f"the disk be slow; run it again, or allow more with COPIER_SILENT_SECONDS{last}"
        )
    if exit_code == 0:
        return TrainingFailed(
            "sd-scripts ended without an error and without a LoRA: run it again; if it happens again, its "
            f"log says more{last}"
        )
    return TrainingFailed(
        f"sd-scripts {describe_exit(exit_code)}: run it again; if it happens again, its log says more{last}"
    )


def _lower(settings: Sequence[str]) -> str:
    if not settings:
        return "use smaller pictures"
    listed = ", ".join(f"--set {one}" for one in settings)
    scaled = " (scale picture files to that first)" if "training.resolution=" in listed else ""
    return f"lower these, one after the other until it fits: {listed}{scaled}"


def _seconds(rate: str, unit: str) -> float | None:
    if rate == "?" or float(rate) == 0.0:
        return None
    return float(rate) if unit == "s/it" else 1.0 / float(rate)
