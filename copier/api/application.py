"""Adds the API to an application."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.routing import Mount

from copier.api.guard import Guard
from copier.app.jobs import JobService
from copier.app.ports import HostServices
from copier.app.settings import Settings

PREFIX = "/copier/v1"


@dataclass(frozen=True)
class Services:
    """What the API serves: the host, the queue of jobs, and where the program keeps its files."""

    host: HostServices
    jobs: JobService
    settings: Settings


def add_routes(app: Starlette, services: Services, guard: Guard) -> None:
    """Serve the API under ``PREFIX`` of ``app``, a FastAPI or Starlette application that may run already.

    Adding it again to one application replaces it: a host's "Reload UI" may do so. Nothing is started:
    whoever calls this works the queue (``JobService.start``).
    """
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != PREFIX]
    app.router.routes.append(Mount(PREFIX, app=Starlette()))
