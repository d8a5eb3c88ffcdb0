"""This process's share of an engine's slots, given out in order of priority, and the bounded line for them.

Callers that come with an estimate of their tokens, which is how requests from outside come, are bound by how much may
wait. Beyond it they are refused at once, since a line that is longer than callers have patience for serves only those
who are about to leave. Who is more urgent takes the place of who is less. Callers without an estimate, which are our
own and have deadlines and fallbacks of their own, always find a place.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from libs.upstreams.drain import SPARE, Drain
from libs.upstreams.errors import CannotSend, QueueFull

TOKENS_PER_SLOT = 4096
CALLERS_PER_SLOT = 8
LEAST_CALLERS = 64
SOONEST_RETRY_S = 1.0
LATEST_RETRY_S = 30.0


@dataclass(eq=False, slots=True)
class _Waiter:
    """One caller in line. Its turn comes as None, or as the reason why it does not come."""

    priority: int
    until: float
    tokens: int
    turn: asyncio.Future[CannotSend | None]


class _Level:
    """Those of one priority, first come first. `bounded` are the ones with an estimate of `tokens` in all."""

    __slots__ = ("bounded", "line", "tokens")

    def __init__(self) -> None:
        self.line: OrderedDict[_Waiter, None] = OrderedDict()
        self.bounded: OrderedDict[_Waiter, None] = OrderedDict()
        self.tokens = 0


class Slots:
    """At most `share` held at once; those who wait are served lower priority first, then first come first served.

    At most `queue_tokens` estimated tokens wait, of at most `queue_calls` callers: by default 8 a slot, 64 at least.
    """

    def __init__(self, share: int, *, queue_tokens: int | None = None, drain: Drain | None = None) -> None:
        self._used = 0
        self._levels: dict[int, _Level] = {}
        self._waiting = self._bounded = self._tokens = 0
        self._drain = drain or Drain(share)
        self._fit(share, queue_tokens)

    def _fit(self, share: int, queue_tokens: int | None) -> None:
        self._share = share
        self.queue_tokens = share * TOKENS_PER_SLOT if queue_tokens is None else queue_tokens
        self.queue_calls = max(LEAST_CALLERS, CALLERS_PER_SLOT * share)

    @property
    def share(self) -> int:
        """The most slots this process holds at once."""
        return self._share

    @property
    def used(self) -> int:
        """How many are held now."""
        return self._used

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return self._waiting

    @property
    def tokens_waiting(self) -> int:
        """How many tokens they are estimated to need."""
        return self._tokens

    def resize(self, share: int, *, queue_tokens: int | None = None) -> None:
        """Change the share, and the bound of what waits. Slots held beyond a smaller share stay held until they are
        given back, and who stands in line beyond a smaller bound stays.
        """
        before = self._share
        self._fit(share, queue_tokens)
        if self._waiting and share != before:
            self._drain.began(monotonic(), share)
        self._serve()

    def take_now(self) -> bool:
        """Take a slot if one is free and nobody waits."""
        if self._used >= self._share or self._waiting:
            return False
        self._used += 1
        return True

    async def take(self, priority: int, until: float, *, tokens: int = 0) -> None:
        """Take a slot, waiting for it up to `time.monotonic()` `until`. Raises `TimeoutError`.

        With an estimate of `tokens` also `QueueFull`: at once where too much waits or the answer would come after
        `until`, or later on behalf of somebody more urgent. Raises what `dismiss` was called with.
        """
        if self.take_now():
            return
        if not self._waiting:
            self._drain.began(monotonic(), self._share)
        if tokens:
            self._make_room(priority, until, tokens)
        waiter = _Waiter(priority, until, tokens, asyncio.get_running_loop().create_future())
        self._join(waiter)
        try:
            async with asyncio.timeout_at(until):
                refusal = await waiter.turn
        except (asyncio.CancelledError, TimeoutError):
            # The turn may have come in the same pass of the loop in which the caller left: it goes to the next one.
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.result() is None:
                self.give_back()
            else:
                waiter.turn.cancel()
                self._leave(waiter)
            raise
        if refusal is not None:
            raise refusal

    def give_back(self) -> None:
        """Free a slot, and hand it to whoever is first in line."""
        self._used -= 1
        if self._waiting:
            self._serve()

    def dismiss(self, reason: Callable[[], CannotSend], *, bounded: bool = False) -> None:
        """Send everybody in line away with that error, one made for each; only those with an estimate if `bounded`."""
        for waiter in [waiter for level in self._levels.values() for waiter in level.line]:
            if waiter.tokens or not bounded:
                self._send_away(waiter, reason())

    def _serve(self) -> None:
        """Give out what is free. Who would be answered too late makes way for the next, but only one at a time: how
        long an answer takes is a guess, and each turn tells whether it was a good one.
        """
        may_pass = True
        while self._waiting and self._used < self._share:
            waiter = next(iter(self._levels[min(self._levels)].line))
            now = monotonic()
            if may_pass and waiter.tokens and self._waiting > 1 and self._is_late(waiter, now):
                may_pass = False
                self._send_away(waiter, self._full(waiter.priority, "the answer would have come too late", now))
                continue
            self._leave(waiter)
            if not waiter.turn.done():
                self._drain.turned(now, waiter.tokens)
                self._used += 1
                waiter.turn.set_result(None)

    def _make_room(self, priority: int, until: float, tokens: int) -> None:
        """Raise `QueueFull` for a caller that must not wait, else let enough of the less urgent go for it to fit."""
        now = monotonic()
        before = [level for number, level in self._levels.items() if number <= priority]
        if self._too_late(sum(len(level.line) for level in before), until, tokens=tokens, now=now):
            raise self._full(priority, "an answer would come too late", now)
        callers, kept = sum(len(level.bounded) for level in before), sum(level.tokens for level in before)
        if not self._fits(callers, kept, tokens):
            raise self._full(priority, "no more may wait", now)
        while not self._fits(self._bounded, self._tokens, tokens):
            last = next(reversed(self._levels[max(n for n, level in self._levels.items() if level.bounded)].bounded))
            self._send_away(last, self._full(last.priority, "a more urgent one took the place of this", now))

    def _fits(self, callers: int, waiting: int, tokens: int) -> bool:
        """Whether one more fits behind these. One larger than the bound may wait where it is alone."""
        return callers < self.queue_calls and (not waiting or waiting + tokens <= self.queue_tokens)

    def _is_late(self, waiter: _Waiter, now: float) -> bool:
        """Whether a caller whose turn it is would be answered too late even if all goes well."""
        drain = self._drain
        return drain.known and now + drain.least_s(waiter.tokens, now) * SPARE > waiter.until

    def _too_late(self, ahead: int, until: float, *, tokens: int, now: float) -> bool:
        """Whether a caller with so many ahead would miss its deadline, as far as can be told."""
        if not self._drain.known:
            return False
        needed = (self._drain.wait_s(ahead, now) or 0.0) + (self._drain.answer_s(tokens, now) or 0.0)
        return now + needed * SPARE > until

    def _full(self, priority: int, why: str, now: float) -> QueueFull:
        ahead = sum(len(level.line) for number, level in self._levels.items() if number <= priority)
        wait_s = self._drain.wait_s(ahead, now) or 0.0
        return QueueFull(
            f"{self._waiting} requests wait for {self._share} slots: {why}",
            retry_after_s=min(max(wait_s, SOONEST_RETRY_S), LATEST_RETRY_S),
        )

    def _send_away(self, waiter: _Waiter, reason: CannotSend) -> None:
        self._leave(waiter)
        if not waiter.turn.done():
            waiter.turn.set_result(reason)

    def _join(self, waiter: _Waiter) -> None:
        level = self._levels.get(waiter.priority)
        if level is None:
            level = self._levels[waiter.priority] = _Level()
        level.line[waiter] = None
        self._waiting += 1
        if waiter.tokens:
            level.bounded[waiter] = None
            level.tokens += waiter.tokens
            self._bounded += 1
            self._tokens += waiter.tokens

    def _leave(self, waiter: _Waiter) -> None:
        level = self._levels.get(waiter.priority)
        if level is None or waiter not in level.line:
            return
        del level.line[waiter]
        self._waiting -= 1
        if waiter.tokens:
            del level.bounded[waiter]
            level.tokens -= waiter.tokens
            self._bounded -= 1
            self._tokens -= waiter.tokens
        if not level.line:
            del self._levels[waiter.priority]
