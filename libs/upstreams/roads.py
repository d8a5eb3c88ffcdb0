"""What comes back on a road to an engine, before it is an answer: accepted or refused, and the body's end."""

import contextlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, Protocol

from libs.upstreams.clock import CallClock
from libs.upstreams.errors import BrokenStream, Refused
from libs.upstreams.exchange import Exchange, Overdue
from libs.upstreams.reply import refusal

OK = 200
TOO_MANY = 429
UNAVAILABLE = 503
FULL = (b"engine is currently busy", b"prefill token backlog")
"""How vLLM says that its own bounds are met: with 503, which elsewhere means broken, where others answer 429."""
MAX_REFUSAL_BYTES = 64 * 1024
TAIL_S = 0.25
"""How long the end of a body is waited for once the answer is whole; without it the connection is not kept."""


class Body(Protocol):
    """The body of an accepted answer."""

    async def read(self, until: float | None = None) -> bytes:
        """What came, `b""` at the end. Raises `Overdue` at `time.monotonic()` `until`, `BrokenStream`."""
        ...

    async def aclose(self) -> None:
        """Let go; before the end this closes the socket at once."""
        ...


class Road(Protocol):
    """A way to send one streamed chat completion that is not the wire."""

    async def open(self, content: dict[str, Any], clock: CallClock) -> Body:
        """Send and wait for status 200. Raises `ConnectFailed`, `Refused`, `BrokenStream`, `Overdue`."""
        ...

    async def close(self) -> None:
        """Drop the connections that are this road's own."""
        ...


async def accepted(exchange: Exchange, clock: CallClock) -> None:
    """Wait for the status. Raises `Refused` unless it is 200, with as much of the reason as came in time; `Overdue`,
    `BrokenStream`.
    """
    before = monotonic()
    try:
        status = await exchange.head(clock.due)
    finally:
        clock.waited_s += monotonic() - before
    if status == OK:
        return
    text = b""
    try:
        while len(text) < MAX_REFUSAL_BYTES and (chunk := await exchange.read(clock.due)):
            text += chunk
    except (Overdue, BrokenStream) as error:
        raise refused(status, exchange.header(b"retry-after"), text) from error
    raise refused(status, exchange.header(b"retry-after"), text)


async def drain(stream: Body) -> None:
    """Wait a moment for the end of a body whose answer is whole, so that its connection can be kept."""
    until = monotonic() + TAIL_S
    with contextlib.suppress(Overdue, BrokenStream):
        while await stream.read(until):
            pass


def refused(status: int, retry_after: bytes | None, content: bytes) -> Refused:
    """The error for an answer with another status than 200. An engine that is full is not broken: it counts as 429."""
    said = refusal(content)
    full = status == UNAVAILABLE and any(words in content for words in FULL)
    return Refused(
        f"answered {status}: {said}" if said else f"answered {status}",
        status=TOO_MANY if full else status,
        retry_after_s=retry_seconds(retry_after, datetime.now(UTC)),
        content=content,
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
