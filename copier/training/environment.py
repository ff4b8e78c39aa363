"""The trainer's own packages: what they are, and what a training child is started with.

The packages that sd-scripts and the builtin trainer need would break a host, which has other versions of most
of them: so they never go into its environment, but into an overlay (``overlay``). torch comes from the
environment of the Python that trains, behind it. One mechanism serves venvs, system Pythons and the
embeddable Python of the WebUIs' Windows packages.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from copier.errors import BadInput, InstallFailed, NotInstalled
from copier.progress import CancelToken, Observer, ignore
from copier.training.interpreter import Interpreter
from copier.training.overlay import (
    Contents,
    Overlay,
    Pin,
    State,
    folder_size,
    overlay_for,
    overlays,
    overlays_of,
    read_pins,
    state_of,
)
from copier.training.overlay_check import STAND_IN, check_overlay
from copier.training.overlay_install import install_overlay, remove_folder, remove_unfinished

log = logging.getLogger(__name__)

SUPPORTED = ("3.10", "3.11", "3.12")
INSTALL_COMMAND = "copier trainer install"
NAME_PYTHON = "--python, or the environment variable COPIER_PYTHON"
_DATA = Path(__file__).with_name("data")

MODULES = (
    *("accelerate", "cv2", "diffusers", "einops", "huggingface_hub", "imagesize", "numpy", "peft"),
    *("PIL.Image", "requests", "safetensors.torch", "tokenizers", "toml", "tqdm", "transformers"),
    "voluptuous",
    # Imported on first use otherwise, and with them what a broken installation lacks.
    *("diffusers.models.autoencoders.autoencoder_kl", "diffusers.schedulers.scheduling_ddpm"),
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    *("transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip"),
)
"""What must be importable from an overlay before it counts."""


@dataclass(frozen=True)
class TrainerEnvironment:
    """What a training child is started with.

    Attributes:
        interpreter: the Python, whose own environment has torch.
        packages: goes first on the child's path, after the stand-in.
        stand_in: goes before it; None where torchvision works.
        tokenizers: for sd-scripts' ``--tokenizer_cache_dir``.
        eight_bit: whether the 8-bit optimisers of bitsandbytes are there.
    """

    interpreter: Interpreter
    packages: Path
    stand_in: Path | None
    tokenizers: Path
    eight_bit: bool

    @property
    def search_path(self) -> tuple[Path, ...]:
        """The folders that come first on the child's path, in this order."""
        return (self.packages,) if self.stand_in is None else (self.stand_in, self.packages)


def contents_for(interpreter: Interpreter) -> Contents:
    """The packages for that Python: bitsandbytes only where torch has CUDA, and a device.

    Raises:
        BadInput: there is no list for its version, or it has no torch.
    """
    if interpreter.minor not in SUPPORTED:
        raise BadInput(
            f"the Python {interpreter.path} is {interpreter.version}, and the trainer's packages are listed "
            f"for {', '.join(SUPPORTED)}: name another Python ({NAME_PYTHON})"
        )
    if not interpreter.torch:
        raise BadInput(
            f"the Python {interpreter.path} has no torch, which the trainer takes from there: name the "
            f"WebUI's Python ({NAME_PYTHON}), or install torch into this one"
        )
    contents = Contents(pins_of("trainer", interpreter.minor), MODULES)
    return _with_cuda(contents, interpreter) if interpreter.cuda else contents


@dataclass(frozen=True)
class Found:
    """The overlay that a Python uses, or would use once it is installed."""

    overlay: Overlay
    contents: Contents
    state: State


def find_overlay(root: Path, interpreter: Interpreter) -> Found:
    """What is there for that Python in ``root``, which holds the overlays; raises as ``contents_for``."""
    contents = contents_for(interpreter)
    found = found_overlay(root, interpreter, contents)
    if found.state is not State.CURRENT and not interpreter.cuda:
        # One that was made when a device was to be seen serves as well.
        other = found_overlay(root, interpreter, _with_cuda(contents, interpreter))
        return other if other.state is State.CURRENT else found
    return found


