"""One upstream at work: its slots, breaker, pulse and connections, and the way of one call through them."""

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic

import structlog
from prometheus_client import Counter, Gauge, Histogram

from libs.upstreams.breaker import Breaker, BreakerState
from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.detect import Nature, detect
from libs.upstreams.dialects import body, least_tokens
from libs.upstreams.errors import (
    BreakerOpen,
    BrokenStream,
    ConnectFailed,
    FirstTokenTimeout,
    IdleTimeout,
    NoSlot,
    PromptTooLong,
    Refused,
    UpstreamError,
)
from libs.upstreams.exchange import Overdue
from libs.upstreams.heartbeat import ANSWER_S, BEAT_S, HOSTED_BEAT_S, STUCK_S, Beat, Pulse, look
from libs.upstreams.reply import Assembly
from libs.upstreams.roads import Body, EngineRoad, Road
from libs.upstreams.slots import Slots
from libs.upstreams.types import ChatReply, ChatRequest, Role, TimeLimits, UpstreamState, UpstreamStatus
from libs.upstreams.wire import Wire

log = structlog.get_logger(__name__)

TAIL_S = 0.25
"""How long the end of a body is waited for once the answer is whole; without it the connection is not kept."""
SERVER_ERROR = 500

CALLS = Counter("lexi_upstream_calls", "Calls by upstream and outcome.", ["upstream", "outcome"])
SLOTS_USED = Gauge("lexi_upstream_slots_in_use", "Slots this process holds.", ["upstream"])
SLOTS_WAITING = Gauge("lexi_upstream_slots_waiting", "Calls waiting for a slot of this process's share.", ["upstream"])
OVERHEAD = Histogram(
    "lexi_upstream_overhead_seconds",
    "Time of a call spent on our side: the total less waiting for a slot, a connection and the engine.",
    ["upstream"],
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
)
BREAKER = Gauge("lexi_upstream_breaker", "State of the breaker: 0 closed, 1 half open, 2 open.", ["upstream"])
STATE = Gauge("lexi_upstream_state", "1 for the state an upstream is in.", ["upstream", "state"])

BREAKER_VALUES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
STATES: tuple[UpstreamState, ...] = ("up", "busy", "stuck", "down", "unknown")
DEAD: frozenset[UpstreamState] = frozenset({"stuck", "down"})


