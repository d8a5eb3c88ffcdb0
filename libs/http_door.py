"""The outermost layer of every server of ours: which requests are let in before anything reads them.

A web page that somebody here has open may send requests to loopback too, under its own name (DNS rebinding) or under
ours from another origin. A path that two programs read differently gets past the stricter one. Both stop here.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import Counter
from pydantic import Field, field_validator
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.request_id import request_id_of
from libs.settings import Settings

SERVICES = frozenset(
    {"api", "analytics", "forecast", "jobs", "paper", "llm-sidecar", "vram-watchdog", "host.docker.internal"}
)
"""Names under which containers of the house, and the host they run on, reach each other. They count where others can
connect: on loopback nobody asks by them but a page whose network gives them addresses of its own."""
LOOPBACK = "127.0.0.1"
ANY = "*"
MOST_HEADERS = 100
MOST_HEADER_BYTES = 32_768
HOLD_SLASHES = (b"/v1/models/", b"/v2/positions/")
"""Where the rest of a path is a name that may hold a slash, written `%2F`: models and pairs of currencies."""

TURNED_AWAY = Counter("lexi_http_turned_away_total", "Requests refused at the door, by what was wrong.", ["reason"])

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:[0-9]{1,5})?")
_ESCAPE = re.compile(rb"%(..?)?", re.DOTALL)
_NEEDS_NO_ESCAPE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._")
"""The tilde needs none either, and is let in with one: Java and older clients write it so, and it means nothing."""
_READS_ONLY = frozenset({"GET", "HEAD", "OPTIONS"})
_MOST_REMEMBERED = 1024


class DoorSettings(Settings):
    """Under which names the services of the house are asked for."""

    allowed_hosts: str = Field(
        default="",
        description="More names, comma-separated, under which services are asked for (header Host), such as that of a"
        " proxy in front. Addresses and localhost always count, the names of the services where they listen on more"
        " than loopback; * switches the check off.",
    )

    @field_validator("allowed_hosts")
    @classmethod
    def must_be_names(cls, value: str) -> str:
        """Accept host names without a scheme, a port or a path."""
        for name in _split(value):
            if name != ANY and not _NAME.fullmatch(name):
                raise ValueError("must be host names, comma-separated, without scheme and port")
        return value

    @property
    def names(self) -> frozenset[str]:
        """The names, in lower case."""
        return frozenset(_split(self.allowed_hosts))


def _split(words: str) -> list[str]:
    return [word.strip().lower() for word in words.split(",") if word.strip()]


class Refusal(Exception):
    """A request is not let in; the message is for whoever sent it."""

    def __init__(self, status: HTTPStatus, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail


class Door:
    """Lets requests and websockets in whose `Host`, `Origin`, headers and path are in order.

    `listening` is the address that the server listens on, `names` the further names that count as ours.
    """

    def __init__(self, app: ASGIApp, *, listening: str = LOOPBACK, names: Iterable[str] = ()) -> None:
        self._app = app
        self._origins = frozenset(names)
        services = frozenset[str]() if _is_loopback(listening) else SERVICES
        self._names = services | {"localhost", listening.lower()} | self._origins
        self._known: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket, or refuse it."""
        if scope["type"] in {"http", "websocket"}:
            try:
                self._look_at(scope)
                check_path(scope["raw_path"])
            except Refusal as refusal:
                TURNED_AWAY.labels(refusal.reason).inc()
                await _refuse(refusal, scope, receive, send=send)
                return
        await self._app(scope, receive, send)

    def _look_at(self, scope: Scope) -> None:
        """Raise `Refusal` for headers that are too many, or a `Host` or `Origin` that is not ours."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        host = origin = None
        size = 0
        for name, value in headers:
            size += len(name) + len(value)
            if name == b"host":
                if host is not None:
                    raise Refusal(HTTPStatus.BAD_REQUEST, "host", "there is more than one header Host")
                host = value
            elif name == b"origin":
                if origin is not None:
                    raise Refusal(HTTPStatus.BAD_REQUEST, "origin", "there is more than one header Origin")
                origin = value
        if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
            detail = f"at most {MOST_HEADERS} headers and {MOST_HEADER_BYTES} bytes of them are read"
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers", detail)
        if host not in self._known:
            self._check_host(scope, host)
        if origin is not None:
            self._check_origin(scope, origin.decode("latin-1").lower(), host)

    def _check_host(self, scope: Scope, host: bytes | None) -> None:
        if host is None:
            if scope["http_version"] == "1.0":  # which knows no Host: probes of proxies speak it, browsers do not
                return
            raise Refusal(HTTPStatus.BAD_REQUEST, "host", "send a header Host")
        found = _HOST.fullmatch(host.decode("latin-1").lower())
        if found is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "host", "the header Host is not a name or address with a port")
        name = found["name"].strip("[]").removesuffix(".")
        if not (name in self._names or ANY in self._names or _is_address(name)):
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST, "host", f"{name} is not a name of this service; ALLOWED_HOSTS adds some"
            )
        if len(self._known) < _MOST_REMEMBERED:
            self._known.add(host)

    def _check_origin(self, scope: Scope, origin: str, host: bytes | None) -> None:
        """Pages of other origins may not open websockets here nor have anything done.

        Reading alone is left to the browser, which keeps answers from them, since none here permits otherwise.
        """
        if scope["type"] == "http" and scope["method"] in _READS_ONLY:
            return
        try:
            parts = urlsplit(origin)
            named = host is not None and parts.netloc == host.decode("latin-1").lower()
            ours = named or (parts.hostname or "").removesuffix(".") in self._origins
        except ValueError:
            ours = False
        if not (ours or ANY in self._origins):
            raise Refusal(HTTPStatus.FORBIDDEN, "origin", "pages of another origin may not do this")


def _is_loopback(listening: str) -> bool:
    """Whether only programs of this machine can connect. A name other than localhost may be any address."""
    try:
        return ip_address(listening).is_loopback
    except ValueError:
        return listening.lower() == "localhost"


def _is_address(name: str) -> bool:
    """Whether a name is an address as it stands: nobody can make that of another machine mean this one."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def check_path(raw: bytes) -> None:
    """Raise `Refusal` for a path that could be read in two ways: `//`, dot segments, backslashes, needless escapes.

    What is left means the same before and after its escapes are read, so routing by the decoded path is routing by the
    path as it was sent. Nothing decodes a second time.
    """
    if b"%" in raw:
        _check_escapes(raw)
        raw = raw.replace(b"%2F", b"/").replace(b"%2f", b"/")
    if b"//" in raw or b"\\" in raw:
        raise _bad_path("holds // or a backslash")
    if b"/." in raw and any(part in {b".", b".."} for part in raw.split(b"/")):
        raise _bad_path("has a segment . or ..")


def _check_escapes(raw: bytes) -> None:
    may_hold_slashes = raw.startswith(HOLD_SLASHES)
    for found in _ESCAPE.finditer(raw):
        try:
            code = int(found[1] or b"", 16)
        except ValueError:
            raise _bad_path("has a % without two hexadecimal digits") from None
        if code < 0x20 or code == 0x7F or code == ord("\\") or code in _NEEDS_NO_ESCAPE:
            raise _bad_path(f"has the escape {found[0].decode('ascii')}")
        if code == ord("/") and not may_hold_slashes:
            raise _bad_path("has an escaped slash")


def _bad_path(what: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "path", f"the path {what}")


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, *, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail})
        return
    title = refusal.status.phrase
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": refusal.status, "detail": refusal.detail}
    if scope["path"].startswith("/v1/"):  # as the clients of the OpenAI API read errors
        kind = {"type": "invalid_request_error", "param": None, "code": f"refused_{refusal.reason}"}
        body = {"error": {"message": refusal.detail, **kind}}
    headers = {"Connection": "close", "X-Request-Id": request_id_of(Headers(scope=scope))}
    await JSONResponse(body, refusal.status, headers)(scope, receive, send)
