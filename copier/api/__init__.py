"""The REST API under ``/copier/v1``: one call adds it to a host's FastAPI or Starlette application."""

from copier.api.application import PREFIX, add_routes
from copier.api.calls import Services
from copier.api.guard import Guard

__all__ = ["PREFIX", "Guard", "Services", "add_routes"]
