"""Failures as HTTP answers: a status and ``{"error": {"kind", "message", "field"?}}``, never a traceback."""

from __future__ import annotations

import errno
import logging

from copier.api.calls import Json, NotFound
from copier.errors import BadInput, Cancelled, CopierError, NotInstalled, NotNow

log = logging.getLogger(__name__)

_STATUSES: tuple[tuple[type[CopierError], int], ...] = (
    (NotNow, 409),
    (NotInstalled, 409),
    (Cancelled, 409),
    (BadInput, 422),
    (CopierError, 500),
)
"""The first that fits counts."""


class Problem(Exception):
    """A failure of HTTP itself: a body that is none, a method that is not there."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def error_json(kind: str, message: str, field: str = "") -> Json:
    """The body of every answer that is a failure."""
    return {"error": {"kind": kind, "message": message, **({"field": field} if field else {})}}


def answered(error: Exception) -> tuple[int, Json]:
    """Status and body for ``error``; of what is unexpected the client gets the kind, and the log the rest."""
    if isinstance(error, Problem):
        return error.status, error_json(error.kind, str(error))
    if isinstance(error, NotFound):
        return 404, error_json(type(error.error).__name__, str(error))
    if isinstance(error, CopierError):
        status = next(status for kind, status in _STATUSES if isinstance(error, kind))
        return status, error_json(type(error).__name__, str(error), error.field)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 507, error_json("DiskFull", "the disk is full: make room, then try again")
    log.error("a request failed unexpectedly", exc_info=error)
    kind = type(error).__name__
    return 500, error_json(kind, f"the program failed ({kind}): its log says where; please report it")
