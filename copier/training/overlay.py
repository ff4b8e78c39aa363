"""An overlay: a folder of packages that comes before the environment of the Python that trains.

``<root>/<Python>-<platform>-<digest>/`` with

- ``packages/``: what ``pip install --target`` made of pinned lists;
- ``tokenizers/``: CLIP's tokenizers, where sd-scripts looks for them (``--tokenizer_cache_dir``);
- ``stamp.json``: what was installed and checked.

The digest is that of the lists, so an overlay of other lists is simply another folder. It gets its name when
it is complete and checked, and deleting it removes everything.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from copier.digest import json_digest
from copier.temporary import replace_file
from copier.training.interpreter import Interpreter

_FORMAT = 1
"""Counted up when overlays are laid out in another way: those that are there are stale then."""
ROOM = 600 << 20
"""Bytes that must be free for the trainer's: 430 MB of packages and 110 MB of wheels (Python 3.11, Linux)."""
_DIGITS = 12
_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==([\w.+!]+)\s*(?:;\s*(\S.*))?")
_STAMP = "stamp.json"


@dataclass(frozen=True)
class Pin:
    """A package in exactly one version; with a ``marker`` only on some platforms."""

    name: str
    version: str
    marker: str = ""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")


@dataclass(frozen=True)
class Contents:
    """What an overlay holds.

    Attributes:
        pins: its packages, all of them.
        modules: must be importable from it.
        optional: modules that may fail: bitsandbytes knows only some builds of CUDA.
        for_training: whether torchvision and the tokenizers are seen to as well.
        beside: the pins of the overlay that these packages complete, and do not work without.
        room: bytes that must be free while they are installed.
    """

    pins: tuple[Pin, ...]
    modules: tuple[str, ...]
    optional: tuple[str, ...] = ()
    for_training: bool = True
    beside: tuple[Pin, ...] = ()
    room: int = ROOM

    @property
    def digest(self) -> str:
        """Of the lists and of the overlay's layout, in hex."""
        beside = [sorted(map(str, self.beside))] if self.beside else []
        return json_digest([_FORMAT, sorted(map(str, self.pins)), *beside])


class State(enum.Enum):
    """What is there for a Python and these contents."""

    ABSENT = "absent"
    CURRENT = "current"
    STALE = "stale"
    """There is only one with other contents."""
    DAMAGED = "damaged"
    """Some of its files have gone."""


@dataclass(frozen=True)
class Stamp:
    """What was installed, and what its check found.

    Attributes:
        digest: of the contents.
        python: version of the Python that it was installed with.
        platform: that Python's.
        torch: version of the torch that it was last checked with.
        torchvision: version of the torchvision that was there then; "" for none.
        stand_in: whether torchvision has to be stood in for.
        unusable: the optional modules that could not be imported.
    """

    digest: str
    python: str
    platform: str
    torch: str
    torchvision: str
    stand_in: bool
    unusable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overlay:
    """An overlay's folder, which need not exist."""

    folder: Path

    @property
    def packages(self) -> Path:
        """Goes on the path of the child that trains."""
        return self.folder / "packages"

    @property
    def tokenizers(self) -> Path:
        """For sd-scripts' ``--tokenizer_cache_dir``."""
        return self.folder / "tokenizers"

    def stamp(self) -> Stamp | None:
        """None where there is none, or an unreadable one."""
        try:
            data = json.loads((self.folder / _STAMP).read_text(encoding="utf-8"))
            return Stamp(**{**data, "unusable": tuple(data["unusable"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def stamped(self) -> int:
        """When its stamp was written, in ns since 1970; 0 without one."""
        try:
            return (self.folder / _STAMP).stat().st_mtime_ns
        except OSError:
            return 0

    def write_stamp(self, stamp: Stamp) -> None:
        """Say what it is and that its check passed; raises OSError."""
        replace_file(self.folder / _STAMP, (json.dumps(asdict(stamp), indent=1) + "\n").encode())


def normal(name: str) -> str:
    """A package's name as the packaging standards compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(text: str) -> tuple[Pin, ...]:
    """The pins of a requirements file that has nothing but pins and comments; else ``ValueError``."""
    pins = []
    for line in map(str.strip, text.splitlines()):
        if line and not line.startswith("#"):
            match = _PIN.fullmatch(line)
            if not match:
                raise ValueError(f"{line!r} is no pin: name==version")
            pins.append(Pin(match[1], match[2], match[3] or ""))
    return tuple(pins)


def overlay_for(root: Path, interpreter: Interpreter, contents: Contents) -> Overlay:
    """Where that Python's overlay with these contents is, or would be, in ``root``."""
    return Overlay(root / f"{interpreter.tag}-{contents.digest[:_DIGITS]}")


def overlays(root: Path) -> list[Overlay]:
    """All overlays in ``root``, for whichever Python, by name; unfinished ones begin with a dot."""
    if not root.is_dir():
        return []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [Overlay(folder) for folder in folders]


def overlays_of(root: Path, interpreter: Interpreter) -> list[Overlay]:
    """Those for this Python's version and platform, with whatever contents."""
    return [one for one in overlays(root) if one.folder.name.rpartition("-")[0] == interpreter.tag]


def state_of(root: Path, interpreter: Interpreter, contents: Contents) -> State:
    """What is there for the Python; folders are looked at, nothing is imported."""
    overlay = overlay_for(root, interpreter, contents)
    if overlay.folder.is_dir():
        stamp = overlay.stamp()
        whole = stamp is not None and stamp.digest == contents.digest
        return State.CURRENT if whole and not missing_packages(overlay, contents) else State.DAMAGED
    return State.STALE if overlays_of(root, interpreter) else State.ABSENT


def installed_packages(folder: Path) -> dict[str, str]:
    """Normal name and version of what pip installed into the folder, by its metadata."""
    found = {}
    for path in folder.glob("*.dist-info"):
        name, _, version = path.name.removesuffix(".dist-info").rpartition("-")
        if (path / "RECORD").is_file():
            found[normal(name)] = version
    return found


def missing_packages(overlay: Overlay, contents: Contents) -> list[str]:
    """Pinned packages that are not there, in any version; those for some platforms only are not asked for."""
    found = installed_packages(overlay.packages)
    return [pin.name for pin in contents.pins if not pin.marker and normal(pin.name) not in found]


def foreign_packages(overlay: Overlay, contents: Contents) -> list[str]:
    """Packages that are there and have no pin: torch would be one."""
    return sorted(set(installed_packages(overlay.packages)) - {normal(pin.name) for pin in contents.pins})


def folder_size(folder: Path) -> int:
    """Bytes in all files below the folder; what vanishes meanwhile counts as nothing."""
    return sum(_sizes(folder))


def _sizes(folder: Path) -> Iterator[int]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(Path(entry.path))
                else:
                    yield entry.stat(follow_symlinks=False).st_size
    except OSError:
        return
