"""Where the program keeps its own files: presets, cache, overlay; outside any extension's folder.

And what the environment says about the rest: which Python trains, and with which sd-scripts.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path


def default_data_folder() -> Path:
    """``COPIER_DATA``, or the platform's folder for application data."""
    chosen = os.environ.get("COPIER_DATA")
    if chosen:
        return Path(chosen).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "copier"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "copier"
    # Set but empty counts as not set (XDG Base Directory Specification).
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "copier"


def own_sd_scripts() -> Path | None:
    """``COPIER_SD_SCRIPTS_DIR``: a folder of the user's own in place of the submodule."""
    chosen = os.environ.get("COPIER_SD_SCRIPTS_DIR")
    return Path(chosen).expanduser() if chosen else None


def accelerate_config() -> Path | None:
    """``COPIER_ACCELERATE_CONFIG``: a configuration of accelerate, for several GPUs or machines."""
    chosen = os.environ.get("COPIER_ACCELERATE_CONFIG")
    return Path(chosen).expanduser() if chosen else None


def trainer_python() -> str:
    """``COPIER_PYTHON``, or the Python that runs this."""
    return os.environ.get("COPIER_PYTHON") or sys.executable


@dataclass(frozen=True)
class Settings:
    """The data directory and what lies in it; the Python that trains, and a folder of sd-scripts.

    Without ``sd_scripts_dir`` the extension's submodule counts; without ``accelerate`` sd-scripts trains on
    one device.
    """

    data: Path
    python: str = field(default_factory=trainer_python)
    sd_scripts_dir: Path | None = field(default_factory=own_sd_scripts)
    accelerate: Path | None = field(default_factory=accelerate_config)

    @property
    def stages(self) -> Path:
        """The store of finished stages."""
        return self.data / "stages"

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
    def logs(self) -> Path:
        """Logs of the worker child and of installations."""
        return self.data / "logs"
