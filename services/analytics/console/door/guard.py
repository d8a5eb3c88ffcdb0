"""The door of the console: every page, and the websocket behind it, only for who is signed in.

Browsers send the cookie along with what pages of other ports ask too. Which origins may do that is one rule, that of
`libs.http_door`, which stands before this one in every process.
"""

import re
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.probes import PATHS
from services.analytics.console.door.sessions import Sessions

COOKIE = "lexi_console"
SIGN_IN = "/sign-in"
LOCAL = re.compile(r"[\x21-\x5b\x5d-\x7e]+")
"""Printable ASCII without the backslash, as browsers write addresses."""
OPEN = (*PATHS, SIGN_IN)
ASSETS = "/console-assets"
OPEN_BELOW = ("/analytics/", "/_nicegui/", f"{ASSETS}/")
"""Routes with a guard of their own, and the library's static files."""


def cookie_of(headers: Headers) -> str:
    """The console's cookie of a request; empty where there is none."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def place_after(wanted: str) -> str:
    """Where to go after signing in: a path of ours, never another site's.

    Browsers read a backslash as a slash and pass over tabs and line breaks, so what holds one of these is no path.
    """
    if not wanted.startswith("/") or wanted.startswith("//") or not LOCAL.fullmatch(wanted):
        return "/"
    return "/" if urlsplit(wanted).path == SIGN_IN else wanted


class SignedIn:
    """ASGI layer that puts the session into `scope["session"]`, or sends who has none to the sign-in."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or websocket."""
        if scope["type"] not in {"http", "websocket"} or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookie = cookie_of(headers)
        session = self._sessions.find(cookie) if cookie else None
        if session is not None:
            scope["console_session"] = session
            scope["console_cookie"] = cookie
            await self._app(scope, receive, unframed(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4401, "reason": "sign in"})
        else:
            await self._refusal(scope)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response:
        if scope["method"] in {"GET", "HEAD"}:
            query = scope["query_string"].decode("latin-1")
            wanted = scope["path"] + (f"?{query}" if query else "")
            return RedirectResponse(f"{SIGN_IN}?next={quote(wanted, safe='/')}", status_code=HTTPStatus.SEE_OTHER)
        return PlainTextResponse("sign in", status_code=HTTPStatus.UNAUTHORIZED)


def unframed(send: Send) -> Send:
    """Sends pages that no other page can frame: another port of this machine gets the cookie too, so one could."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Frame-Options", "DENY")
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Referrer-Policy", "same-origin")
        await send(message)

    return with_headers


def is_open(path: str) -> bool:
    """Whether a path needs no session."""
    return path in OPEN or path.startswith(OPEN_BELOW)
