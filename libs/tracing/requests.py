"""One span for each HTTP request that a process serves, below the caller's own where it sends a `traceparent`."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs import tracing
from libs.tracing import Span

PROBES = frozenset({"/health", "/ready", "/metrics"})
SERVER_ERROR = 500
BY_PATH = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/models",
})  # fmt: skip
"""Routes of apps without templates."""


class Requests:
    """An ASGI layer around everything that a process serves. Probes are no spans, nor are websockets."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("traceparent")
        method: str = scope["method"]
        asked = {"http.request.method": method, "url.scheme": str(scope.get("scheme", "http"))}
        with tracing.span(method, "server", attributes=asked, within=tracing.continued(given)) as span:

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _answered(span, message)
                await send(message)

            try:
                await self._app(scope, receive, told)
            finally:
                route = _route(scope)
                span.note({"http.route": route})
                span.rename(f"{method} {route}")


def _answered(span: Span, message: Message) -> None:
    status: int = message["status"]
    request_id = Headers(raw=message["headers"]).get("x-request-id", "")
    span.note({"http.response.status_code": status, "lexi.request_id": request_id})
    if status >= SERVER_ERROR:
        span.fail(str(status))


def _route(scope: Scope) -> str:
    """The route's template: paths hold ids, and query strings hold anything."""
    path: str = scope["path"]
    return path if path in BY_PATH else str(getattr(scope.get("route"), "path", "unmatched"))


def layer(app: ASGIApp) -> ASGIApp:
    """The app with a span around each request; the app itself where nothing is traced."""
    return Requests(app) if tracing.is_on() else app