def require_environment(root: Path, interpreter: Interpreter) -> TrainerEnvironment:
    """What a training child of that Python is started with; ``root`` holds the overlays.

    The check of the installation is repeated, in a child, where the Python has another torch or torchvision
    since.

    Raises:
        NotInstalled: there is no overlay for it, or a stale or damaged one.
        BadInput: the Python cannot be used.
        InstallFailed: the packages do not work with the torch that is there now.
    """
    found = find_overlay(root, interpreter)
    overlay, stamp = found.overlay, found.overlay.stamp()
    if found.state is not State.CURRENT or stamp is None:
        raise NotInstalled(
            f"the trainer's own packages are {found.state.value} for {interpreter.path}: install them with "
            f"'{INSTALL_COMMAND}' (about 400 MB, into a folder of their own)"
        )
    if (stamp.torch, stamp.torchvision) != (interpreter.torch, interpreter.torchvision):
        stamp = check_overlay(overlay, interpreter, found.contents)
        try:
            overlay.write_stamp(stamp)
        except OSError as error:
            log.warning("the check of %s is not remembered: %s", overlay.folder, error)
    return TrainerEnvironment(
        interpreter=interpreter,
        packages=overlay.packages,
        stand_in=STAND_IN if stamp.stand_in else None,
        tokenizers=overlay.tokenizers,
        eight_bit=bool(interpreter.cuda) and bool(found.contents.optional) and not stamp.unusable,
    )


def install_environment(
    root: Path,
    interpreter: Interpreter,
    *,
    again: bool = False,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    log_path: Path | None = None,
) -> bool:
    """Install the packages for that Python, or repair them; whether anything was done.

    A current overlay is left as it is unless ``again``. Overlays of the same Python with other contents, and
    what killed installations left, are removed once the new one is in place.

    Raises:
        BadInput: the Python cannot be used.
        InstallFailed: what stands in the way, with the remedy; what was there is as it was.
        Cancelled: ``cancel`` was set; likewise.
    """
    found = find_overlay(root, interpreter)
    return install_found(
        root, interpreter, found, again=again, observer=observer, cancel=cancel, log_path=log_path
    )


def install_found(
    root: Path,
    interpreter: Interpreter,
    found: Found,
    *,
    again: bool = False,
    behind: Sequence[Path] = (),
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
    log_path: Path | None = None,
) -> bool:
    """As ``install_environment``, for the overlay that was ``found``; ``behind`` as ``install_overlay``."""
    if found.state is State.CURRENT and not again:
        return False
    overlay = install_overlay(
        root,
        interpreter,
        found.contents,
        behind=behind,
        observer=observer,
        cancel=cancel,
        log_path=log_path,
    )
    for other in overlays_of(root, interpreter):
        if other != overlay and not remove_folder(other.folder):
            log.warning("%s is in use and stays: 'copier trainer remove' deletes it later", other.folder)
    return True


def remove_environments(root: Path) -> list[tuple[Overlay, int]]:
    """Delete all overlays and what killed installations left; the overlays with their bytes.

    Raises:
        InstallFailed: an overlay is in use (on Windows), or write-protected.
    """
    removed = []
    for overlay in overlays(root):
        size = folder_size(overlay.folder)
        if not remove_folder(overlay.folder):
            raise InstallFailed(
                f"{overlay.folder} cannot be deleted: end the training that uses it, or allow writing "
                "there, and try again"
            )
        removed.append((overlay, size))
    remove_unfinished(root)
    return removed


def found_overlay(root: Path, interpreter: Interpreter, contents: Contents) -> Found:
    """What is there of these contents for that Python in ``root``."""
    overlay = overlay_for(root, interpreter, contents)
    return Found(overlay, contents, state_of(root, interpreter, contents))


def _with_cuda(contents: Contents, interpreter: Interpreter) -> Contents:
    pins = (*contents.pins, *pins_of("cuda", interpreter.minor))
    return Contents(pins, contents.modules, optional=("bitsandbytes",))


def pins_of(name: str, minor: str) -> tuple[Pin, ...]:
    """The list ``name`` of packages for that version of Python, one of ``SUPPORTED``."""
    return read_pins((_DATA / f"{name}-{minor}.txt").read_text(encoding="utf-8"))