class Upstream:
    """One entry of the configuration, seen from one process."""

    def __init__(self, entry: UpstreamEntry, role: Role, clock: Callable[[], float]) -> None:
        self.entry = entry
        self.role: Role = role
        self.slots = Slots(entry.shares.get(role, 0))
        self.breaker = Breaker(clock)
        headers = {} if entry.api_key is None else {"authorization": f"Bearer {entry.api_key.get_secret_value()}"}
        self._wire = Wire(entry.origin, headers=headers)
        self._known: tuple[Nature, Road] | None = None
        self._doubted = False
        self._detecting = asyncio.Lock()
        self.pulse = Pulse(clock())
        self._overhead = OVERHEAD.labels(entry.name)
        SLOTS_USED.labels(entry.name).set_function(lambda: self.slots.used)
        SLOTS_WAITING.labels(entry.name).set_function(lambda: self.slots.waiting)
        BREAKER.labels(entry.name).set_function(lambda: BREAKER_VALUES[self.breaker.state])
        for state in STATES:
            STATE.labels(entry.name, state).set_function(lambda state=state: float(self.pulse.state == state))

    async def chat(self, request: ChatRequest, limits: TimeLimits) -> ChatReply:
        """Answer, or raise an `UpstreamError` naming this upstream. Cancelling closes the socket at once."""
        clock = CallClock(limits, monotonic())
        outcome = "cancelled"
        try:
            reply = await self._within_slot(request, clock)
            outcome = "ok"
        except UpstreamError as error:
            error.upstream = self.entry.name
            outcome = error.code
            raise
        finally:
            CALLS.labels(self.entry.name, outcome).inc()
            self._overhead.observe(max(0.0, monotonic() - clock.started_at - clock.waited_s))
        return reply

    async def _within_slot(self, request: ChatRequest, clock: CallClock) -> ChatReply:
        self._refuse_what_cannot_go(request)
        self.breaker.check()
        if not self.slots.take_now():
            await self._wait_for_slot(request, clock)
        try:
            probe = self.breaker.enter()
            try:
                return await self._ask(request, clock, probe=probe)
            except UpstreamError as error:
                self._judge(error, clock, probe=probe if clock.begun_at is None else 0)
                raise
            except BaseException:
                self.breaker.undecided(probe=probe if clock.begun_at is None else 0)
                raise
        finally:
            self.slots.give_back()

    def _refuse_what_cannot_go(self, request: ChatRequest) -> None:
        entry = self.entry
        if self.slots.share == 0:
            raise NoSlot(f"the role {self.role} has no share of {entry.name}: see shares in the file of upstreams")
        needed = least_tokens(request) + request.sampling.max_tokens
        if entry.context is not None and needed > entry.context:
            raise PromptTooLong(f"prompt and answer need at least {needed} tokens, the context holds {entry.context}")

    async def _wait_for_slot(self, request: ChatRequest, clock: CallClock) -> None:
        began = monotonic()
        try:
            await self.slots.take(int(request.priority), clock.total_due)
        except TimeoutError as error:
            raise NoSlot(f"none of {self.slots.share} slots came free within {clock.limits.total_s:g} s") from error
        finally:
            clock.queued(monotonic() - began)

    async def _ask(self, request: ChatRequest, clock: CallClock, *, probe: int) -> ChatReply:
        entry, answer = self.entry, Assembly()
        try:
            nature, road = await self._acquainted(clock)
            official = entry.origin == "https://api.openai.com"
            stream = await road.open(body(nature.dialect, entry.model, request, official=official), clock)
            try:
                await self._collect(stream, answer, clock, probe=probe)
            finally:
                await stream.aclose()
        except Overdue as error:
            raise clock.overdue() from error
        except ConnectFailed as error:
            if clock.spent(monotonic()):
                # What was left of the total was too short to connect in, which says nothing about the upstream.
                raise clock.overdue() from error
            raise
        self.breaker.succeeded(probe=0)
        return ChatReply(
            text=answer.text,
            finish_reason=answer.finish_reason,
            upstream=entry.name,
            model=entry.model,
            usage=answer.usage(least_tokens(request)),
            time=clock.split(monotonic()),
        )

    async def _collect(self, stream: Body, answer: Assembly, clock: CallClock, *, probe: int) -> None:
        """Read the stream to its end.

        A probe has succeeded with its first token: others need not wait for its last. From then on it is a call like
        any other, whose end must not close a breaker that has opened again meanwhile.
        """
        now = monotonic
        while not answer.done:
            before = now()
            chunk = await stream.read(clock.due)
            after = now()
            clock.waited_s += after - before
            if not chunk:
                break
            if answer.feed(chunk) and answer.begun:
                if probe and clock.begun_at is None:
                    self.breaker.succeeded(probe=probe)
                clock.moved(after)
                self.pulse.moved(after)
        answer.close()
        with contextlib.suppress(Overdue, BrokenStream):
            while await stream.read(now() + TAIL_S):
                pass

    def _judge(self, error: UpstreamError, clock: CallClock, *, probe: int) -> None:
        """Tell the breaker. Timeouts while the engine visibly works on are load, not failure."""
        if isinstance(error, FirstTokenTimeout | IdleTimeout):
            sent_at = clock.sent_at or clock.started_at
            bad = not (self.pulse.state == "busy" and self.pulse.progress_at > sent_at)
        else:
            refused = isinstance(error, Refused) and error.status >= SERVER_ERROR
            bad = refused or isinstance(error, ConnectFailed | BrokenStream)
        if bad:
            self.breaker.failed(f"{error.code}: {error}", probe=probe)
        elif isinstance(error, Refused):
            self.breaker.succeeded(probe=probe)
        else:
            self.breaker.undecided(probe=probe)

    async def _acquainted(self, clock: CallClock) -> tuple[Nature, Road]:
        """As `_nature`, within the limits of a call. Nothing of the call was sent when this fails."""
        until = min(clock.total_due, monotonic() + ANSWER_S)
        try:
            return await self._nature(until)
        except Overdue as error:
            raise ConnectFailed("the server did not say in time what it is") from error

    async def _nature(self, until: float) -> tuple[Nature, Road]:
        """The server's nature and the road to it, asked of the server where the file leaves it open."""
        known = self._known
        if known is not None and not self._doubted:
            return known
        async with self._detecting:
            if self._known is None or self._doubted:
                nature = await detect(self._wire, self.entry, until)
                if self._known is None or self._known[0].dialect != nature.dialect:
                    await self._leave_road()
                    self._known = nature, await self._way(nature)
                self._doubted = False
                self._fit_share(nature.slots)
                self.pulse.stuck_s = STUCK_S[nature.dialect]
                log.info("upstream_known", upstream=self.entry.name, dialect=nature.dialect, slots=self.slots.share)
            return self._known

    async def _way(self, nature: Nature) -> Road:
        if nature.dialect != "openai":
            return EngineRoad(self._wire, self.entry, keep_alive=nature.dialect != "llamacpp")
        return await asyncio.to_thread(_hosted, self.entry)

    def _fit_share(self, actual: int | None) -> None:
        """Scale the share down for a server that says it has fewer slots than the file: the rest would wait in it,
        out of the reach of priorities.
        """
        entry, share = self.entry, self.entry.shares.get(self.role, 0)
        if actual is not None and actual < entry.slots and share:
            share = max(1, share * actual // entry.slots)
        self.slots.resize(share)

    async def beat(self) -> None:
        """Look at the server once, and act on what changed."""
        before = self.pulse.state
        try:
            nature, _ = await self._nature(monotonic() + ANSWER_S)
            seen = await look(self._wire, self.entry, nature.dialect)
        except (ConnectFailed, Refused) as error:
            seen = Beat(failure=str(error), sure=True)
        except Overdue:
            seen = Beat(failure=f"did not answer within {ANSWER_S:g} s")
        except UpstreamError as error:
            seen = Beat(failure=str(error))
        self.pulse.take(monotonic(), seen)
        if self.pulse.state != before:
            self._changed(before)

    def _changed(self, before: UpstreamState) -> None:
        state, reason = self.pulse.state, self.pulse.reason
        say = log.warning if state in DEAD else log.info if before in DEAD else log.debug
        say("upstream_state", upstream=self.entry.name, state=state, before=before, reason=reason or None)
        if state in DEAD:
            self.breaker.trip(f"{state}: {reason}")
            self._doubted = True  # what comes back may be another server
        elif before in DEAD:
            self.breaker.seen_back()

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(HOSTED_BEAT_S if self._known and self._known[0].dialect == "openai" else BEAT_S)
            await self.beat()

    @property
    def place(self) -> str:
        """The server's address and, once it was asked, its dialect."""
        return f"{self.entry.base_url} {'' if self._known is None else self._known[0].dialect}"

    def status(self) -> UpstreamStatus:
        """How it is. One that is not asked for the moment, since calls to it failed, counts as down."""
        state, reason = self.pulse.state, self.pulse.reason
        if state not in DEAD:
            try:
                self.breaker.check()
            except BreakerOpen as error:
                state, reason = "down", str(error)
        if not reason and self.slots.share == 0:
            reason = f"the role {self.role} has no share"
        return UpstreamStatus(self.entry.name, self.entry.model, state, reason, self.slots.used, self.slots.share)

    async def close(self) -> None:
        """Drop all connections."""
        self._wire.close()
        await self._leave_road()

    async def _leave_road(self) -> None:
        known, self._known = self._known, None
        if known is not None:
            await known[1].close()


def _hosted(entry: UpstreamEntry) -> Road:
    """The road to a hosted API. The vendor's client is imported here, where it is needed and beside the event loop: it
    takes a second and memory that engines of our own do not need.
    """
    from libs.upstreams.vendor import VendorRoad

    return VendorRoad(entry)
