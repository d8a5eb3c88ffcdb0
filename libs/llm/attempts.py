"""One question, as many attempts as deadline and budget allow, over an upstream and its fallbacks in order.

The loop is our own: whether to try again depends on a budget shared by all calls of the process, on the upstream's
word (`Retry-After`), on the deadline, and on whether to move to the next upstream. A general retry library would carry
none of these four decisions.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from prometheus_client import Counter

from libs.upstreams.errors import (
    BreakerOpen,
    CannotSend,
    DeadlineExceeded,
    NoSlot,
    PromptTooLong,
    Refused,
    UnknownUpstream,
    UpstreamError,
)
from libs.upstreams.types import ChatReply, ChatRequest, Engine, TimeLimits

TRIES_PER_UPSTREAM = 2
BASE_DELAY_S = 0.2
MOST_DELAY_S = 4.0
EXTRA_SHARE = 0.15
WINDOW_S = 60.0
ENGINE_GRACE_S = 0.1
_FAULTS_OF_THE_ENTRY = frozenset({401, 403, 404})

retries_total = Counter("lexi_llm_retries_total", "Extra requests to engines", ["outcome"])


class RetryBudget:
    """At most `share` extra requests per first request within a sliding window of `window_s` seconds.

    One extra request is always allowed while none was made in the window, or a quiet process would never try again.
    """

    def __init__(
        self, *, share: float = EXTRA_SHARE, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share = share
        self._window_s = window_s
        self._clock = clock
        self._seconds: deque[list[float]] = deque()
        self._firsts = 0
        self._extras = 0

    def count_first(self) -> None:
        """A question was asked for the first time."""
        self._second()[1] += 1
        self._firsts += 1

    def take(self) -> bool:
        """Whether one more extra request may go out now; if so, it is counted."""
        second = self._second()
        if self._extras + 1 > max(1.0, self._share * self._firsts):
            return False
        second[2] += 1
        self._extras += 1
        return True

    def _second(self) -> list[float]:
        """The counts of the running second (its start, firsts, extras), with old seconds forgotten."""
        now = self._clock()
        while self._seconds and self._seconds[0][0] <= now - self._window_s:
            _, firsts, extras = self._seconds.popleft()
            self._firsts -= int(firsts)
            self._extras -= int(extras)
        if not self._seconds or now - self._seconds[-1][0] >= 1:
            self._seconds.append([now, 0, 0])
        return self._seconds[-1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the attempts came to: a reply or the last error, how many requests were tried, where the last one went."""

    reply: ChatReply | None
    error: UpstreamError | None
    attempts: int
    upstream: str
    engine_s: float


@dataclass(slots=True)
class _Course:
    """How far one question has come."""

    deadline: float
    attempts: int = 0
    engine_s: float = 0.0
    sent: bool = False


class Attempts:
    """Asks an engine with retries and fallbacks. Clock, chance and sleep are passed in."""

    def __init__(
        self,
        engine: Engine,
        *,
        budget: RetryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self._budget = budget if budget is not None else RetryBudget(clock=clock)

    async def chat(
        self, request: ChatRequest, limits: TimeLimits, *, upstream: str, deadline: float, extra: bool = False
    ) -> Outcome:
        """Try until a reply comes, the deadline (by this object's clock) passes, the budget is used up, or trying
        again cannot help. Only cancellation and bugs are raised.

        `extra` says that the question itself is one of ours on top (a repair turn), so that it earns no budget.
        """
        if not extra:
            self._budget.count_first()
        course = _Course(deadline)
        names = (upstream, *(name for name in self._fallbacks_of(upstream) if name != upstream))
        error: UpstreamError = DeadlineExceeded("no time was left to ask", upstream=upstream)
        asked = upstream
        for number, name in enumerate(names):
            if number and not self._may_move_on(course, error):
                break
            asked = name
            outcome = await self._try_upstream(name, request, limits, course=course)
            if isinstance(outcome, ChatReply):
                return Outcome(outcome, None, course.attempts, outcome.upstream or name, course.engine_s)
            error = outcome
        return Outcome(None, error, course.attempts, error.upstream or asked, course.engine_s)

    def _fallbacks_of(self, upstream: str) -> tuple[str, ...]:
        try:
            return self._engine.fallbacks_of(upstream)
        except UnknownUpstream:
            return ()  # it was taken out while the question was under way; asking it says so

    def _may_move_on(self, course: _Course, error: UpstreamError) -> bool:
        """Whether the next upstream may be asked: for free where nothing was sent so far, else from the budget."""
        if self._clock() >= course.deadline or not _elsewhere_may_help(error):
            return False
        return not course.sent or self._take()

    async def _try_upstream(
        self, name: str, request: ChatRequest, limits: TimeLimits, *, course: _Course
    ) -> ChatReply | UpstreamError:
        error: UpstreamError = DeadlineExceeded("no time was left to ask", upstream=name)
        for number in range(TRIES_PER_UPSTREAM):
            try:
                return await self._once(name, request, limits, course=course)
            except UpstreamError as failed:
                error = failed
            course.sent = course.sent or not isinstance(error, CannotSend)
            last = number + 1 == TRIES_PER_UPSTREAM
            if last or not error.retryable or isinstance(error, BreakerOpen):
                break
            delay = self._delay(error, number)
            if self._clock() + delay >= course.deadline or not self._take():
                break
            await self._sleep(delay)
        return error

    async def _once(self, name: str, request: ChatRequest, limits: TimeLimits, *, course: _Course) -> ChatReply:
        """One request with the limits that the deadline leaves. The engine keeps the limits; this only makes sure."""
        started = self._clock()
        left = course.deadline - started
        if left <= 0:
            raise DeadlineExceeded("no time was left to ask", upstream=name)
        course.attempts += 1
        within = replace(
            limits,
            connect_s=min(limits.connect_s, left),
            first_token_s=min(limits.first_token_s, left),
            idle_s=min(limits.idle_s, left),
            total_s=left,
        )
        guard = asyncio.timeout(left + ENGINE_GRACE_S)
        try:
            async with guard:
                return await self._engine.chat(request, within, upstream=name)
        except TimeoutError as error:
            if not guard.expired():
                raise
            raise DeadlineExceeded(f"no answer within {left:.1f} s", upstream=name) from error
        finally:
            course.engine_s += self._clock() - started

    def _delay(self, error: UpstreamError, number: int) -> float:
        """Full jitter over a doubling span, on top of what the upstream asked for."""
        asked = error.retry_after_s if isinstance(error, Refused) and error.retry_after_s is not None else 0.0
        return max(0.0, asked) + self._chance() * min(MOST_DELAY_S, BASE_DELAY_S * 2**number)

    def _take(self) -> bool:
        taken = self._budget.take()
        retries_total.labels("made" if taken else "refused").inc()
        return taken


def _elsewhere_may_help(error: UpstreamError) -> bool:
    """Whether another upstream may answer what this one did not."""
    if isinstance(error, Refused) and error.status in _FAULTS_OF_THE_ENTRY:
        return True
    return error.retryable or isinstance(error, PromptTooLong | NoSlot | UnknownUpstream)
