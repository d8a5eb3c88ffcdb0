"""The limits of one call, and where its time went.

Times are seconds of `time.monotonic`, which the event loop's timers go by too. (uvloop's own `time()` is rounded to
milliseconds and stands still within a pass.)
"""

from time import monotonic

from libs.upstreams.errors import ConnectFailed, DeadlineExceeded, FirstTokenTimeout, IdleTimeout, UpstreamError
from libs.upstreams.types import TimeLimits, TimeSplit

TIMER_GRAIN_S = 0.005


class CallClock:
    """Turns the limits into the moment by which the next thing must come, and keeps the split.

    `due` is that moment: the total limit until the request is out, then first token, then idle, never past the total.
    `waited_s` is the time spent waiting for anything but ourselves.
    """

    __slots__ = (
        "begun_at",
        "connected_s",
        "due",
        "limits",
        "queued_s",
        "sent_at",
        "started_at",
        "total_due",
        "waited_s",
        "whole",
    )

    def __init__(self, limits: TimeLimits, now: float) -> None:
        self.limits = limits
        self.started_at = now
        self.total_due = self.due = now + limits.total_s
        self.queued_s = self.connected_s = self.waited_s = 0.0
        self.whole = False
        self.sent_at: float | None = None
        self.begun_at: float | None = None

    def expect_whole(self) -> None:
        """The answer will come in one piece: its first byte is its last, so that only the total bounds it."""
        self.whole = True

    def queued(self, seconds: float) -> None:
        """Time spent in line for a slot."""
        self.queued_s += seconds
        self.waited_s += seconds

    def connect_s(self, now: float) -> float:
        """How long connecting may take."""
        return max(0.0, min(self.limits.connect_s, self.total_due - now))

    def spent(self, now: float) -> bool:
        """Whether the total is used up, but for what timers round off."""
        return now >= self.total_due - TIMER_GRAIN_S

    def check(self, now: float) -> None:
        """Raise `DeadlineExceeded` if the total is used up."""
        if self.spent(now):
            raise self.exhausted()

    def unreachable(self, error: ConnectFailed) -> UpstreamError:
        """What a failure to connect means: where the time left was too short to connect in, nothing but that."""
        return self.exhausted() if self.spent(monotonic()) else error

    def sent(self, now: float, *, connected_s: float) -> None:
        """The request is out: from now the first token is due."""
        self.connected_s = connected_s
        self.waited_s += connected_s
        self.sent_at = now
        self.due = self.total_due if self.whole else min(now + self.limits.first_token_s, self.total_due)

    def moved(self, now: float) -> None:
        """An event of the answer came: the next one is due."""
        if self.begun_at is None:
            self.begun_at = now
        self.due = min(now + self.limits.idle_s, self.total_due)

    def overdue(self) -> UpstreamError:
        """The error for a wait that ended at `due`."""
        limits = self.limits
        if self.due >= self.total_due:
            return self.exhausted()
        if self.begun_at is None:
            return FirstTokenTimeout(f"no token within {limits.first_token_s:g} s")
        return IdleTimeout(f"silent for {limits.idle_s:g} s in the middle of the answer")

    def exhausted(self) -> DeadlineExceeded:
        """The error for a call whose total is used up."""
        return DeadlineExceeded(f"not answered within {self.limits.total_s:g} s in all")

    def split(self, now: float) -> TimeSplit:
        """Where the time went. `first_token_ms` counts from the start of the call."""
        first = 0.0 if self.begun_at is None else self.begun_at - self.started_at
        return TimeSplit(
            queue_ms=self.queued_s * 1000,
            connect_ms=self.connected_s * 1000,
            first_token_ms=first * 1000,
            total_ms=(now - self.started_at) * 1000,
        )
