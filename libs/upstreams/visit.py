"""One request's stay at an upstream, whichever face of ours it came through: slot, breaker, clock, wire, verdict."""

import asyncio
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from libs import tracing
from libs.upstreams.clock import CallClock
from libs.upstreams.detect import Nature
from libs.upstreams.errors import (
    BrokenStream,
    ConnectFailed,
    DeadlineExceeded,
    FirstTokenTimeout,
    IdleTimeout,
    NoSlot,
    Refused,
    UpstreamError,
)
from libs.upstreams.exchange import Exchange, Overdue
from libs.upstreams.wire import encode_headers

if TYPE_CHECKING:
    from libs.upstreams.upstream import Upstream

SERVER_ERROR = 500
JSON = encode_headers({"content-type": "application/json", "accept": "application/json, text/event-stream"})


def _headers(nature: Nature) -> bytes:
    """The head of a request. A server of our own goes on with the trace; a hosted one is told nothing of it."""
    traceparent = tracing.outgoing()
    if not traceparent or nature.dialect == "openai":
        return JSON
    return JSON + b"traceparent: %b\r\n" % traceparent.encode("ascii")


class Visit:
    """One request's stay at an upstream: its slot, the breaker's leave to send, the clock, and the verdict on how it
    went. An async context manager; what leaves its block is judged and counted, and names the upstream.

    `priority` orders those who wait, lower first; `tokens` is what the request is estimated to need, by which the line
    is bounded (0 for our own calls, which always find a place in it). Of so many `choices`; 0 where none is generated.
    """

    __slots__ = (
        "_began_at",
        "_choices",
        "_exchange",
        "_priority",
        "_probe",
        "_tokens",
        "_waited_s",
        "clock",
        "upstream",
    )

    def __init__(
        self, upstream: "Upstream", clock: CallClock, *, priority: int, tokens: int = 0, choices: int = 1
    ) -> None:
        self.upstream = upstream
        self.clock = clock
        self._priority = priority
        self._tokens = tokens
        self._choices = choices
        self._probe = 0
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Self:
        """Wait for a slot. Raises `NoSlot`, `QueueFull`, `BreakerOpen`, or `DeadlineExceeded` where no time is left."""
        upstream, clock = self.upstream, self.clock
        self._began_at = began = monotonic()
        self._waited_s = clock.waited_s
        try:
            clock.check(began)
            if not upstream.slots.take_now():
                upstream.breaker.check()
                await self._wait_in_line(began)
            try:
                self._probe = upstream.breaker.enter()
            except BaseException:
                upstream.slots.give_back()
                raise
        except BaseException as error:
            self._count(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._exchange is not None:
            self._exchange.close()
        told = self.clock.overdue() if isinstance(error, Overdue) else error
        try:
            self._judge(told)
        finally:
            self.upstream.slots.give_back()
        self._count(told)
        if told is not error and told is not None:
            raise told from error

    async def acquainted(self) -> Nature:
        """What the server is, asked of it where that is not known yet. Nothing of the request was sent when this
        fails. Raises `ConnectFailed`, `DeadlineExceeded`, `Refused`, `BrokenStream`.
        """
        known = self.upstream.known
        if known is not None:
            return known
        try:
            return await self.upstream.get_acquainted(self.clock.total_due)
        except ConnectFailed as error:
            raise self.clock.unreachable(error) from error.__cause__

    async def send(self, target: str, body: bytes) -> Exchange:
        """POST JSON to a path below the API's (`chat/completions`). The exchange is closed when the visit ends.

        Raises `ConnectFailed`, or `DeadlineExceeded` where the time left was too short to connect in, which says
        nothing about the upstream.
        """
        upstream, clock = self.upstream, self.clock
        nature = upstream.known or await self.acquainted()
        began = monotonic()
        clock.check(began)
        try:
            exchange = await upstream.wire.send(
                "POST",
                f"{upstream.api_path}/{target}",
                body=body,
                headers=_headers(nature),
                connect_s=clock.connect_s(began),
                # llama.cpp's server closes the socket after every streamed answer although its header promises to
                # stay: no such connection may get into the pool for the moment before its end arrives.
                keep_alive=nature.dialect != "llamacpp",
                announced=nature.dialect == "vllm",
            )
        except ConnectFailed as error:
            raise clock.unreachable(error) from error.__cause__
        now = monotonic()
        clock.sent(now, connected_s=now - began)
        self._exchange = exchange
        return exchange

    def moved(self, now: float | None = None) -> None:
        """A piece of the answer came, at `now` of `time.monotonic`.

        A trial call has succeeded with its first token: others need not wait for its last. From then on it is a call
        like any other, whose end must not close a breaker that has opened again meanwhile.
        """
        upstream, clock = self.upstream, self.clock
        if now is None:
            now = monotonic()
        if self._probe:
            upstream.breaker.succeeded(probe=self._probe)
            self._probe = 0
        clock.moved(now)
        upstream.pulse.moved(now)

    async def _wait_in_line(self, began: float) -> None:
        upstream, clock = self.upstream, self.clock
        slots = upstream.slots
        if slots.share == 0:
            raise upstream.no_share()
        tokens = upstream.believable(self._tokens, self._choices)
        try:
            await slots.take(self._priority, clock.total_due, tokens=tokens)
        except TimeoutError as error:
            raise NoSlot(f"none of {slots.share} slots came free within {clock.limits.total_s:g} s") from error
        finally:
            clock.queued(monotonic() - began)

    def _judge(self, error: BaseException | None) -> None:
        """Tell the breaker. Timeouts while the engine visibly works on are load, not failure."""
        upstream, probe = self.upstream, self._probe
        if error is None:
            upstream.breaker.succeeded(probe=probe)
            return
        if isinstance(error, FirstTokenTimeout | IdleTimeout) or self._was_silent(error):
            sent_at = self.clock.sent_at or self.clock.started_at
            bad = not (upstream.pulse.state == "busy" and upstream.pulse.progress_at > sent_at)
        elif isinstance(error, BrokenStream):
            bad = not error.of_request
        else:
            bad = isinstance(error, ConnectFailed) or (isinstance(error, Refused) and error.status >= SERVER_ERROR)
        if bad:
            told = error if isinstance(error, UpstreamError) else self.clock.exhausted()
            upstream.breaker.failed(told.in_short, probe=probe)
            upstream.send_away_if_open()
        elif isinstance(error, Refused):
            upstream.breaker.succeeded(probe=probe)
        else:
            upstream.breaker.undecided(probe=probe)

    def _was_silent(self, error: BaseException) -> bool:
        """Whether an answer in one piece stayed away until its time was up, for longer than that of a stream may, and
        nobody else was answered meanwhile either. Only the total bounds such an answer, and a short one says nothing.
        """
        clock, now = self.clock, monotonic()
        # Who watches over the total may cancel before the reading itself is overdue.
        late = isinstance(error, DeadlineExceeded) or (isinstance(error, asyncio.CancelledError) and clock.spent(now))
        if not late or not clock.whole or clock.sent_at is None or clock.begun_at is not None:
            return False
        return self.upstream.pulse.moved_at < clock.sent_at and now - clock.sent_at >= clock.limits.first_token_s

    def _count(self, error: BaseException | None) -> None:
        meters = self.upstream.meters
        if error is None:
            meters.called("ok")
        elif isinstance(error, UpstreamError):
            error.upstream = self.upstream.entry.name
            meters.called(error.code)
        else:
            meters.called("cancelled" if isinstance(error, asyncio.CancelledError) else "failed")
        meters.overhead(monotonic() - self._began_at - self.clock.waited_s + self._waited_s)
