"""What a request costs: CPU of the candidate's processes, and the time it adds at a gentle pace."""

import time
from dataclasses import dataclass, field

from bench.gateway.candidates import DIRECT, OURS, Candidate
from bench.gateway.machine import cpu_s
from bench.gateway.wire import BenchError, Generator, Load, Upstream

IN_FLIGHT = 64
CHUNKS = 64
GAP_MS = 10.0
SETTLE_S = 1.0
"""After a load, counted with it: what a candidate put off, such as storing its rows, is part of the cost."""
PACE = 100.0
"""Requests per second of the latency runs."""
WARM_UP = 256
COUNTS = {"litellm": (192, 64)}
USUAL = (4_000, 256)
"""Requests of one round, plain and streamed; fewer for the one that is a hundred times slower."""


@dataclass(slots=True)
class Costs:
    """Figures of one candidate, one entry per round: CPU in milliseconds per request, latencies in milliseconds."""

    plain: list[float] = field(default_factory=list[float])
    stream: list[float] = field(default_factory=list[float])
    plain_rate: list[float] = field(default_factory=list[float])
    p50: list[float] = field(default_factory=list[float])
    p99: list[float] = field(default_factory=list[float])
    asked: int = 0


class Meter:
    """Measures candidates round by round, each in its turn."""

    def __init__(self, generator: Generator, upstream: Upstream) -> None:
        self._generator = generator
        self._upstream = upstream
        self.costs: dict[str, Costs] = {}

    def of(self, name: str) -> Costs:
        """The figures of a candidate so far."""
        return self.costs.setdefault(name, Costs())

    def load(self, candidate: Candidate, *, stream: bool, count: int, rate: float = 0) -> Load:
        """A load on a candidate that also counts what was asked. Raises `BenchError` at a bad answer."""
        self.of(candidate.name).asked += count
        connections = IN_FLIGHT if not rate else 32
        try:
            return self._generator.run(
                candidate.port, candidate.key, stream=stream, count=count, connections=connections, rate=rate
            )
        except BenchError as error:
            raise BenchError(f"{candidate.name}: {error}\n{candidate.last_words()}") from error

    def warm_up(self, candidate: Candidate) -> None:
        """Connections, caches and compiled code, before anything counts."""
        self._upstream.set(chunks=CHUNKS, gap_ms=1)
        for stream in (False, True):
            self.load(candidate, stream=stream, count=WARM_UP if candidate.name not in COUNTS else 64)

    def cpu(self, candidate: Candidate, *, stream: bool) -> None:
        """One round of the CPU of a request with 64 in flight."""
        count = COUNTS.get(candidate.name, USUAL)[stream]
        self._upstream.set(chunks=CHUNKS, gap_ms=GAP_MS)
        before = cpu_s(candidate.pid)
        seen = self.load(candidate, stream=stream, count=count)
        time.sleep(SETTLE_S)
        costs = self.of(candidate.name)
        (costs.stream if stream else costs.plain).append((cpu_s(candidate.pid) - before) * 1000 / count)
        if not stream:
            costs.plain_rate.append(count / seen.elapsed_s)

    def latency(self, candidate: Candidate, *, seconds: float) -> None:
        """One round at 100 requests per second, latency from the moment a request was due."""
        self._upstream.set()
        seen = self.load(candidate, stream=False, count=round(seconds * PACE), rate=PACE)
        self.of(candidate.name).p50.append(seen.p50_ms)
        self.of(candidate.name).p99.append(seen.p99_ms)

    def added(self, name: str = OURS) -> tuple[float, float] | None:
        """Milliseconds a candidate adds to the upstream's own p50 and p99, each from its quietest round.

        Disturbances of the machine only ever add, and more than the figures themselves.
        """
        there, direct = self.costs.get(name), self.costs.get(DIRECT)
        if there is None or direct is None or not there.p50 or not direct.p50:
            return None
        return min(there.p50) - min(direct.p50), min(there.p99) - min(direct.p99)
