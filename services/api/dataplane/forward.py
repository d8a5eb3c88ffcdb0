"""A request to a place that can answer it, and the answer back.

Each place is tried once. Another one is tried only while the client has seen nothing and the first has surely not
begun to work: nothing left this process, or the place refused. What an engine may have read is never sent again.
"""

from collections.abc import Callable, Sequence
from time import monotonic

import orjson

from libs import tracing
from libs.upstreams.clock import CallClock
from libs.upstreams.errors import CannotSend, NoSlot, Refused, UpstreamError
from libs.upstreams.exchange import Exchange
from libs.upstreams.fit import Unfit, fit
from libs.upstreams.roads import accepted
from libs.upstreams.upstream import Upstream
from libs.upstreams.visit import Visit
from services.api.dataplane.answer import BadAnswer, read_answer
from services.api.dataplane.call import Call
from services.api.dataplane.errors import ApiError
from services.api.dataplane.inquiry import Inquiry
from services.api.dataplane.relay import Relay
from services.api.dataplane.room import refuse_what_cannot_fit
from services.api.dataplane.spans import engine_span
from services.api.dataplane.stream import ChoiceEvents, EventStream, ResponseEvents

OK = 200
TOO_MANY = 429
SERVER_ERROR = 500
MAX_PLACES = 3
MAX_ANSWER_BYTES = 32 * 1024 * 1024


async def forward(
    call: Call, inquiry: Inquiry, places: Sequence[Upstream], *, whole: Callable[[bytes], None] | None = None
) -> None:
    """Answer the client from the first place that can. `whole` is told the last of the answer before the client is.

    Raises `ApiError`, or an `UpstreamError`: that of the first place tried, or, once the client has seen a byte, that
    of the stream that broke.
    """
    first: UpstreamError | ApiError | None = None
    for place in places[:MAX_PLACES]:
        try:
            if tracing.is_on():
                with engine_span(call, inquiry, place):
                    last = await _visit(call, inquiry, place)
            else:
                last = await _visit(call, inquiry, place)
        except Unfit as error:
            first = first or ApiError(400, "unsupported_by_upstream", str(error), param=error.param)
        except UpstreamError as error:
            first = first or error
            if isinstance(error, Refused) and not call.pieces:
                call.working = False
            if call.outlet.status or not _may_go_elsewhere(error):
                raise
        else:
            if whole is not None:
                whole(last)
            await _finish(call, inquiry, last)
            return
    assert first is not None  # noqa: S101 - there was at least one place, and it failed
    raise first


def _may_go_elsewhere(error: UpstreamError) -> bool:
    if isinstance(error, Refused):
        return error.status == TOO_MANY or error.status >= SERVER_ERROR
    return isinstance(error, CannotSend) and not isinstance(error, NoSlot)


async def _visit(call: Call, inquiry: Inquiry, place: Upstream) -> bytes:
    """Ask one place. What is left to send once its slot is free again: the whole answer, or a stream's last events."""
    clock = call.clock
    refuse_what_cannot_fit(inquiry, place)
    async with Visit(place, clock, priority=call.priority, tokens=inquiry.tokens, choices=inquiry.choices) as visit:
        nature = await visit.acquainted()
        body = fit(nature.dialect, inquiry.endpoint, inquiry.body, model=place.entry.model, priority=call.priority)
        exchange = await visit.send(inquiry.endpoint, orjson.dumps(body))
        call.sent_to(place.entry)
        await accepted(exchange, clock)
        if inquiry.stream:
            call.events = _events(call, inquiry)
            return await Relay(call, visit, exchange, call.events).run()
        answer = await _read_whole(exchange, clock)
        call.gist = read_answer(inquiry.endpoint, answer, keep_text=call.keeps_body)
        visit.moved()
        return answer


async def _read_whole(exchange: Exchange, clock: CallClock) -> bytes:
    """A body to its end, so that the client gets all of it or an error."""
    pieces, size = list[bytes](), 0
    before = monotonic()
    try:
        while chunk := await exchange.read(clock.due):
            pieces.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise BadAnswer(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    finally:
        clock.waited_s += monotonic() - before
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _events(call: Call, inquiry: Inquiry) -> EventStream:
    if inquiry.endpoint == "responses":
        return ResponseEvents(keep_text=call.keeps_body)
    return ChoiceEvents(choices=inquiry.choices, wants_usage=inquiry.wants_usage, keep_text=call.keeps_body)


async def _finish(call: Call, inquiry: Inquiry, last: bytes) -> None:
    """Send what is left. The slot is free already: a slow client holds nothing but its own connection."""
    outlet, guard = call.outlet, call.guard
    guard.unwatch()
    guard.client_must_take(monotonic())
    if not inquiry.stream:
        await outlet.whole(OK, last, *call.described())
    else:
        if not outlet.status:
            await outlet.begin(*call.described())
        await outlet.piece(last, last=True)
