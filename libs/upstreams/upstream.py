"""One upstream at work: its slots, breaker, pulse and connections, and what the server behind it is."""

import asyncio
from collections.abc import Callable
from time import monotonic

import structlog

from libs.upstreams.breaker import Breaker, BreakerState
from libs.upstreams.chat import chat
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.detect import Nature, detect
from libs.upstreams.errors import BreakerOpen, ConnectFailed, NoSlot, Refused, UpstreamError
from libs.upstreams.exchange import Overdue
from libs.upstreams.heartbeat import ANSWER_S, BEAT_S, HOSTED_BEAT_S, STUCK_S, Beat, Pulse, look
from libs.upstreams.meters import Meters
from libs.upstreams.roads import Road
from libs.upstreams.slots import Slots
from libs.upstreams.types import ChatReply, ChatRequest, Role, TimeLimits, UpstreamState, UpstreamStatus
from libs.upstreams.wire import Wire

log = structlog.get_logger(__name__)

TOKENS_PER_SLOT = 4096
"""What may wait for each slot of an entry that names neither `queue_tokens` nor its context."""
DEAD: frozenset[UpstreamState] = frozenset({"stuck", "down"})


class Upstream:
    """One entry of the configuration, seen from one process.

    `known` is what the server is: None until it was asked, and again from when it died, since what comes back may be
    another.
    """

    def __init__(self, entry: UpstreamEntry, role: Role, clock: Callable[[], float]) -> None:
        self.entry = entry
        self.role: Role = role
        self.api_path = entry.api_path
        self.slots = Slots(0)
        self.breaker = Breaker(clock)
        self.pulse = Pulse(clock())
        headers = {} if entry.api_key is None else {"authorization": f"Bearer {entry.api_key.get_secret_value()}"}
        self.wire = Wire(entry.origin, headers=headers)
        self.known: Nature | None = None
        self._hosted: Road | None = None
        self._nature: Nature | None = None
        self._detecting = asyncio.Lock()
        self.meters = Meters(entry.name)
        self.meters.show(self.slots, lambda: self.breaker, self.pulse)
        self._fit_share()

    async def chat(self, request: ChatRequest, limits: TimeLimits) -> ChatReply:
        """Answer, or raise an `UpstreamError` naming this upstream. Cancelling closes the socket at once."""
        return await chat(self, request, limits)

    async def get_acquainted(self, until: float) -> Nature:
        """What the server is, asked of it where the file leaves it open. Raises `ConnectFailed` where it did not say
        so by `time.monotonic()` `until`, `Refused`, `BrokenStream`.
        """
        try:
            return await self._ask_nature(min(until, monotonic() + ANSWER_S))
        except Overdue as error:
            raise ConnectFailed("the server did not say in time what it is") from error

    async def _ask_nature(self, until: float) -> Nature:
        if self.known is not None:
            return self.known
        try:
            # One asks for all; the others wait for it, but none longer than it has.
            async with asyncio.timeout_at(until), self._detecting:
                return self.known or await self._meet(until)
        except TimeoutError as error:
            raise Overdue from error

    async def _meet(self, until: float) -> Nature:
        nature = await detect(self.wire, self.entry, until)
        if self._nature is None or self._nature.dialect != nature.dialect:
            await self._leave_road()
        self._nature = self.known = nature
        self._fit_share()
        self.pulse.stuck_s = STUCK_S[nature.dialect]
        log.info("upstream_known", upstream=self.entry.name, dialect=nature.dialect, slots=self.slots.share)
        return nature

    async def hosted(self, until: float) -> Road:
        """The vendor's own road to a hosted API, made at first use. Raises `Overdue` at `time.monotonic()` `until`."""
        if self._hosted is None:
            try:
                async with asyncio.timeout_at(until):
                    made = await asyncio.to_thread(_hosted, self.entry)
            except TimeoutError as error:
                raise Overdue from error
            self._hosted = self._hosted or made
        return self._hosted

    def _fit_share(self) -> None:
        """Scale the share down for a server that says it has fewer slots than the file: the rest would wait in it,
        out of the reach of priorities.
        """
        entry, share = self.entry, self.entry.shares.get(self.role, 0)
        actual = None if self._nature is None else self._nature.slots
        if actual is not None and actual < entry.slots and share:
            share = max(1, share * actual // entry.slots)
        self.slots.resize(share, queue_tokens=entry.queue_tokens or share * (entry.context or TOKENS_PER_SLOT))

    def believable(self, tokens: int, choices: int) -> int:
        """Of the tokens that a request asks for, what it can come to: a window for each of its choices. More would
        block the line, or drive everybody out of it, for an answer that cannot be so long. 0 choices: no answer.
        """
        most = self.slots.queue_tokens
        if choices:
            most = min(most, choices * (self.entry.context or TOKENS_PER_SLOT))
        return min(tokens, most)

    async def beat(self) -> None:
        """Look at the server once, and act on what changed."""
        before = self.pulse.state
        try:
            nature = await self._ask_nature(monotonic() + ANSWER_S)
            seen = await look(self.wire, self.entry, nature.dialect)
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
            self.send_away_if_open()
            self.known = None
        elif before in DEAD:
            self.breaker.seen_back()

    def send_away_if_open(self) -> None:
        """Where the breaker is open now, those who wait for a slot learn it at once, and can go elsewhere.

        They would be refused when their turn came, which behind calls that hang until they time out may be long.
        """
        breaker = self.breaker
        if breaker.state is BreakerState.OPEN and self.slots.waiting:
            try:
                breaker.check()
            except BreakerOpen as error:
                said, after_s = str(error), error.retry_after_s
                self.slots.dismiss(lambda: BreakerOpen(said, retry_after_s=after_s))

    def is_at(self, entry: UpstreamEntry) -> bool:
        """Whether another entry of this name means this server and its model, which those in line have asked for."""
        mine = self.entry
        same_server = (mine.base_url, mine.api_key, mine.dialect) == (entry.base_url, entry.api_key, entry.dialect)
        return same_server and mine.model == entry.model

    def adopt(self, entry: UpstreamEntry) -> None:
        """Take over what another entry for the same server says."""
        self.entry = entry
        self._fit_share()
        if not self.has_share:
            self.slots.dismiss(self.no_share)

    def no_share(self) -> NoSlot:
        """The error for a role that has no share of it."""
        name = self.entry.name
        return NoSlot(f"the role {self.role} has no share of {name}: see shares in the file of upstreams")

    @property
    def has_share(self) -> bool:
        """Whether this process may use it at all."""
        return self.entry.shares.get(self.role, 0) > 0

    @property
    def dead(self) -> bool:
        """Whether a call would be refused or lost: it looks down or stuck, or failed lately."""
        return self.pulse.state in DEAD or not self.breaker.passes

    @property
    def load(self) -> float:
        """Calls here and in line for each slot."""
        slots = self.slots
        return (slots.used + slots.waiting) / slots.share if slots.share else float("inf")

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            hosted = self._nature is not None and self._nature.dialect == "openai"
            await asyncio.sleep(HOSTED_BEAT_S if hosted else BEAT_S)
            try:
                await self.beat()
            except Exception:
                # Whatever a server says, it must be looked at again.
                log.exception("upstream_look_failed", upstream=self.entry.name)

    @property
    def place(self) -> str:
        """The server's address and, once it was asked, its dialect."""
        return f"{self.entry.base_url} {'' if self._nature is None else self._nature.dialect}"

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
        self.wire.close()
        await self._leave_road()

    async def _leave_road(self) -> None:
        hosted, self._hosted = self._hosted, None
        self._nature = self.known = None
        if hosted is not None:
            await hosted.close()


def _hosted(entry: UpstreamEntry) -> Road:
    """The road to a hosted API. The vendor's client is imported here, where it is needed and beside the event loop: it
    takes a second and memory that engines of our own do not need.
    """
    from libs.upstreams.vendor import VendorRoad

    return VendorRoad(entry)
