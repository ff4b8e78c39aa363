"""What checkpoint files are, by their headers; each is looked into once a size and time."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from copier.app.ports import CheckpointInfo
from copier.app.settings import Settings
from copier.checkpoint.family import Family, Kind, detect
from copier.checkpoint.header import read_header
from copier.digest import DigestMemory
from copier.errors import CopierError

ENDING = ".safetensors"
_VAE_KEYS = ("first_stage_model.", "encoder.conv_in.")
_TITLE_KEY = "modelspec.title"


@dataclass(frozen=True)
class Identity:
    """The family as ``CheckpointInfo`` has it; whether it is an autoencoder alone; its title, or ""."""

    family: str = Family.UNKNOWN.value
    vae: bool = False
    title: str = ""


class KnownFiles:
    """Remembers identities by size and time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[Path, tuple[tuple[int, int], Identity]] = {}

    def identity(self, path: Path) -> Identity:
        """Of the file; that of an unknown one for what cannot be read."""
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if path not in self._known or self._known[path][0] != stamp:
                self._known[path] = (stamp, _read(path))
            return self._known[path][1]
        except (OSError, CopierError):
            return Identity()

    def described(self, path: Path, *, name: str = "", sha256: str = "", embedded: bool) -> CheckpointInfo:
        """The file as a host offers it; without ``sha256`` the one that was computed before, if any."""
        digest = sha256
        if not digest:
            with contextlib.suppress(OSError):
                digest = DigestMemory(self._settings.digests, write=False).known(path) or ""
        return CheckpointInfo(path, name or path.stem, digest, self.identity(path).family, embedded=embedded)


def tensors_in(folder: Path) -> list[Path]:
    """The ``.safetensors`` files in ``folder`` and below it, by name."""
    # Not rglob: it fails where a folder goes while it looks.
    names = ((place, name) for place, _, files in os.walk(folder) for name in files)
    found = (Path(place, name) for place, name in names if name.endswith(ENDING) and name[:1] != ".")
    return sorted(filter(Path.is_file, found), key=lambda path: (path.name.casefold(), str(path)))


def _read(path: Path) -> Identity:
    if path.suffix.casefold() != ENDING:
        return Identity()
    header = read_header(path)
    found = detect(header)
    alone = found.kind is Kind.OTHER and any(key.startswith(_VAE_KEYS) for key in header.tensors)
    return Identity(found.family.value, alone, header.metadata.get(_TITLE_KEY, ""))
