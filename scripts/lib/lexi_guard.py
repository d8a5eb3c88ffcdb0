"""Closes what vLLM leaves open: its key guards only some paths, so /invocations, /tokenize and others answer anybody.

vLLM loads this with `--middleware lexi_guard.Guard`. Only what a gateway uses passes: the OpenAI routes below /v1,
which vLLM guards by the key, and /health, /metrics and /version, which spend nothing. Anything else is not found.
Standard library only.
"""

OPEN_PATHS = frozenset({"/health", "/metrics", "/version"})
GUARDED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/responses"})
GUARDED_BELOW = "/v1/models/"
NOT_FOUND = b'{"error": {"message": "not found", "type": "invalid_request_error", "param": null, "code": "not_found"}}'


def passes(path):
    """Whether a path is one of those a gateway uses."""
    return path in OPEN_PATHS or path in GUARDED_PATHS or path.startswith(GUARDED_BELOW)


class Guard:
    """ASGI middleware: answers 404 for every path but a few, and closes every websocket."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Let a request pass, or refuse it."""
        kind = scope["type"]
        if kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif kind == "http" and not passes(scope["path"]):
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(NOT_FOUND))]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": NOT_FOUND})
        else:
            await self.app(scope, receive, send)
