"""What the program asks of the host that it runs in: A1111, Forge, or none (``host/standalone.py``).

Front ends and jobs know a host by ``HostServices`` alone. Nothing here imports anything heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from copier.captioning import Captioner
from copier.errors import BadInput
from copier.fields import (
    GUIDANCE,
    LARGEST_SIDE,
    SAMPLING_STEPS,
    SEED,
    check_number,
    check_text,
)
from copier.model_options import AS_IT_IS, ModelOptions
from copier.progress import CancelToken, Observer

MOST_DRAWN = 16
"""Pictures of one request to a host: a gallery to choose an original from, not a production."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint (or VAE) that the host offers.

    Attributes:
        path: the file.
        name: how the host calls it in its lists.
        sha256: in hex; "" until it is known. Nothing is hashed to fill it.
        family: as ``copier.checkpoint.family.Family`` spells it, told from the file's keys; "unknown" for
            what cannot be read.
        embedded: the pocket checkpoint that comes with the program.
    """

    path: Path
    name: str
    sha256: str = ""
    family: str = "unknown"
    embedded: bool = False


@dataclass(frozen=True)
class Folders:
    """The host's folders; those of ``checkpoints`` and ``vaes`` may be several, or none."""

    loras: Path
    output: Path
    data: Path
    checkpoints: tuple[Path, ...] = ()
    vaes: tuple[Path, ...] = ()

    @property
    def every(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.loras, self.output, self.data, *self.checkpoints, *self.vaes)


@dataclass(frozen=True)
class Security:
    """Who can reach the host.

    ``shared``: through a public link; ``listening``: from the network; ``insecure_access``: the host was
    started with its flag that allows others to do what they like (``--enable-insecure-extension-access``);
    ``hidden_folders``: with the one that keeps folders from everybody (``--hide-ui-dir-config``).
    """

    shared: bool = False
    listening: bool = False
    insecure_access: bool = False
    hidden_folders: bool = False

    @property
    def restricted(self) -> bool:
        """Whether strangers may sit at the page: nothing is then run or installed that they name."""
        return (self.shared or self.listening) and not self.insecure_access

    @property
    def keeps_paths(self) -> bool:
        """Whether paths are kept to the host's folders."""
        return self.restricted or self.hidden_folders


THIS_MACHINE = Security()
"""Nobody but who sits at this machine."""


@dataclass(frozen=True)
class GenerateRequest:
    """Pictures to be drawn by the host: ``count`` of them, seeds counting up from ``seed``.

    Attributes:
        sampler: one of ``HostServices.samplers``; "": the host's first.
        width, height: in pixels, multiples of 64; 0: what the checkpoint is used to.
        guidance: CFG scale.
        loras: files and weights.
        checkpoint: None: the host's current one.
        model: an autoencoder of its own, clip skip and the like, where the host can.

    Raises on construction:
        BadInput: a number is out of bounds, or a prompt that no file can hold.
    """

    prompt: str
    negative: str = ""
    seed: int = 1
    count: int = 1
    sampler: str = ""
    steps: int = 20
    width: int = 0
    height: int = 0
    guidance: float = 7.0
    loras: tuple[tuple[Path, float], ...] = ()
    checkpoint: Path | None = None
    model: ModelOptions = AS_IT_IS

    def __post_init__(self) -> None:
        check_text("the prompt", self.prompt)
        check_text("the negative prompt", self.negative)
        for name, value in (("width", self.width), ("height", self.height)):
            if value % 64 or not 0 <= value <= LARGEST_SIDE:
                raise BadInput(
                    f"the {name} is {value} px: it must be a multiple of 64, as 128 or 512 are, and at most "
                    f"{LARGEST_SIDE}; 0 takes the checkpoint's own"
                )
        if not 1 <= self.count <= MOST_DRAWN:
            raise BadInput(f"the number of pictures is {self.count}: give 1 to {MOST_DRAWN}")
        check_number("the number of sampling steps", self.steps, SAMPLING_STEPS)
        check_number("the guidance", self.guidance, GUIDANCE)
        check_number("the seed", self.seed, SEED)
        check_number("the last picture's seed", self.seed + self.count - 1, SEED)


