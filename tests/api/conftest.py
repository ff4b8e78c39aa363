"""The API on a server of its own, with the folder and the fake worker of tests/app."""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.util
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request

from copier.api import PREFIX, Guard, Services, add_routes
from copier.app.jobs import JobService
from copier.app.ports import THIS_MACHINE, Security
from copier.app.settings import Settings
from copier.host.standalone import StandaloneHost

_spec = importlib.util.spec_from_file_location(
    "app_conftest", Path(__file__).parents[1] / "app" / "conftest.py"
)
assert _spec and _spec.loader
_app = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_app)
doubles, folder, worker = _app.doubles, _app.folder, _app.worker

PATIENCE = 30.0


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, kind and field of a failure."""
        error = self.json["error"]
        assert error["message"] and "Traceback" not in self.content.decode()
        return self.status, error["kind"], error.get("field", "")


@dataclass
class Client:
    """A program that calls the API."""

    port: int
    services: Services
    headers: dict[str, str] = field(default_factory=dict)

    def send(
        self, method: str, path: str, content: bytes | None = None, prefix: str = PREFIX, **headers: str
    ) -> Answer:
        """One request; ``content_type=`` and the like become headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(method, prefix + path, content, {**self.headers, **named})
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())

    def get(self, path: str) -> Any:
        answer = self.send("GET", path)
        assert answer.status == 200, answer.content
        return answer.json

    def post(self, path: str, body: Any = None) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        return self.send("POST", path, content, content_type="application/json")

    def made(self, path: str, body: Any = None, status: int = 201) -> Any:
        answer = self.post(path, body)
        assert answer.status == status, answer.content
        return answer.json

    def ended(self, id: str) -> Any:
        """The job when it has ended."""
        limit = time.monotonic() + PATIENCE
        while (job := self.get(f"/jobs/{id}"))["state"] in ("queued", "running"):
            assert time.monotonic() < limit, job
            time.sleep(0.02)
        return job


@dataclass
class Served:
    """Starts servers, and ends them."""

    folder: Path
    stack: contextlib.ExitStack
    checkpoint: str = "base.safetensors"

    def __call__(
        self, guard: Guard | None = None, security: Security = THIS_MACHINE, tokens: Any = None
    ) -> Client:
        settings = Settings(
            self.folder / "data",
            checkpoints=(self.folder,),
            own_loras=self.folder / "loras",
            own_output=self.folder / "output",
        )
        host = StandaloneHost(settings, self.folder / self.checkpoint, security=security, device="cpu")
        self.stack.callback(host.close)
        jobs = JobService(settings, released=host.released)
        self.stack.callback(jobs.close)
        services = Services(host, jobs, settings)
        app = FastAPI()
        # As A1111 and Forge have them: answers pass through the application's own middleware.
        app.middleware("http")(_passed_on)
        app.get("/{anything:path}")(lambda anything: {"the host's own": anything})
        if tokens is not None:
            app.tokens = tokens  # type: ignore[attr-defined]
        for _ in range(2):  # "Reload UI" may do so
            add_routes(app, services, guard or Guard())
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        self.stack.callback(thread.join, PATIENCE)
        self.stack.callback(setattr, server, "should_exit", True)
        limit = time.monotonic() + PATIENCE
        while not server.started:
            assert time.monotonic() < limit and thread.is_alive()
            time.sleep(0.005)
        return Client(server.servers[0].sockets[0].getsockname()[1], services)


@pytest.fixture
def served(folder: Path, worker: Any) -> Iterator[Served]:
    with contextlib.ExitStack() as stack:
        yield Served(folder, stack)


@pytest.fixture
def client(served: Served) -> Client:
    """The API as `copier ui` serves it, with the queue at work."""
    client = served()
    client.services.jobs.start()
    return client


async def _passed_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def sent(path: Path) -> dict[str, str]:
    """A picture in a JSON body."""
    return {"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()}
