"""The trainer's own packages and sd-scripts, for the person who installs, looks at or removes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from copier.app.settings import Settings
from copier.errors import BadInput, CopierError
from copier.progress import CancelToken, Observer, ignore
from copier.training.environment import find_overlay, install_environment, remove_environments
from copier.training.interpreter import Interpreter, ask_interpreter
from copier.training.overlay import Overlay, State, folder_size, installed_packages, overlays
from copier.training.scripts_folder import (
    COMMIT,
    RELEASE,
    ScriptsFolder,
    fetch_sd_scripts,
    find_sd_scripts,
)
from copier.training.tagger_model import has_model, usual_place
from copier.training.tagger_packages import INSTALL_TAGGER, find_tagger, install_tagger


@dataclass(frozen=True)
class InstalledOverlay:
    """A folder of packages: which, its bytes, how many packages, and whether the trainer's Python uses it."""

    overlay: Overlay
    size: int
    packages: int
    used: bool


@dataclass(frozen=True)
class TaggerStatus:
    """What tagging pictures needs beside what training needs.

    ``state`` is that of its packages, which are, or would be, in ``overlay`` and take ``size`` bytes;
    ``model`` tells whether the usual model is in ``model_folder``.
    """

    state: State
    overlay: Overlay
    size: int
    model_folder: Path
    model: bool


@dataclass(frozen=True)
class TrainerStatus:
    """What training outside the program's own process has, and what it lacks.

    Attributes:
        interpreter: the Python that trains.
        state: of its packages; None where they cannot be installed for it.
        overlay: where they are, or would be.
        stand_in: whether torchvision is stood in for.
        eight_bit: whether the 8-bit optimisers work.
        overlays: all that are there, for this Python and others.
        tagger: what is there of the tagger's packages; None where they cannot be installed for it.
        sd_scripts: None where it is not there.
        problems: what is missing, and what to do about it, one sentence or two each.
    """

    interpreter: Interpreter
    state: State | None
    overlay: Overlay | None
    stand_in: bool
    eight_bit: bool
    overlays: tuple[InstalledOverlay, ...]
    tagger: TaggerStatus | None
    sd_scripts: ScriptsFolder | None
    problems: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether sd-scripts can train."""
        return self.state is State.CURRENT and self.sd_scripts is not None


def trainer_status(settings: Settings) -> TrainerStatus:
    """What is there; nothing is changed, and no torch is imported.

    Raises:
        BadInput: the Python that the settings name cannot be started.
    """
    interpreter = ask_interpreter(settings.python)
    problems = []
    state, overlay, stamp, cuda_packages, tagger = None, None, None, False, None
    try:
        found = find_overlay(settings.trainer, interpreter)
        state, overlay, stamp = found.state, found.overlay, found.overlay.stamp()
        cuda_packages = bool(interpreter.cuda and found.contents.optional)
        if state is not State.CURRENT:
            problems.append(f"the trainer's packages are {state.value}: run 'copier trainer install'")
        problems += [f"no 8-bit optimisers: {why}" for why in stamp.unusable] if stamp else []
        tagger = _tagger_status(settings, interpreter)
        if tagger.state not in (State.ABSENT, State.CURRENT):
            problems.append(f"the tagger's packages are {tagger.state.value}: run '{INSTALL_TAGGER}'")
    except BadInput as error:
        problems.append(str(error))
    sd_scripts = None
    try:
        sd_scripts = find_sd_scripts(settings.sd_scripts_dir)
        if not sd_scripts.own and sd_scripts.commit not in ("", COMMIT):
            problems.append(
                f"sd-scripts is at {sd_scripts.version}, not at {RELEASE}: run 'copier trainer install'"
            )
    except CopierError as error:
        problems.append(str(error))
    return TrainerStatus(
        interpreter=interpreter,
        state=state,
        overlay=overlay,
        stand_in=stamp is not None and stamp.stand_in,
        eight_bit=cuda_packages and stamp is not None and not stamp.unusable,
        overlays=tuple(
            InstalledOverlay(
                one, folder_size(one.folder), len(installed_packages(one.packages)), used=one == overlay
            )
            for one in overlays(settings.trainer)
        ),
        tagger=tagger,
        sd_scripts=sd_scripts,
        problems=tuple(problems),
    )


def _tagger_status(settings: Settings, interpreter: Interpreter) -> TaggerStatus:
    found, folder = find_tagger(settings.tagger, interpreter), usual_place(settings.tagger_models)
    return TaggerStatus(
        found.state, found.overlay, folder_size(found.overlay.folder), folder, model=has_model(folder)
    )


def install_trainer(
    settings: Settings,
    *,
    tagger: bool = False,
    again: bool = False,
    observer: Observer = ignore,
    cancel: CancelToken | None = None,
) -> tuple[bool, str]:
    """Fetch sd-scripts and install the packages, each where it is missing or stale.

    Returns whether packages were installed, and what was said about sd-scripts. ``tagger``: those of the
    tagger as well; where there are some already, they are kept current in any case. ``again`` installs
    current packages anew.

    Raises:
        BadInput: the Python that the settings name cannot be used.
        InstallFailed: what stands in the way of the packages, with the remedy.
        Cancelled: ``cancel`` was set.
    """
    interpreter = ask_interpreter(settings.python)
    find_overlay(settings.trainer, interpreter)  # refuses a Python that cannot be used, before any download
    said = "" if settings.sd_scripts_dir else fetch_sd_scripts()
    log_path = settings.logs / "install.log"
    installed = install_environment(
        settings.trainer, interpreter, again=again, observer=observer, cancel=cancel, log_path=log_path
    )
    if tagger or find_tagger(settings.tagger, interpreter).state is not State.ABSENT:
        more = install_tagger(
            settings.tagger,
            interpreter,
            trainer=settings.trainer,
            again=again,
            observer=observer,
            cancel=cancel,
            log_path=log_path,
        )
        installed = installed or more
    return installed, said


def remove_trainer(settings: Settings) -> list[tuple[Overlay, int]]:
    """Delete the packages, for every Python; what was deleted, with its bytes.

    sd-scripts stays, and so does the tagger's model.

    Raises:
        InstallFailed: a training uses them, or they are write-protected.
    """
    return [*remove_environments(settings.tagger), *remove_environments(settings.trainer)]
