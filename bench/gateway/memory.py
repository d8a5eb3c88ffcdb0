"""Whether memory grows with the number of requests."""

import time
from dataclasses import dataclass

from bench.gateway.candidates import Candidate
from bench.gateway.cost import SETTLE_S, Meter
from bench.gateway.machine import memory_mb
from bench.gateway.wire import Upstream

BLOCK = 1_000
STREAMED = 100
"""So many of each thousand requests are streams."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident megabytes after `first` and after `last` requests."""

    first: int
    last: int
    at_first_mb: float
    at_last_mb: float

    @property
    def growth_mb(self) -> float:
        """Megabytes more at the end."""
        return self.at_last_mb - self.at_first_mb


def memory(candidate: Candidate, meter: Meter, upstream: Upstream, *, last: int) -> Memory:
    """Send `last` requests to a fresh process, and look after a fifth of them and at the end."""
    upstream.set(gap_ms=1)
    first, sent = last // 5, 0
    seen: dict[int, float] = {}
    for mark in (first, last):
        while sent < mark:
            meter.load(candidate, stream=False, count=BLOCK - STREAMED)
            meter.load(candidate, stream=True, count=STREAMED)
            sent += BLOCK
        time.sleep(SETTLE_S)
        seen[mark] = memory_mb(candidate.pid)
    return Memory(first, last, seen[first], seen[last])
