"""Where the program keeps its own files: presets, cache, overlay; outside any extension's folder."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Settings:
    """The data directory and what lies in it."""

    data: Path

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
    def logs(self) -> Path:
        """Logs of the worker child."""
        return self.data / "logs"
