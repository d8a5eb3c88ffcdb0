"""The open loop: questions begin at moments drawn beforehand, and lateness of ours is told, not hidden."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import scipy.stats

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.running.arrivals import Arrivals
from libs.evaluation.running.plan import Pinned, Plan
from libs.evaluation.running.row import Row
from libs.evaluation.running.runner import MOST_UNDER_WAY, run
from libs.evaluation.running.work import Ended, Patience
from tests.unit.evaluation_running_cases import ManyCases, plan_of, row_of_item, until

stats: Any = scipy.stats  # untyped

AWAY = "connect_failed: nobody listens"
QUICK = Patience(first_s=0.001, longest_s=0.002, give_up_s=30, leave_s=1)


class Clock:
    """A clock that only tells what it was set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def moments(count: int, *, rate: float, seed: int) -> list[float]:
    """Arrivals of a clock far in the future: none is waited for."""
    clock = Clock()
    arrivals = Arrivals(rate, seed=seed, clock=clock)
    clock.now = 1e9
    return [await arrivals.next() for _ in range(count)]


async def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    came = await moments(4_000, rate=25, seed=1)
    gaps = [later - sooner for sooner, later in pairwise(came)]
    assert stats.kstest(gaps, "expon", args=(0, 1 / 25)).pvalue > 0.001
    assert stats.spearmanr(gaps[:-1], gaps[1:]).pvalue > 0.001


async def test_same_seed_same_arrivals() -> None:
    assert await moments(20, rate=3, seed=5) == await moments(20, rate=3, seed=5)
    assert await moments(20, rate=3, seed=5) != await moments(20, rate=3, seed=6)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Arrivals(rate, seed=1, clock=Clock())


async def opened(
    plan: Plan, ask: "Slow", *, pace: float, clock: Callable[[], float] = time.monotonic
) -> tuple[Ended, list[Row]]:
    kept: list[Row] = []

    async def keep(row: Row) -> None:
        kept.append(row)

    ended = await run(
        plan,
        ManyCases(plan.cases),
        ask=ask,
        keep=keep,
        skip=(),
        places=lambda: 1,
        pace=pace,
        seen=lambda _: None,
        stop=asyncio.Event(),
        patience=QUICK,
        clock=clock,
    )
    return ended, kept


class Slow:
    """Answers only when all questions have been put, if it is told how many there are."""

    def __init__(self, until_asked: int = 0) -> None:
        self.asked = 0
        self.away_until = 0
        self._until = until_asked

    async def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Row:
        self.asked += 1
        if self.asked <= self.away_until:
            return replace(row_of_item(item), status="unavailable", error=AWAY)
        await until(lambda: self.asked >= self._until)
        return row_of_item(item)


async def test_questions_begin_whether_others_are_answered_or_not() -> None:
    """With one place and no answer before all are asked: a closed loop would hang here."""
    ended, kept = await opened(plan_of(40), Slow(until_asked=40), pace=2_000)
    assert ended.done == len(kept) == 40


async def test_late_questions_say_how_late_they_are() -> None:
    """The clock stands still until all moments are past: each item is as late as its moment lies back."""
    clock = Clock()

    class Stalled(Slow):
        async def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Row:
            row = await super().__call__(case, pinned, item=item, repeat=repeat)
            clock.now += 10.0  # this process stood still while it was asking
            return row

    _, kept = await opened(plan_of(5), Stalled(), pace=1e6, clock=clock)
    assert sorted(row.late_ms for row in kept) == pytest.approx([0, 10_000, 20_000, 30_000, 40_000], abs=1)


async def test_no_more_are_under_way_than_memory_allows_and_the_rest_is_late() -> None:
    class Counting(Slow):
        most = now = 0
        full = asyncio.Event()

        async def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Row:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == MOST_UNDER_WAY:
                asyncio.get_running_loop().call_later(0.1, self.full.set)
            await self.full.wait()
            self.now -= 1
            return row_of_item(item)

    counting = Counting()
    ended, kept = await opened(plan_of(MOST_UNDER_WAY + 10), counting, pace=1e9)
    assert ended.done == MOST_UNDER_WAY + 10
    assert counting.most == MOST_UNDER_WAY
    assert sum(row.late_ms >= 100 for row in kept) >= 10


async def test_the_closed_loop_is_never_late() -> None:
    kept: list[Row] = []

    async def keep(row: Row) -> None:
        kept.append(row)

    await run(
        plan_of(20), ManyCases(20), ask=Slow(), keep=keep, skip=(), places=lambda: 1, pace=None,
        seen=lambda _: None, stop=asyncio.Event(),
    )  # fmt: skip
    assert {row.late_ms for row in kept} == {0.0}


async def test_while_the_model_is_away_no_arrivals_pile_up() -> None:
    """What was planned for an outage is put when the model is back, at moments from then on."""
    slow = Slow()
    slow.away_until = 30
    ended, kept = await opened(plan_of(20), slow, pace=500)
    assert (ended.done, ended.away) == (20, None)
    assert ended.in_vain == 30
    assert sorted(row.item for row in kept) == list(range(20))


async def test_too_much_at_once_is_a_result_under_a_rate() -> None:
    class Refusing(Slow):
        async def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Row:
            self.asked += 1
            return replace(row_of_item(item), status="unavailable", error="refused: answered 429: too many")

    ended, kept = await opened(plan_of(10), Refusing(), pace=5_000)
    assert (ended.done, ended.failed, ended.in_vain) == (10, 10, 0)
    assert len(kept) == 10
