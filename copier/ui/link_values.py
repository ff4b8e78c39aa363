"""What a host's page gives the tab to be connected with; as values, without gradio."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

A, B = "a", "b"
"""As what a picture is sent."""


@dataclass(frozen=True)
class Received:
    """A picture from the host's page: a file that is kept; values for the form by path; a recipe as JSON."""

    picture: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""


@dataclass(frozen=True)
class Arrival:
    """A button under one of the host's galleries that sends the picture here, as ``A`` or ``B``."""

    button: Any
    gallery: Any
    infotexts: Any
    target: str


@dataclass(frozen=True)
class Links:
    """Components of the host's page, and how a picture of its is taken.

    Attributes:
        receive: what a gallery and its texts hold at an index; -1: none is open.
        inpaint: takes a picture; None where there is none.
        prompt: txt2img's.
    """

    receive: Callable[[Any, Any, int], Received]
    arrivals: Sequence[Arrival] = ()
    inpaint: Any = None
    prompt: Any = None
