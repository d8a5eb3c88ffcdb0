"""The frame of every HTTP service of ours: request ids, a bound on bodies, problems for errors, probes, metrics."""

import asyncio
import time
from http import HTTPStatus

import structlog
from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs import problems, telemetry, tracing
from libs.json_depth import MOST as DEEPEST
from libs.json_depth import too_deep
from libs.keys import KeyRing
from libs.probes import PATHS, Checks, probe_routes
from libs.request_id import request_id_of

LONGEST_LENGTH = 18  # digits; no body is an exabyte long, and Python refuses to read thousands of digits
FORMS = ("application/x-www-form-urlencoded", "multipart/")

REQUESTS = Counter("lexi_http_requests_total", "Answers given, by route and status.", ["route", "status"])
SECONDS = Histogram("lexi_http_seconds", "Time from a request's head to the end of its answer.", ["route"])

READING = frozenset({"GET", "HEAD", "OPTIONS"})
SERVER_ERROR = 500

log = structlog.get_logger(__name__)

STOPPING = "this process is stopping and did not finish the request"


class Edge:
    """The outermost ASGI layer: echoes `X-Request-Id` and binds it to the logs and to the calls that follow, refuses
    bodies above the limit before reading them whole, logs bugs and requests that change something, counts. A request
    that the server cancels, since the process ends, gets a 503.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_headers = Headers(scope=scope)
        request_id = request_id_of(sent_headers)
        begun = time.perf_counter()
        status, started, finished = 0, False, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started, finished
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)
            finished = message["type"] == "http.response.body" and not message.get("more_body", False)

        with telemetry.bound_id(request_id):
            tracing.arrived(sent_headers.get("traceparent"))
            try:
                await self._guarded(scope, receive, send_with_id, headers=sent_headers)
            except asyncio.CancelledError:
                log.warning("request_cut_by_the_stop", method=scope["method"], route=_route(scope))
                if not started:  # half an answer is left as it is, and the server cuts the connection
                    headers = {"Connection": "close", "Retry-After": "2"}
                    cut = problems.response(HTTPStatus.SERVICE_UNAVAILABLE, STOPPING, headers=headers)
                    await cut(scope, receive, send_with_id)
            except Exception:
                log.exception("request_failed", method=scope["method"], route=_route(scope))
                if not finished:  # the server cuts the connection, so that half an answer looks like one
                    raise
            finally:
                route = _route(scope)
                took_s = time.perf_counter() - begun
                REQUESTS.labels(route, status).inc()
                SECONDS.labels(route).observe(took_s)
                _say(scope["method"], route, status, took_s=took_s)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, *, headers: Headers) -> None:
        detail = f"the body exceeds {self._max_body_bytes} bytes"
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and (len(declared) > LONGEST_LENGTH or int(declared) > self._max_body_bytes):
            refusal = problems.response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        left, pieces = self._max_body_bytes, list[bytes]()
        a_form = headers.get("content-type", "").startswith(FORMS)

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            pieces.append(message.get("body", b""))
            left -= len(pieces[-1])
            if left < 0:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, headers={"Connection": "close"})
            if message["type"] == "http.request" and not message.get("more_body", False) and not a_form:
                _check_text(b"".join(pieces))
            return message

        await self._app(scope, counted, send)


def _check_text(body: bytes) -> None:
    """Raise for what a parser must not get: one reads UTF-16 and UTF-32 as well, and recurses as deep as told."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is not text in UTF-8") from None
    if b"\0" in body:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body holds NUL, which no text in UTF-8 needs")
    if too_deep(body):
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"the body is nested more than {DEEPEST} levels deep")


def _say(method: str, route: str, status: int, *, took_s: float) -> None:
    """One line for a request that changes something, or failed. Neither path nor query: a caller typed these."""
    if method not in READING or status >= SERVER_ERROR:
        log.info("request", method=method, route=route, status=status, took_ms=round(took_s * 1000, 1))


def _route(scope: Scope) -> str:
    """The route's template, so that ids in paths do not multiply the series."""
    path: str = scope["path"]
    return path if path in PATHS else getattr(scope.get("route"), "path", "unmatched")


def frame(*, title: str, keys: KeyRing, checks: Checks) -> FastAPI:
    """A FastAPI app with problems and probes, and without routes of its own. Wrap it in `Edge` to serve it."""
    app = FastAPI(
        title=title,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        routes=probe_routes(checks),
        # Spans of requests are ours (`libs.tracing`): the framework's own would tell of inputs that failed to validate.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.keys = keys
    problems.install(app)
    return app