@dataclass(frozen=True)
class GeneratedPicture:
    """One picture: a PNG file in the data or output folder, and the parameters that it carries as text."""

    path: Path
    seed: int
    infotext: str = ""


class HostServices(Protocol):
    """A host. Every method may be called from any thread; none is called at import time."""

    @property
    def name(self) -> str:
        """What people call it: "A1111", "Forge", "standalone"."""

    def folders(self) -> Folders:
        """Where LoRAs, checkpoints, pictures and the program's own files are."""

    def security(self) -> Security:
        """Who can reach it."""

    def current_checkpoint(self) -> CheckpointInfo | None:
        """The one that is chosen in the host, loaded or not; None where there is none. Never loads it."""

    def checkpoints(self) -> Sequence[CheckpointInfo]:
        """Those that can be chosen, in the host's order."""

    def choose_checkpoint(self, path: Path) -> None:
        """Make one of ``checkpoints`` the current one; does not load it.

        Raises:
            UnknownName: it is none of them.
        """

    def vaes(self) -> Sequence[CheckpointInfo]:
        """Autoencoders that can stand in for a checkpoint's own."""

    def loras(self) -> Sequence[Path]:
        """The LoRA files in the LoRA folder and below it, by name."""

    def samplers(self) -> Sequence[str]:
        """Names of samplers, the usual one first."""

    def generate(
        self, request: GenerateRequest, observer: Observer, cancel: CancelToken
    ) -> Sequence[GeneratedPicture]:
        """Draw pictures; they stay until someone deletes them.

        Raises:
            CopierError: the request cannot be met, or drawing failed; ``Cancelled`` where ``cancel`` was set.
        """

    def released(self) -> AbstractContextManager[None]:
        """While the block runs the host holds no model in memory; afterwards it works as before.

        Waits until a generation that runs has ended. Blocks that nest count as one.
        """

    def refresh(self) -> None:
        """Read the lists of checkpoints, VAEs and LoRAs anew: a LoRA was installed."""

    def interrupt(self) -> None:
        """Stop what the host draws for itself right now."""

    def busy(self) -> str:
        """What the host does right now, in a few words; "" for nothing."""

    def captioners(self) -> Mapping[str, Captioner]:
        """What can say what is on a picture, by its label; {} where the host has no interrogator."""


def allowed_path(path: Path, ports: HostServices) -> Path:
    """``path`` as an absolute one, refused where the host keeps paths to its folders and it is outside.

    Links count as what they lead to, and ``..`` is resolved before the comparison.

    Raises:
        BadInput: ``ports`` keeps paths (``Security.keeps_paths``) and this one is outside its folders.
    """
    return allowed_beneath(path, ports.folders(), ports.security())


def allowed_beneath(path: Path, folders: Folders, security: Security) -> Path:
    """As ``allowed_path``, from the values that it asks for."""
    if "\0" in os.fspath(path):
        raise BadInput(f"the path {os.fspath(path)!r} has a zero byte: give the path of a file")
    absolute = Path(os.path.abspath(path.expanduser()))
    if not security.keeps_paths:
        return absolute
    place = absolute.resolve()
    if any(place.is_relative_to(folder.resolve()) for folder in folders.every):
        return place
    if security.restricted:
        why = "is shared" if security.shared else "listens to the network"
        remedy = "start the WebUI with --enable-insecure-extension-access"
    else:
        why, remedy = "hides its folders", "start the WebUI without --hide-ui-dir-config"
    raise BadInput(
        f"{path} is outside the folders for LoRAs, checkpoints, output and data, and the WebUI {why}: move "
        f"it there, or {remedy}"
    )


def check_extra(extra: Sequence[str], security: Security) -> None:
    """Raise ``BadInput`` for arguments of the user's own where strangers may sit at the page."""
    if extra and security.restricted:
        raise BadInput(
            "extra arguments can run code, and the WebUI can be reached from elsewhere: leave them out, or "
            "start the WebUI with --enable-insecure-extension-access"
        )
