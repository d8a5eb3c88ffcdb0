"""Our own face of an upstream: one chat completion, read from its stream to one whole answer."""

from time import monotonic
from typing import TYPE_CHECKING

import orjson

from libs.upstreams.clock import CallClock
from libs.upstreams.dialects import body, least_tokens
from libs.upstreams.errors import ConnectFailed, PromptTooLong
from libs.upstreams.reply import Assembly
from libs.upstreams.roads import Body, accepted, drain
from libs.upstreams.types import ChatReply, ChatRequest, TimeLimits
from libs.upstreams.visit import Visit

if TYPE_CHECKING:
    from libs.upstreams.upstream import Upstream

OFFICIAL = "https://api.openai.com"


async def chat(upstream: "Upstream", request: ChatRequest, limits: TimeLimits) -> ChatReply:
    """Answer, or raise an `UpstreamError` naming the upstream. Cancelling closes the socket at once."""
    clock, entry, answer = CallClock(limits, monotonic()), upstream.entry, Assembly()
    _refuse_what_cannot_fit(upstream, request)
    async with Visit(upstream, clock, priority=int(request.priority)) as visit:
        stream = await _open(visit, request)
        try:
            await _collect(stream, answer, visit)
        finally:
            await stream.aclose()
    return ChatReply(
        text=answer.text,
        finish_reason=answer.finish_reason,
        upstream=entry.name,
        model=entry.model,
        usage=answer.usage(least_tokens(request)),
        time=clock.split(monotonic()),
    )


def _refuse_what_cannot_fit(upstream: "Upstream", request: ChatRequest) -> None:
    entry = upstream.entry
    needed = least_tokens(request) + request.sampling.max_tokens
    if entry.context is not None and needed > entry.context:
        upstream.meters.called(PromptTooLong.code)
        raise PromptTooLong(
            f"prompt and answer need at least {needed} tokens, the context holds {entry.context}", upstream=entry.name
        )


async def _open(visit: Visit, request: ChatRequest) -> Body:
    """Send, and wait for the answer to begin."""
    clock, upstream = visit.clock, visit.upstream
    entry, nature = upstream.entry, await visit.acquainted()
    content = body(nature.dialect, entry.model, request, official=entry.origin == OFFICIAL)
    if nature.dialect == "openai":
        try:
            return await (await upstream.hosted(clock.total_due)).open(content, clock)
        except ConnectFailed as error:
            raise clock.unreachable(error) from error
    exchange = await visit.send("chat/completions", orjson.dumps(content))
    await accepted(exchange, clock)
    return exchange


async def _collect(stream: Body, answer: Assembly, visit: Visit) -> None:
    """Read the stream to its end."""
    clock, now = visit.clock, monotonic
    while not answer.done:
        before = now()
        chunk = await stream.read(clock.due)
        after = now()
        clock.waited_s += after - before
        if not chunk:
            break
        if answer.feed(chunk) and answer.begun:
            visit.moved(after)
    answer.close()
    await drain(stream)
