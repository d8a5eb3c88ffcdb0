"""How soon the engine's slot is free after a client left: seen by the upstream itself, on the same clock."""

import http.client
import json
import socket
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bench.gateway.candidates import Candidate
from bench.gateway.wire import Upstream, request

Case: TypeAlias = Literal["mid-stream", "before the first token", "not streamed"]
CASES: tuple[Case, ...] = ("mid-stream", "before the first token", "not streamed")
GOAL_MS = 50.0
ANSWER_S = 3.0
"""How long the upstream would go on for a client that stays."""
PATIENCE_S = 1.0
"""After that a slot counts as not freed."""
FEW = 2
"""So many failures end a case: a candidate that never frees the slot would take minutes to say so."""


@dataclass(slots=True)
class Freed:
    """One case: the time of each try in milliseconds."""

    case: Case
    times_ms: list[float] = field(default_factory=list[float])

    @property
    def tries(self) -> int:
        """How often a client left."""
        return len(self.times_ms)

    @property
    def within(self) -> int:
        """How often the slot was free within the goal."""
        return sum(one <= GOAL_MS for one in self.times_ms)

    def __str__(self) -> str:
        """How often, and the median and longest time."""
        median = statistics.median(self.times_ms)
        return f"{self.within} of {self.tries} (median {median:.1f} ms, longest {max(self.times_ms):.1f} ms)"


class Watch:
    """Asks the upstream about its open requests over one connection that stays."""

    def __init__(self, upstream: Upstream) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)

    def look(self) -> dict[str, Any]:
        """`active`, `left` and `last_left_ns` as they stand."""
        self._connection.request("GET", "/bench/active")
        return json.loads(self._connection.getresponse().read())

    def until(self, name: str, value: int, seconds: float) -> dict[str, Any] | None:
        """What it said when a number had reached a value; None where it did not in time."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            seen = self.look()
            if seen[name] == value:
                return seen
            time.sleep(0.001)
        return None

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def freed(candidate: Candidate, upstream: Upstream, case: Case, *, tries: int) -> Freed:
    """Leave in one way again and again."""
    result = Freed(case)
    middle = case == "mid-stream"
    upstream.set(chunks=round(ANSWER_S * 100), gap_ms=10, delay_ms=0 if middle else ANSWER_S * 1000)
    watch = Watch(upstream)
    try:
        while result.tries < tries and result.tries - result.within < FEW:
            result.times_ms.append(leave(candidate, watch, case))
    finally:
        watch.close()
        upstream.set()
    return result


def leave(candidate: Candidate, watch: Watch, case: Case) -> float:
    """Ask, wait until the upstream works on it, and close the socket. Milliseconds until the upstream saw it go."""
    left = watch.look()["left"]
    with socket.create_connection(("127.0.0.1", candidate.port), timeout=10) as client:
        client.sendall(request(candidate.key, stream=case != "not streamed"))
        if watch.until("active", 1, 10) is None:
            raise RuntimeError(f"{candidate.name}: the request never reached the upstream")
        received = b""
        while case == "mid-stream" and received.count(b"data:") < 3:
            received += client.recv(65536)
        gone_at = time.monotonic_ns()
    seen = watch.until("left", left + 1, PATIENCE_S)
    watch.until("active", 0, ANSWER_S + 1)
    return PATIENCE_S * 1000 if seen is None else (seen["last_left_ns"] - gone_at) / 1e6
