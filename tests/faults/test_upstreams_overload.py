"""More requests than an engine can answer: it goes on working, and what it works on is still wanted when it is done.

The load is offered by the engine's own progress: each request that gets to it brings so many new ones. So it is 2 or 10
times what the engine can do on any machine, and how much of the engine's work was of use can be counted.
"""

import asyncio
import random
from collections import Counter
from time import monotonic

import orjson
import pytest

from libs.upstreams.clock import CallClock
from libs.upstreams.config import UpstreamEntry
from libs.upstreams.errors import DeadlineExceeded, NoSlot, QueueFull
from libs.upstreams.pool import Upstreams
from libs.upstreams.types import TimeLimits
from libs.upstreams.upstream import Upstream
from libs.upstreams.visit import Visit
from tests.fakes.engine import FakeEngine, Reply
from tests.faults.upstream_cases import until

SLOTS = 8
TURNS = 240
BODY = orjson.dumps({"model": "Lexi", "messages": [{"role": "user", "content": "hello"}]})


class Crowd:
    """Callers with deadlines, `times` new ones for each request that the engine takes up."""

    def __init__(self, times: int, *, limits: TimeLimits, hold_s: float, spread: float, seed: int) -> None:
        self.fake = FakeEngine(slots=SLOTS, reply=self._taken_up)
        self.ended: Counter[str] = Counter()
        self.held: list[int] = []
        self._times = times
        self._limits = limits
        self._hold_s = hold_s
        self._spread = spread
        self._random = random.Random(seed)
        self._callers: set[asyncio.Task[None]] = set()
        self._turns = 0

    def _taken_up(self, _: object) -> Reply:
        self._turns += 1
        for _ in range(self._times if self._turns < TURNS else 0):
            self._come()
        return Reply("OK", delay_s=self._hold_s * self._random.uniform(1 - self._spread, 1 + self._spread))

    def _come(self) -> None:
        caller = asyncio.create_task(self._call())
        self._callers.add(caller)
        caller.add_done_callback(self._callers.discard)

    async def _call(self) -> None:
        (place,) = self._upstreams.places("Lexi", allowed=lambda _: True)
        try:
            await self._ask(place)
        except (DeadlineExceeded, NoSlot, QueueFull) as error:
            self.ended[error.code] += 1
        else:
            self.ended["answered"] += 1

    async def _ask(self, place: Upstream) -> None:
        clock = CallClock(self._limits, monotonic())
        async with Visit(place, clock, priority=self._random.choice([4, 9]), tokens=600) as visit:
            exchange = await visit.send("chat/completions", BODY)
            await exchange.head(clock.due)
            while await exchange.read(clock.due):
                pass

    async def play(self) -> None:
        async with self.fake:
            entry = UpstreamEntry("lexi", "Lexi", self.fake.base_url, "vllm", SLOTS, {"api": SLOTS}, 4096)
            self._upstreams = Upstreams({"lexi": entry}, role="api")
            await self._upstreams.start()
            for _ in range(SLOTS):
                self._come()
            while self._turns < TURNS:
                await asyncio.sleep(0.007)
                self.held.append(self._upstreams.status()[0].slots_used)
            await until(lambda: not self._callers)
            assert self._upstreams.status()[0].slots_used == 0
            await self._upstreams.close()


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("times", [2, 10])
async def test_goodput_under_overload_is_that_of_a_busy_engine(times: int, spread: float) -> None:
    limits = TimeLimits(connect_s=10, first_token_s=10, idle_s=10, total_s=0.5)
    crowd = Crowd(times, limits=limits, hold_s=0.05, spread=spread, seed=times)
    await crowd.play()
    taken_up = len(crowd.fake.requests)
    assert taken_up >= TURNS
    assert crowd.ended["answered"] >= 0.9 * taken_up
    # Refusing more than needed would leave slots free.
    assert sum(crowd.held) >= 0.9 * SLOTS * len(crowd.held)
