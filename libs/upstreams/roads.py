"""How a request travels: straight to an engine over the wire. Hosted APIs have a road of their own in `vendor`."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, Protocol

import orjson

from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import BrokenStream, Refused
from libs.upstreams.exchange import Exchange, Overdue
from libs.upstreams.reply import refusal
from libs.upstreams.wire import Wire

OK = 200
MAX_REFUSAL_BYTES = 64 * 1024
JSON = {"content-type": "application/json", "accept": "text/event-stream"}


class Body(Protocol):
    """The body of an accepted answer."""

    async def read(self, until: float | None = None) -> bytes:
        """What came, `b""` at the end. Raises `Overdue` at `time.monotonic()` `until`, `BrokenStream`."""
        ...

    async def aclose(self) -> None:
        """Let go; before the end this closes the socket at once."""
        ...


class Road(Protocol):
    """A way to send one streamed chat completion."""

    async def open(self, content: dict[str, Any], clock: CallClock) -> Body:
        """Send and wait for status 200. Raises `ConnectFailed`, `Refused`, `BrokenStream`, `Overdue`."""
        ...

    async def close(self) -> None:
        """Drop the connections that are this road's own."""
        ...


class EngineRoad:
    """The road to engines on our own network.

    llama.cpp's server closes the socket after every streamed answer although its header promises to stay. Without
    `keep_alive` no such connection gets into the pool for the moment before its end arrives.
    """

    def __init__(self, wire: Wire, entry: UpstreamEntry, *, keep_alive: bool) -> None:
        self._wire = wire
        self._keep_alive = keep_alive
        self._target = f"{entry.api_path}/chat/completions"

    async def open(self, content: dict[str, Any], clock: CallClock) -> Exchange:
        """Send and wait for status 200."""
        began = monotonic()
        body = orjson.dumps(content)
        exchange = await self._wire.send(
            "POST",
            self._target,
            body=body,
            headers=JSON,
            connect_s=clock.connect_s(began),
            keep_alive=self._keep_alive,
        )
        now = monotonic()
        clock.sent(now, connected_s=now - began)
        try:
            await _accepted(exchange, clock.due)
        except BaseException:
            exchange.close()
            raise
        clock.waited_s += monotonic() - now
        return exchange

    async def close(self) -> None:
        """Nothing: the wire belongs to the upstream."""


async def _accepted(exchange: Exchange, until: float) -> None:
    """Wait for the status. Raises `Refused` unless it is 200, with as much of the reason as came in time."""
    status = await exchange.head(until)
    if status == OK:
        return
    text = b""
    try:
        while len(text) < MAX_REFUSAL_BYTES and (chunk := await exchange.read(until)):
            text += chunk
    except (Overdue, BrokenStream) as error:
        raise refused(status, exchange.header(b"retry-after"), text) from error
    raise refused(status, exchange.header(b"retry-after"), text)


def refused(status: int, retry_after: bytes | None, content: bytes) -> Refused:
    """The error for an answer with another status than 200."""
    said = refusal(content)
    return Refused(
        f"answered {status}: {said}" if said else f"answered {status}",
        status=status,
        retry_after_s=retry_seconds(retry_after, datetime.now(UTC)),
    )


def retry_seconds(value: bytes | None, now: datetime) -> float | None:
    """Seconds a `Retry-After` asks for: a number, or an HTTP date. None where it is absent or unreadable."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    try:
        if text.replace(".", "", 1).isdigit():
            return float(text)
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
