"""Answers given again to the same request, for callers that asked for it and only where the answer cannot vary.

The whole body is in the key, and so are the places that serve the model: what is kept is the raw answer, so that a hit
is byte for byte what the first caller got, as a stream where a stream was asked.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from uuid import UUID

import orjson

from libs.llm.cache import ReplyCache
from libs.upstreams.types import ChatReply, Usage
from libs.upstreams.upstream import Upstream
from services.api.dataplane.call import Call
from services.api.dataplane.flight import LEFT, Flight
from services.api.dataplane.inquiry import Inquiry

WHOLE = frozenset({"stop", "tool_calls", "function_call", "completed"})
"""Finish reasons of answers that are not cut short."""


def cacheable(inquiry: Inquiry) -> bool:
    """Whether the answer is the same each time: the caller said temperature 0, and did not leave it to a default."""
    temperature = inquiry.body.get("temperature")
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0


def key_of(inquiry: Inquiry, places: Sequence[Upstream]) -> str:
    """The key of a request at the places that serve its model. The order of members counts: engines heed it."""
    where = sorted(place.place for place in places if place.entry.model == inquiry.model)
    named = f"v1/{inquiry.endpoint}\n{where}\n".encode()
    return hashlib.sha256(named + orjson.dumps(inquiry.body)).hexdigest()


class AnswerCache:
    """Finds and keeps raw answers; the same question asked at once is sent once."""

    def __init__(self, store: ReplyCache) -> None:
        self._store = store
        self._flights: dict[str, Flight] = {}
        self._puts: set[asyncio.Task[None]] = set()
        self._being_kept: dict[str, ChatReply] = {}

    async def close(self) -> None:
        """Finish what is being kept."""
        await asyncio.gather(*self._puts, return_exceptions=True)

    @asynccontextmanager
    async def turn(self, key: str, call: Call, inquiry: Inquiry) -> AsyncGenerator[ChatReply | None]:
        """The answer where there is one, kept or just being given to another caller; its text is the raw body.

        Otherwise None: then the engine is to be asked inside the block, and `landed` to be called when the answer is
        whole. Where it fails or is cut short, those who wait meanwhile ask for themselves; where its client leaves, the
        next of them goes on in its place.
        """
        shared = await self._shared(key, call)
        if shared is not LEFT:
            yield shared
            return
        flight = Flight(key, self._flights)
        try:
            found = await self._store.get(key)
            if found is not None:
                flight.land(found.reply)
                yield found.reply
            else:
                call.flight = flight
                yield None
        except asyncio.CancelledError:
            flight.land(LEFT)
            raise
        finally:
            flight.land(None)

    async def _shared(self, key: str, call: Call) -> ChatReply | None:
        """What another caller's flight has landed with lately, or will; `LEFT` where there is none."""
        if key in self._being_kept:
            return self._being_kept[key]
        before, answer = monotonic(), LEFT
        try:
            while answer is LEFT and (flight := self._flights.get(key)) is not None:
                answer = await flight.wait()
        finally:
            call.clock.waited_s += monotonic() - before
        return answer

    def landed(self, key: str, call: Call, inquiry: Inquiry, last: bytes) -> None:
        """The last of the answer has come: share it, and keep it, if it is a whole one of the model asked for."""
        flight, gist = call.flight, call.outcome()
        if flight is None:
            return
        flight.carry(last)
        text = flight.text
        if text is None or call.model != inquiry.model or gist.finish_reason not in WHOLE:
            return
        reply = ChatReply(text, gist.finish_reason, call.upstream, call.model, gist.usage or Usage())
        if flight.land(reply):
            self._being_kept[key] = reply
            put = asyncio.create_task(self._put(key, reply, call.id))
            self._puts.add(put)
            put.add_done_callback(self._puts.discard)

    async def _put(self, key: str, reply: ChatReply, call_id: UUID) -> None:
        """Nobody waits for this: the client has its answer, and its next request may be on its way."""
        try:
            await self._store.put(key, reply, call_id=call_id)
        finally:
            self._being_kept.pop(key, None)
