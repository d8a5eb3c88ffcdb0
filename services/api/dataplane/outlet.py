"""What goes back to one client: a whole answer, or a stream that begins with its first event."""

from collections.abc import Iterable

from starlette.types import Send

from services.api.dataplane.errors import ApiError

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
UNCACHED = (b"cache-control", b"no-cache")
SLICE_BYTES = 256 * 1024


class Outlet:
    """The answer's way out. `status` is 0 until an answer has begun; `streaming` while one has begun and not ended."""

    __slots__ = ("_send", "headers", "status", "streaming")

    def __init__(self, send: Send, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._send = send
        self.headers = list(headers)
        self.status = 0
        self.streaming = False

    async def whole(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Answer with JSON in one piece."""
        self.status = status
        length = (b"content-length", b"%d" % len(body))
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [JSON, length, *self.headers, *headers]}
        )
        # In slices, so that a client that stops reading is noticed before all of it lies in memory.
        sent = 0
        while len(body) - sent > SLICE_BYTES:
            await self._send({"type": "http.response.body", "body": body[sent : sent + SLICE_BYTES], "more_body": True})
            sent += SLICE_BYTES
        await self._send({"type": "http.response.body", "body": body[sent:] if sent else body})

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error."""
        await self.whole(error.status, error.body(), *error.raw_headers())

    async def begin(self, *headers: tuple[bytes, bytes]) -> None:
        """Begin a stream of events."""
        self.status, self.streaming = 200, True
        await self._send(
            {"type": "http.response.start", "status": 200, "headers": [EVENTS, UNCACHED, *self.headers, *headers]}
        )

    async def piece(self, events: bytes, *, last: bool = False) -> None:
        """Whole events of a stream."""
        if last:
            self.streaming = False
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})
