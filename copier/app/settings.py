"""Where the program keeps its own files: presets, cache, overlay; outside any extension's folder.

And what the environment says about the rest: which Python trains, and with which sd-scripts.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from copier.errors import BadInput


def _path_in(variable: str) -> Path | None:
    """The path that an environment variable holds; None where it is not set, or empty."""
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser() if chosen else None


def default_data_folder() -> Path:
    """``COPIER_DATA``, or the platform's folder for application data."""
    chosen = _path_in("COPIER_DATA")
    if chosen:
        return chosen
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "copier"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "copier"
    # Set but empty counts as not set (XDG Base Directory Specification).
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "copier"


def own_sd_scripts() -> Path | None:
    """``COPIER_SD_SCRIPTS_DIR``: a folder of the user's own in place of the submodule."""
    return _path_in("COPIER_SD_SCRIPTS_DIR")


def accelerate_config() -> Path | None:
    """``COPIER_ACCELERATE_CONFIG``: a configuration of accelerate, for several GPUs or machines."""
    return _path_in("COPIER_ACCELERATE_CONFIG")


def silent_seconds() -> float | None:
    """``COPIER_SILENT_SECONDS``: how long a trainer may say nothing; None: what sd-scripts usually needs."""
    chosen = os.environ.get("COPIER_SILENT_SECONDS")
    if not chosen:
        return None
    try:
        return float(chosen)
    except ValueError:
        raise BadInput(f"COPIER_SILENT_SECONDS is {chosen!r}: give a number of seconds") from None


def trainer_python() -> str:
    """``COPIER_PYTHON``, or the Python that runs this."""
    return os.environ.get("COPIER_PYTHON") or sys.executable


def checkpoint_folders() -> tuple[Path, ...]:
    """``COPIER_CHECKPOINTS``: folders of checkpoints, as PATH has them, for use without a WebUI."""
    chosen = os.environ.get("COPIER_CHECKPOINTS", "")
    return tuple(Path(one).expanduser() for one in chosen.split(os.pathsep) if one)


def own_loras() -> Path | None:
    """``COPIER_LORAS``: the folder into which LoRAs are installed, for use without a WebUI."""
    return _path_in("COPIER_LORAS")


def own_output() -> Path | None:
    """``COPIER_OUTPUT``: the folder of runs and pictures, for use without a WebUI."""
    return _path_in("COPIER_OUTPUT")


@dataclass(frozen=True)
class Settings:
    """The data directory and what lies in it; the Python that trains, and a folder of sd-scripts.

    Without ``sd_scripts_dir`` the extension's submodule counts; without ``accelerate`` sd-scripts trains on
    one device. ``checkpoints``, ``own_loras`` and ``own_output`` count where there is no WebUI, which has
    such folders itself.
    """

    data: Path
    python: str = field(default_factory=trainer_python)
    sd_scripts_dir: Path | None = field(default_factory=own_sd_scripts)
    accelerate: Path | None = field(default_factory=accelerate_config)
    silent_seconds: float | None = field(default_factory=silent_seconds)
    checkpoints: tuple[Path, ...] = field(default_factory=checkpoint_folders)
    own_loras: Path | None = field(default_factory=own_loras)
    own_output: Path | None = field(default_factory=own_output)

    @property
    def loras(self) -> Path:
        """Where LoRAs are installed, without a WebUI."""
        return self.own_loras or self.data / "loras"

    @property
    def output(self) -> Path:
        """Where runs and pictures go, without a WebUI."""
        return self.own_output or self.data / "output"

    @property
    def stages(self) -> Path:
        """The store of finished stages."""
        return self.data / "stages"

    @property
    def jobs(self) -> Path:
        """The queue and the history of jobs."""
        return self.data / "jobs"

    @property
    def presets(self) -> Path:
        """The user's own recipes."""
        return self.data / "presets"

    @property
    def digests(self) -> Path:
        """Remembered digests of big files."""
        return self.data / "digests.jsonl"

    @property
    def tokenizer(self) -> Path:
        """CLIP's vocabulary, unpacked."""
        return self.data / "tokenizer"

    @property
    def trainer(self) -> Path:
        """The trainer's own packages, a folder for each Python version."""
        return self.data / "trainer"

    @property
    def tagger(self) -> Path:
        """The tagger's packages, which complete the trainer's, a folder for each Python version."""
        return self.data / "tagger" / "packages"

    @property
    def tagger_models(self) -> Path:
        """Models of taggers, a folder each."""
        return self.data / "tagger" / "models"

    @property
    def pictures(self) -> Path:
        """Pictures that the tab was given, until a run has taken them over."""
        return self.data / "pictures"

    @property
    def captions(self) -> Path:
        """Captions that were written in the tab, a folder of caption files for each table of them."""
        return self.data / "captions"

    @property
    def logs(self) -> Path:
        """Logs of the worker child and of installations."""
        return self.data / "logs"
