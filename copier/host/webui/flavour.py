"""Which WebUI this is, told by what its code has."""

from __future__ import annotations

import sys


def is_forge() -> bool:
    """Whether it is Forge since it has a backend of its own."""
    from modules import sd_models

    return hasattr(sd_models, "FakeInitialModel")


def flavour() -> str:
    """Forge, reForge or A1111."""
    if is_forge():
        return "Forge"
    return "reForge" if "modules_forge" in sys.modules else "A1111"
