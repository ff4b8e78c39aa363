"""Named points around every write, where a test kills the process.

With the environment variable ``COPIER_KILL_AT=name`` (or ``name:n`` for the n-th time) the process
ends itself with SIGKILL there: no handler runs, as in a power cut. Without it a point does nothing.
"""

from __future__ import annotations

import os
import signal

WRITE_POINTS = (
    "digests-append",
    "digests-done",
    "store-begin",
    "lora-write",
    "losses-write",
    "picture-write",
    "store-record",
    "store-rename",
    "store-done",
    "out-temporary",
    "out-rename",
    "out-done",
    "report-temporary",
    "report-rename",
    "report-done",
)
"""Every name in use; ``write_point`` takes no other."""

_passed: dict[str, int] = {}


def write_point(name: str) -> None:
    """Mark a write point; ends the process if the environment says so."""
    if name not in WRITE_POINTS:
        raise ValueError(f"{name!r} is no write point: add it to WRITE_POINTS")
    wanted, _, count = os.environ.get("COPIER_KILL_AT", "").partition(":")
    if wanted != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
