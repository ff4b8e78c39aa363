"""What sd-scripts' WD14 tagger prints, understood: progress from a line, a failure from the last ones.

Pure. The wordings are those of v0.10.1's ``tag_images_by_wd14_tagger.py``, onnx, onnxruntime and
huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from copier.errors import BadInput, CopierError, InstallFailed, NotInstalled, TaggingFailed
from copier.progress import ProgressEvent
from copier.training.kohya_log import KILLED, Failure, failure_in
from copier.training.process import describe_exit, quoted
from copier.training.tagger_model import MODEL, REPOSITORY, TAGS
from copier.training.tagger_packages import INSTALL_TAGGER

STAGE = "tag"
_BAR = re.compile(r"\s*\d+%\|[^|]*\| *(?P<step>\d+)/(?P<steps>\d+) \[")
"""The bar over the pictures has no name before it; those of downloads have."""
_PHASES = (
    ("downloading wd14 tagger model from hf_hub", "downloading the tagger's model"),
    ("loading onnx model: ", "loading the tagger's model"),
)


def events_of(line: str) -> tuple[ProgressEvent, ...]:
    """The events of one line, or state of the progress bar; mostly none."""
    if bar := _BAR.match(line):
        return (ProgressEvent(STAGE, int(bar["step"]), int(bar["steps"])),)
    return tuple(ProgressEvent(STAGE, message=said) for words, said in _PHASES if words in line)


def _failure(name: str, pattern: str, error: type[CopierError], text: str) -> Failure:
    return Failure(name, re.compile(pattern), error, text)


FAILURES = (
    _failure(
        "tagger's package",
        r"No module named '(?P<module>onnx|onnxruntime|google|ml_dtypes|flatbuffers)\b",
        NotInstalled,
        f"the tagger's package {{module}} is missing: install it with '{INSTALL_TAGGER} --again'",
    ),
    _failure(
        "package",
        r"ModuleNotFoundError: No module named '(?P<module>(?!triton)[^']+)'",
        NotInstalled,
        "the trainer's package {module} is missing: install it with 'copier trainer install --again'",
    ),
    _failure(
        "damaged model",
        r"DecodeError|[Pp]rotobuf parsing failed|INVALID_PROTOBUF",
        BadInput,
        f"the tagger's {MODEL} is cut off or damaged, or no model: copy or download it again",
    ),
    _failure(
        "another shape",
        r"Got invalid (dimensions|rank) for input|Unexpected input data type",
        BadInput,
        f"the tagger's {MODEL} takes no single pictures of 448 x 448 px: take another WD14 tagger",
    ),
    _failure(
        "model",
        r"onnxruntime_pybind11_state\.(?P<kind>\w+)",
        BadInput,
        f"onnxruntime cannot run the tagger's {MODEL} ({{kind}}): take another WD14 tagger",
    ),
    _failure(
        "hub",
        r"ConnectionError|ConnectTimeout|ProxyError|Max retries exceeded|OfflineModeIsEnabled"
        r"|LocalEntryNotFoundError|HfHubHTTPError|RepositoryNotFoundError|HTTPError|EntryNotFoundError",
        InstallFailed,
        f"the tagger's model {REPOSITORY} could not be downloaded: check the network and the proxy, or fetch "
        f"{MODEL} and {TAGS} on another machine and name their folder with --model",
    ),
    _failure(
        "memory",
        r"DefaultCPUAllocator|^MemoryError|bad_alloc|Failed to allocate memory|Cannot allocate memory",
        TaggingFailed,
        "the memory did not suffice for the tagger: close other programs and run it again",
    ),
    _failure(
        "disk full",
        r"No space left on device|\[WinError 112\]|os error 28",
        TaggingFailed,
        "the disk is full: free some room, or choose another data directory (--data)",
    ),
    _failure(
        "arguments",
        r"error: (?P<complaint>unrecognized arguments: .+|argument .+)",
        TaggingFailed,
        "the tagger of sd-scripts does not take its arguments ({complaint}): its version is not the one that "
        "this program brings",
    ),
)
"""Patterns of lines; of one line the first that fits counts."""


def explain(lines: Sequence[str], exit_code: int | None) -> CopierError:
    """The error of a tagger that ended without tags for every picture, with a remedy and the last lines.

    ``lines`` are the last that it printed on both outputs, the oldest first; ``exit_code`` is negative for a
    signal.
    """
    last = quoted([line for line in lines if not _BAR.match(line)])
    found = failure_in(lines, FAILURES)
    if found is not None:
        failure, match = found
        return failure.error(failure.text.format(**match.groupdict()) + last)
    if exit_code in KILLED:
        return TaggingFailed(
            "the system ended the tagger, probably because the memory did not suffice: close other programs "
            f"and run it again{last}"
        )
    how = "ended without tags for every picture" if exit_code == 0 else describe_exit(exit_code)
    return TaggingFailed(f"the tagger {how}: run it again; if it happens again, its log says more{last}")
