"""One question on its way to an engine, for the others who ask the same meanwhile."""

import asyncio
from collections.abc import MutableMapping

from libs.upstreams.types import ChatReply

MAX_KEPT_BYTES = 1024 * 1024
LEFT = ChatReply("", "", "", "")
"""Stands for the answer of a caller who left before it was whole."""


class Flight:
    """Lands once, with the answer, with None where there is none to share, or with `LEFT`."""

    __slots__ = ("_flights", "_key", "_pieces", "_result", "_size")

    def __init__(self, key: str, flights: MutableMapping[str, "Flight"]) -> None:
        self._key = key
        self._flights = flights
        self._result: asyncio.Future[ChatReply | None] = asyncio.get_running_loop().create_future()
        self._pieces: list[bytes] | None = []
        self._size = 0
        flights[key] = self

    async def wait(self) -> ChatReply | None:
        """What it lands with."""
        return await asyncio.shield(self._result)

    def carry(self, piece: bytes) -> None:
        """Another piece of the answer went out. One too long to be kept is not shared either."""
        if self._pieces is None:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MAX_KEPT_BYTES:
            self.land(None)

    @property
    def text(self) -> str | None:
        """The answer so far; None where it is not shared."""
        try:
            return None if self._pieces is None else b"".join(self._pieces).decode()
        except UnicodeDecodeError:
            return None

    def land(self, answer: ChatReply | None) -> bool:
        """End it, once: whether it was this that did."""
        self._pieces = None
        if self._result.done():
            return False
        del self._flights[self._key]
        self._result.set_result(answer)
        return True
