"""A breaker per upstream: after enough failures nothing is sent for a while, then a trial call decides."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from libs.upstreams.errors import BreakerOpen

MOST_OUTCOMES = 256


class BreakerState(StrEnum):
    """Closed lets everything pass, open nothing, half-open one trial call, or all where the server was seen back."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """Opens when at least `failures` calls of the last `window_s` failed and they are at least `ratio` of all.

    The rest lasts `rest_s`, doubled after each failed probe up to `longest_rest_s`.
    """

    failures: int = 5
    ratio: float = 0.5
    window_s: float = 30.0
    rest_s: float = 5.0
    longest_rest_s: float = 30.0


class Breaker:
    """Decides whether a call may go out. `clock` gives seconds that never run backwards."""

    def __init__(self, clock: Callable[[], float], rules: BreakerRules | None = None) -> None:
        self._clock = clock
        self._rules = rules or BreakerRules()
        self._window_s = self._rules.window_s
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._failed = 0
        self._opened_at: float | None = None
        self._rest_s = self._rules.rest_s
        self._trials = 0
        self._tried_at = 0.0
        self._era = 0  # grows with every change, so that a trial of before it is told from one of now
        self._seen_back = False
        self.reason = ""

    @property
    def state(self) -> BreakerState:
        """What the next call would meet."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._clock() - self._opened_at >= self._rest_s else BreakerState.OPEN

    @property
    def passes(self) -> bool:
        """Whether a call would be let through now."""
        if self._opened_at is None:
            return True
        return self.state is BreakerState.HALF_OPEN and not self._on_trial

    def check(self) -> None:
        """Raise `BreakerOpen` if a call would not be let through now."""
        if self._opened_at is None:
            return
        state = self.state
        if state is BreakerState.OPEN:
            left = max(1, ceil(self._rest_s - (self._clock() - self._opened_at)))
            raise BreakerOpen(f"not asked: {self.reason}; trying again in {left} s", retry_after_s=left)
        if self._on_trial:
            raise BreakerOpen(f"not asked: one trial call is under way after: {self.reason}")

    @property
    def _on_trial(self) -> bool:
        """Whether others must wait for a trial call. One whose answer comes in one piece at its end may take an hour
        to tell: it keeps others out no longer than a failure would.
        """
        return self._trials > 0 and not self._seen_back and self._clock() - self._tried_at < self._rest_s

    def enter(self) -> int:
        """Let a call through, or raise `BreakerOpen`.

        Gives 0, or for a trial call a number that it must report with how it went, as `probe`.
        """
        if self._opened_at is None:
            return 0
        self.check()
        self._trials += 1
        self._tried_at = self._clock()
        return self._era

    def succeeded(self, *, probe: int) -> None:
        """A call got what it asked for. Only a trial's success closes an open breaker."""
        if self._opened_at is None:
            self._note(failed=False)
        elif probe:
            self.reset()

    def failed(self, reason: str, *, probe: int) -> None:
        """A call failed for a reason that is the upstream's. A trial's failure opens for twice as long.

        One that began before something saw the server come back, or before another trial failed, changes nothing.
        """
        if probe and self._opened_at is not None:
            if probe == self._era:
                self._rest_s = min(self._rest_s * 2, self._rules.longest_rest_s)
                self._open(f"a trial call failed (last: {reason})")
        elif self._opened_at is None:
            self._note(failed=True)
            if self._failed >= self._rules.failures and self._failed >= self._rules.ratio * len(self._outcomes):
                self._open(f"failed {self._failed} times in {self._rules.window_s:g} s (last: {reason})")

    def undecided(self, *, probe: int) -> None:
        """A call ended without telling anything about the upstream: its caller left, or it was the request's fault."""
        if probe == self._era:
            self._trials = max(0, self._trials - 1)

    def trip(self, reason: str) -> None:
        """Open at once: something other than a call knows that the upstream is gone."""
        self._rest_s = self._rules.rest_s
        self._open(reason)

    def seen_back(self) -> None:
        """End the rest: something other than a call saw the upstream come back, so calls may try, however many.

        The first to fail opens again, the first to succeed closes. A trial still out from before does not count.
        """
        if self._opened_at is not None:
            self._rest_s = self._rules.rest_s
            self._opened_at = self._clock() - self._rest_s
            self._seen_back = True
            self._begin_era()

    def reset(self) -> None:
        """Close, and forget what was."""
        self._opened_at = None
        self._seen_back = False
        self._begin_era()
        self._rest_s = self._rules.rest_s
        self.reason = ""

    def _open(self, reason: str) -> None:
        self._opened_at = self._clock()
        self._seen_back = False
        self._begin_era()
        self.reason = reason

    def _begin_era(self) -> None:
        self._era += 1
        self._trials = 0
        self._outcomes.clear()
        self._failed = 0

    def _note(self, *, failed: bool) -> None:
        now, outcomes = self._clock(), self._outcomes
        oldest = now - self._window_s
        while outcomes and (outcomes[0][0] < oldest or len(outcomes) == MOST_OUTCOMES):
            self._failed -= outcomes.popleft()[1]
        outcomes.append((now, failed))
        self._failed += failed
