"""What is counted of each upstream, for Prometheus."""

from collections.abc import Callable

from prometheus_client import Gauge

from libs.metrics import CounterCell, Counters, Histograms
from libs.upstreams.breaker import Breaker, BreakerState
from libs.upstreams.heartbeat import Pulse
from libs.upstreams.slots import Slots
from libs.upstreams.types import UpstreamState

CALLS = Counters("lexi_upstream_calls", "Calls by upstream and outcome.", ["upstream", "outcome"])
SLOTS_USED = Gauge("lexi_upstream_slots_in_use", "Slots this process holds.", ["upstream"])
SLOTS_WAITING = Gauge("lexi_upstream_slots_waiting", "Calls waiting for a slot of this process's share.", ["upstream"])
TOKENS_WAITING = Gauge("lexi_upstream_tokens_waiting", "Tokens those calls are estimated to need.", ["upstream"])
OVERHEAD = Histograms(
    "lexi_upstream_overhead_seconds",
    "Time of a call spent on our side: the total less waiting for a slot, a connection and the engine.",
    ["upstream"],
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
)
BREAKER = Gauge("lexi_upstream_breaker", "State of the breaker: 0 closed, 1 half open, 2 open.", ["upstream"])
STATE = Gauge("lexi_upstream_state", "1 for the state an upstream is in.", ["upstream", "state"])

BREAKER_VALUES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
STATES: tuple[UpstreamState, ...] = ("up", "busy", "stuck", "down", "unknown")


class Meters:
    """The series of one upstream. Looking a labelled series up costs more than counting, so they are kept."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._outcomes: dict[str, CounterCell] = {}
        self._overhead = OVERHEAD.labels(name)

    def called(self, outcome: str) -> None:
        """A call ended so."""
        counter = self._outcomes.get(outcome)
        if counter is None:
            counter = self._outcomes[outcome] = CALLS.labels(self._name, outcome)
        counter.inc()

    def overhead(self, seconds: float) -> None:
        """What one call cost on our side."""
        self._overhead.observe(max(0.0, seconds))

    def show(self, slots: Slots, breaker: Callable[[], Breaker], pulse: Pulse) -> None:
        """Read the gauges from these from now on, in place of those of an earlier upstream of that name."""
        name = self._name
        SLOTS_USED.labels(name).set_function(lambda: slots.used)
        SLOTS_WAITING.labels(name).set_function(lambda: slots.waiting)
        TOKENS_WAITING.labels(name).set_function(lambda: slots.tokens_waiting)
        BREAKER.labels(name).set_function(lambda: BREAKER_VALUES[breaker().state])
        for state in STATES:
            STATE.labels(name, state).set_function(lambda state=state: float(pulse.state == state))

    def forget(self) -> None:
        """Drop all series of that name: the upstream is gone."""
        name = self._name
        for gauge in (SLOTS_USED, SLOTS_WAITING, TOKENS_WAITING, OVERHEAD, BREAKER):
            gauge.remove(name)
        for state in STATES:
            STATE.remove(name, state)
        for outcome in self._outcomes:
            CALLS.remove(name, outcome)
