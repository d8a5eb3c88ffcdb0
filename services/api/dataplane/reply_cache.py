"""Answers given again to the same request, for callers that asked for it and only where the answer cannot vary.

The whole body is in the key, and so are the places that serve the model: what is kept is the raw answer, so that a hit
is byte for byte what the first caller got, as a stream where a stream was asked.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import orjson

from libs.llm.cache import ReplyCache
from libs.upstreams.types import ChatReply, Usage
from libs.upstreams.upstream import Upstream
from services.api.dataplane.call import Call
from services.api.dataplane.inquiry import Inquiry

WHOLE = frozenset({"stop", "tool_calls", "function_call", "completed"})
"""Finish reasons of answers that are not cut short."""
MAX_KEPT_BYTES = 1024 * 1024
ABANDONED = ChatReply("", "", "", "")
"""Stands for the answer of a caller who left before it was whole."""


def cacheable(inquiry: Inquiry) -> bool:
    """Whether the answer is the same each time: the caller said temperature 0, and did not leave it to a default."""
    temperature = inquiry.body.get("temperature")
    return isinstance(temperature, int | float) and not isinstance(temperature, bool) and temperature == 0


def key_of(inquiry: Inquiry, places: Sequence[Upstream]) -> str:
    """The key of a request at the places that serve its model."""
    body = orjson.dumps(inquiry.body, option=orjson.OPT_SORT_KEYS)
    where = sorted(place.place for place in places if place.entry.model == inquiry.model)
    named = f"v1/{inquiry.endpoint}\n{where}\n".encode()
    return hashlib.sha256(named + body).hexdigest()


class AnswerCache:
    """Finds and keeps raw answers; the same question asked at once is sent once."""

    def __init__(self, store: ReplyCache) -> None:
        self._store = store
        self._flights: dict[str, asyncio.Future[ChatReply | None]] = {}

    @asynccontextmanager
    async def turn(self, key: str, call: Call, inquiry: Inquiry) -> AsyncGenerator[ChatReply | None]:
        """The answer where there is one, kept or just being given to another caller; its text is the raw body.

        Otherwise None: then the engine is to be asked inside the block, and what that leaves in `call.kept` is kept
        for later callers and given to those who wait meanwhile. Where it fails or is cut short, those ask for
        themselves; where its client leaves, the next of them goes on in its place.
        """
        answer: ChatReply | None = ABANDONED
        while answer is ABANDONED and (flight := self._flights.get(key)) is not None:
            answer = await asyncio.shield(flight)
        if answer is not ABANDONED:
            yield answer
            return
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        answer = None
        try:
            found = await self._store.get(key)
            answer = None if found is None else found.reply
            yield answer
            if answer is None:
                answer = await self._keep(key, call, inquiry)
        except asyncio.CancelledError:
            answer = ABANDONED
            raise
        finally:
            del self._flights[key]
            flight.set_result(answer)

    async def _keep(self, key: str, call: Call, inquiry: Inquiry) -> ChatReply | None:
        """Keep what went out, if it is a whole answer of the model that was asked for; then give it."""
        answer, gist = b"".join(call.kept or ()), call.outcome()
        if call.model != inquiry.model or gist.finish_reason not in WHOLE or len(answer) > MAX_KEPT_BYTES:
            return None
        try:
            text = answer.decode()
        except UnicodeDecodeError:
            return None
        reply = ChatReply(text, gist.finish_reason, call.upstream, call.model, gist.usage or Usage())
        await self._store.put(key, reply, call_id=call.id)
        return reply
