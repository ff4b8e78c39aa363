"""Puts the endpoints into an application: who may call, what is read, where it is carried out.

Nothing here but Starlette, in what the versions of A1111 (0.26), Forge and gradio 4 (0.37) have in common.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from copier.api import job_calls, page, picture_calls, recipe_calls, stream, tool_calls
from copier.api.calls import (
    Call,
    Endpoint,
    FileAnswer,
    Json,
    PageAnswer,
    Services,
    StreamAnswer,
    json_text,
    whole_number,
)
from copier.api.guard import REALM, Guard
from copier.api.problems import Problem, answered, error_json
from copier.progress import CancelToken

PREFIX = "/copier/v1"
QUICK, LONG = 16, 4
"""Requests that are carried out at a time; the others wait. The host's own have threads of their own."""
_GONE_SECONDS = 0.5
"""Between two looks for whether whoever waits for a long answer is still there."""
_SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # A page of ours, or one that a job made, runs nothing and loads nothing.
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox",
}

ENDPOINTS = (
    *recipe_calls.ENDPOINTS,
    *job_calls.ENDPOINTS,
    *tool_calls.ENDPOINTS,
    *picture_calls.ENDPOINTS,
)


def add_routes(app: Starlette, services: Services, guard: Guard) -> None:
    """Serve the API under ``PREFIX`` of ``app``, a FastAPI or Starlette application that may run already.

    Adding it again to one application replaces it: a host's "Reload UI" may do so. Nothing is started:
    whoever calls this works the queue (``JobService.start``).
    """

    def tokens() -> Mapping[str, str]:
        # gradio's application knows who is logged in at its page.
        return getattr(app, "tokens", None) or {}

    inner = Mount(PREFIX, app=_Guarded(_application(services), services, guard, tokens))
    kept = [route for route in app.router.routes if getattr(route, "path", "") != PREFIX]
    # First: an application may have a route that takes every path.
    app.router.routes[:] = [inner, *kept]


def _application(services: Services) -> Starlette:
    worker = _Worker(services)
    described = page.described(ENDPOINTS, PREFIX)
    endpoints = (*ENDPOINTS, *described)
    # One that names no part of its path comes before one that would take any name there.
    ordered = sorted(endpoints, key=lambda one: "{" in one.path)
    routes = [Route(one.path, worker.endpoint(one), methods=[one.method]) for one in ordered]
    return Starlette(routes=routes, exception_handlers={HTTPException: _not_served})


class _Guarded:
    """Lets a request in, or answers it with the guard's refusal."""

    def __init__(
        self, app: ASGIApp, services: Services, guard: Guard, tokens: Callable[[], Mapping[str, str]]
    ) -> None:
        self._app, self._services, self._guard, self._tokens = app, services, guard, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        security = self._services.host.security()
        refused = self._guard.refusal(scope["method"], Headers(scope=scope), self._tokens(), security)
        if refused is None:
            await self._app(scope, receive, send)
            return
        more = (
            {"WWW-Authenticate": f'Basic realm="{REALM}", charset="UTF-8"'} if refused.status == 401 else {}
        )
        answer = _json(error_json(refused.kind, refused.message), refused.status, more)
        await answer(scope, receive, send)


class _Worker:
    """Carries requests out in threads."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._limits: dict[bool, anyio.CapacityLimiter] = {}
        self._streams = stream.Streams(services.jobs)

    def endpoint(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """What Starlette calls for that endpoint; every failure ends here, as an answer."""

        async def answer(request: Request) -> Response:
            try:
                return await self._answer(endpoint, request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                status, body = answered(error)
                return _json(body, status)

        return answer

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        content = await _content(endpoint, request)
        call = Call(
            services=self._services,
            path=request.path_params,
            query=dict(request.query_params),
            body={} if endpoint.media else _object(content),
            content=content if endpoint.media else b"",
        )
        found = await (
            self._watched(endpoint, call, request) if endpoint.long else self._done(endpoint, call)
        )
        if isinstance(found, StreamAnswer):
            seen = whole_number(request.headers.get("last-event-id", ""))
            return self._streams.response(found.job, found.since if seen is None else seen, _SAFE)
        return _response(found, endpoint.status)

    async def _watched(self, endpoint: Endpoint, call: Call, request: Request) -> Any:
        """The same, and ``call.cancel`` is set when whoever asked has gone."""
        found, failure = None, None
        async with anyio.create_task_group() as group:
            group.start_soon(_watch, request, call.cancel)
            # A failure that left the group would come as a group of failures, or not, as the version has it.
            try:
                found = await self._done(endpoint, call)
            except Exception as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return found

    async def _done(self, endpoint: Endpoint, call: Call) -> Any:
        """What the handler gives, in a thread."""
        if endpoint.long not in self._limits:
            # Not before: a limiter belongs to a running loop.
            self._limits[endpoint.long] = anyio.CapacityLimiter(LONG if endpoint.long else QUICK)
        limiter = self._limits[endpoint.long]
        return await anyio.to_thread.run_sync(endpoint.handler, call, limiter=limiter)


async def _watch(request: Request, cancel: CancelToken) -> None:
    """Set ``cancel`` when whoever asked has gone."""
    while not await request.is_disconnected():
        await anyio.sleep(_GONE_SECONDS)
    cancel.cancel()


async def _content(endpoint: Endpoint, request: Request) -> bytes:
    """The body, as far as the endpoint takes one.

    Raises:
        Problem: it is too large, or of another kind. A page of another origin may send texts and forms to
            anyone, JSON and pictures only to who allows it.
    """
    limit = endpoint.largest
    too_large = Problem(413, "TooLarge", f"more than {limit >> 20} MB were sent: that is the limit here")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise too_large
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if endpoint.media:
        if not kind.startswith(endpoint.media):
            raise Problem(
                415,
                "WrongType",
                f"{kind or 'nothing'} was sent: send a file as {endpoint.media}..., as image/png",
            )
    elif (content or kind) and kind != "application/json":
        raise Problem(415, "WrongType", f"{kind or 'no type'} was sent: send JSON, as application/json")
    return bytes(content)


def _object(content: bytes) -> Json:
    if not content:
        return {}
    try:
        read = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "NoJson", f"the body is not valid JSON: {error}") from None
    if not isinstance(read, dict):
        raise Problem(400, "NoJson", "the body is no JSON object: send one")
    return read


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _response(found: Any, status: int) -> Response:
    if isinstance(found, FileAnswer):
        return FileResponse(found.path, media_type=found.media_type, headers=_SAFE)
    if isinstance(found, PageAnswer):
        return Response(found.html, media_type="text/html; charset=utf-8", headers=_SAFE)
    return _json(found, status)


def _json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    every = {**_SAFE, **(headers or {})}
    return Response(json_text(data), status, media_type="application/json", headers=every)


async def _not_served(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, another method."""
    assert isinstance(error, HTTPException)
    texts = {
        404: ("NotFound", f"there is no {request.url.path}: {PREFIX}/docs lists what there is"),
        405: ("NotAllowed", f"{request.method} is not for {request.url.path}: {PREFIX}/docs lists what is"),
    }
    kind, message = texts.get(error.status_code, ("Refused", str(error.detail)))
    return _json(error_json(kind, message), error.status_code, error.headers)
