"""Bodies on their way in: bounded each, and all together."""

import asyncio
import contextlib
from collections.abc import Mapping
from time import monotonic

from starlette.types import Message, Receive

from services.api.dataplane.call import Call
from services.api.dataplane.errors import ApiError

LONGEST_LENGTH = 18
"""Digits of a length that are read: no body is an exabyte long."""
ALL_TOGETHER_BYTES = 64 * 1024 * 1024
"""What may lie in memory of bodies that are not whole yet."""
DISCARD_BYTES = 256 * 1024 * 1024
DISCARD_S = 10.0
"""How much of a body that is too long is read and thrown away: most clients read an answer only when they have sent."""


class Uploads:
    """Reads bodies. `most` is the longest one in bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way = 0

    async def read(self, call: Call, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body; most come with the head. Raises `ApiError` 400, 413 or 503; ends the call of a client that
        leaves before.
        """
        declared = headers.get(b"content-length", b"")
        length = int(declared[:LONGEST_LENGTH]) if declared.isdigit() else None
        if length is not None and length > self._most:
            await self._too_long(receive, more=True)
        message = await _next(call, receive)
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if more:
            body, more = await self._rest(body, length or self._most, call, receive=receive)
        if len(body) > self._most:
            await self._too_long(receive, more=more)
        return body

    async def _rest(self, first: bytes, expected: int, call: Call, *, receive: Receive) -> tuple[bytes, bool]:
        """A body that comes in pieces. Waiting for them is not time of ours."""
        if self._under_way + expected > ALL_TOGETHER_BYTES:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise ApiError(503, "overloaded", "too many long bodies are being received", headers=headers)
        self._under_way += expected
        before, pieces, size, more = monotonic(), [first], len(first), True
        try:
            while more and size <= self._most:
                message = await _next(call, receive)
                piece: bytes = message.get("body", b"")
                pieces.append(piece)
                size += len(piece)
                more = message.get("more_body", False)
        finally:
            self._under_way -= expected
            call.clock.waited_s += monotonic() - before
        return b"".join(pieces), more

    async def _too_long(self, receive: Receive, *, more: bool) -> None:
        """Throw the rest away for a while, so that the client gets to read the answer, then refuse."""
        left = DISCARD_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_S):
                while more and left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    more = message.get("more_body", False)
        why = f"the body exceeds {self._most} bytes"
        raise ApiError(413, "body_too_large", why, headers={"Connection": "close"})


async def _next(call: Call, receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        await call.guard.leave()
    return message
