"""Working through a plan: each item once, its row kept before the next is asked, and a model that is away no result."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from libs.evaluation.cases.case import EvalCase
from libs.evaluation.running.plan import Pinned, Plan
from libs.evaluation.running.row import Row
from libs.evaluation.running.runner import run, tasks_for
from libs.evaluation.running.work import TRIES, Ended, Patience
from tests.unit.evaluation_running_cases import POLICY, RATIONALE, ManyCases, plan_of, row_of_item, until

QUICK = Patience(first_s=0.001, longest_s=0.002, give_up_s=30, leave_s=5)
AWAY = "connect_failed: nobody listens at 127.0.0.1:8008"
CUT = "broken_stream: the connection is gone"


@dataclass
class Desk:
    """A model in this process: says what `says` says, and remembers who was asked, kept and under way."""

    says: Callable[[int, int], str | None] = lambda item, times: None
    takes_s: float = 0.0
    asked: list[int] = field(default_factory=list[int])
    kept: list[Row] = field(default_factory=list[Row])
    shown: list[Row] = field(default_factory=list[Row])
    waits: list[str | None] = field(default_factory=list["str | None"])
    now: int = 0
    most: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, case: EvalCase, pinned: Pinned, *, item: int, repeat: int) -> Row:
        self.asked.append(item)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.now -= 1
        error = self.says(item, self.asked.count(item))
        row = row_of_item(item, case=case.id, prompt=pinned.prompt, version=pinned.version, repeat=repeat)
        return row if error is None else replace(row, status="unavailable", error=error, text="", allow=None)

    async def keep(self, row: Row) -> None:
        await asyncio.sleep(0)
        self.kept.append(row)

    async def run(self, plan: Plan, **changes: Any) -> Ended:
        given: dict[str, Any] = {
            "ask": self,
            "keep": self.keep,
            "skip": frozenset[int](),
            "places": lambda: 4,
            "pace": None,
            "seen": self.shown.append,
            "stop": self.stop,
            "waits": self.waits.append,
            "patience": QUICK,
        }
        return await run(plan, ManyCases(plan.cases), **{**given, **changes})

    @property
    def items(self) -> list[int]:
        return sorted(row.item for row in self.kept)


async def test_every_item_is_asked_once_and_its_row_says_which() -> None:
    plan = plan_of(7, versions=(POLICY, RATIONALE), repeat=3)
    desk = Desk()
    assert await desk.run(plan) == Ended(done=42, failed=0, stopped=False, away=None)
    assert desk.items == sorted(desk.asked) == list(range(42))
    assert desk.shown == desk.kept
    for row in desk.kept:
        case, pinned, repeat = plan.item(row.item)
        assert (row.case, row.prompt, row.repeat) == (f"case-{case}", pinned.prompt, repeat)


async def test_they_are_asked_in_the_order_of_the_plan() -> None:
    desk = Desk()
    plan = plan_of(50)
    await desk.run(plan, places=lambda: 1)
    assert desk.asked == list(plan.order())


@pytest.mark.parametrize("skip", [frozenset({0, 3, 9}), frozenset(range(10)), range(5)])
async def test_what_is_done_is_not_asked_again(skip: Container[int]) -> None:
    desk = Desk()
    await desk.run(plan_of(10), skip=skip)
    assert desk.items == sorted(desk.asked) == [item for item in range(10) if item not in skip]


async def test_a_part_of_the_plan_may_be_given() -> None:
    desk = Desk()
    await desk.run(plan_of(10), order=[7, 2, 9], places=lambda: 1, skip={2})
    assert desk.asked == [7, 9]


async def test_only_a_few_more_tasks_than_places_are_at_work() -> None:
    desk = Desk(takes_s=0.001)
    await desk.run(plan_of(200), places=lambda: 8)
    assert 8 < desk.most <= tasks_for(8) == 11


async def test_a_task_asks_its_next_item_only_after_its_row_is_kept() -> None:
    """Rows asked for and not kept yet are never more than there are tasks."""
    desk = Desk()
    slow = asyncio.Semaphore(0)

    async def keep(row: Row) -> None:
        await slow.acquire()
        await desk.keep(row)

    running = asyncio.create_task(desk.run(plan_of(60), keep=keep))
    for _ in range(60):
        await asyncio.sleep(0.001)
        assert len(desk.asked) - len(desk.kept) <= 2 * tasks_for(4)
        slow.release()
    assert (await running).done == 60


async def test_more_places_are_used_and_fewer_left() -> None:
    desk = Desk(takes_s=0.005)
    places = 2

    async def change() -> None:
        nonlocal places
        await until(lambda: len(desk.kept) >= 30)
        places = 20

    changing = asyncio.create_task(change())
    ended = await desk.run(plan_of(2_000), places=lambda: places)
    await changing
    assert ended.done == 2_000
    assert desk.most == tasks_for(20)


async def test_timeouts_and_refusals_are_results() -> None:
    said = [
        "first_token_timeout: x",
        "deadline_exceeded: x",
        "no_slot: x",
        "refused: answered 400: x",
        "idle_timeout: x",
    ]
    desk = Desk(says=lambda item, _: said[item])
    assert await desk.run(plan_of(5)) == Ended(done=5, failed=5, stopped=False, away=None)
    assert desk.items == [0, 1, 2, 3, 4]
    assert len(desk.asked) == 5


@pytest.mark.parametrize(
    "error",
    [
        AWAY,
        "breaker_open: it failed lately",
        "refused: answered 503: loading",
        "refused: answered 401",
        "no_slot: the role eval has no share of lexi: see shares in the file of upstreams",
    ],
)
async def test_a_model_that_is_away_is_no_result(error: str) -> None:
    desk = Desk()
    desk.says = lambda item, times: error if len(desk.asked) < 30 else None
    ended = await desk.run(plan_of(20))
    assert (ended.done, ended.failed, ended.away) == (20, 0, None)
    assert ended.in_vain == len(desk.asked) - 20
    assert ended.in_vain >= 9
    assert desk.items == list(range(20))
    assert all(row.status == "ok" for row in desk.kept)


async def test_one_question_at_a_time_looks_for_a_model_that_is_away() -> None:
    desk = Desk(takes_s=0.001)
    desk.says = lambda item, times: AWAY if len(desk.asked) < 40 else None
    under_way: list[int] = []

    def waits(_: str | None) -> None:
        under_way.append(desk.now)

    await desk.run(plan_of(20), waits=waits)
    assert under_way
    assert max(under_way) == 0  # said after a pause, with nothing under way


async def test_who_watches_is_told_that_it_waits_and_that_the_model_is_back() -> None:
    desk = Desk()
    desk.says = lambda item, times: AWAY if len(desk.asked) < 30 else None
    await desk.run(plan_of(20))
    assert desk.waits[0] == AWAY
    assert desk.waits[-1] is None
    assert desk.waits.count(None) == 1


async def test_a_model_that_stays_away_ends_the_run_and_says_why() -> None:
    desk = Desk(says=lambda item, times: AWAY)
    ended = await desk.run(plan_of(20), patience=replace(QUICK, give_up_s=0.05))
    assert ended.done == 0
    assert ended.away is not None
    assert AWAY in ended.away
    assert desk.kept == []


async def test_no_share_of_the_slots_ends_the_run_too() -> None:
    desk = Desk()
    ended = await desk.run(plan_of(3), places=lambda: 0, patience=replace(QUICK, give_up_s=0.05))
    assert ended.away is not None
    assert "no share" in ended.away
    assert desk.asked == []


async def test_an_item_that_always_fails_while_others_are_answered_is_given_up() -> None:
    desk = Desk(says=lambda item, times: CUT if item == 5 else None)
    ended = await desk.run(plan_of(200))
    assert (ended.done, ended.failed, ended.away) == (200, 1, None)
    assert Counter(desk.asked)[5] == TRIES
    assert {row.item for row in desk.kept if row.status == "unavailable"} == {5}


async def test_a_question_that_breaks_the_server_each_time_is_given_up_though_nobody_else_is_left() -> None:
    desk = Desk(says=lambda item, times: CUT)
    assert await desk.run(plan_of(1)) == Ended(1, 1, False, None, in_vain=TRIES - 1, waited_s=0.0)
    assert len(desk.asked) == TRIES


async def test_told_to_stop_it_lets_what_is_under_way_land() -> None:
    desk = Desk(takes_s=0.01)
    going = asyncio.create_task(desk.run(plan_of(10_000)))
    await until(lambda: len(desk.kept) >= 3)
    desk.stop.set()
    ended = await going
    assert ended.stopped
    assert ended.done == len(desk.kept) == len(desk.asked) < 10_000


async def test_what_does_not_land_soon_is_broken_off() -> None:
    desk = Desk(takes_s=60)
    going = asyncio.create_task(desk.run(plan_of(10), patience=replace(QUICK, leave_s=0.01)))
    await until(lambda: desk.now > 0)
    desk.stop.set()
    ended = await going
    assert ended.stopped
    assert (ended.done, desk.now, desk.kept) == (0, 0, [])


async def test_a_run_that_is_over_was_not_stopped() -> None:
    desk = Desk()
    ended = await desk.run(plan_of(3))
    desk.stop.set()
    assert not ended.stopped


async def test_a_stop_while_the_model_is_away_ends_at_once() -> None:
    desk = Desk(says=lambda item, times: AWAY)
    going = asyncio.create_task(desk.run(plan_of(10), patience=Patience(first_s=30, longest_s=60, leave_s=0.01)))
    await until(lambda: bool(desk.asked))
    desk.stop.set()
    assert (await going).stopped


@pytest.mark.parametrize("where", ["ask", "keep", "cases"])
async def test_a_failure_of_ours_ends_the_run_and_is_told(where: str) -> None:
    desk = Desk(takes_s=0.001)

    class Full(Exception):
        pass

    async def keep(row: Row) -> None:
        if where == "keep" and len(desk.kept) >= 5:
            raise Full
        await desk.keep(row)

    def says(item: int, times: int) -> str | None:
        if where == "ask" and len(desk.kept) >= 5:
            raise Full
        return None

    class Cases(ManyCases):
        def case(self, index: int) -> EvalCase:
            if where == "cases" and len(desk.kept) >= 5:
                raise Full
            return super().case(index)

    desk.says = says
    with pytest.raises(Full):
        await run(
            plan_of(1_000),
            Cases(1_000),
            ask=desk,
            keep=keep,
            skip=(),
            places=lambda: 4,
            pace=None,
            seen=desk.shown.append,
            stop=desk.stop,
        )
    assert 5 <= len(desk.kept) <= 5 + tasks_for(4)
    assert desk.now == 0


async def test_a_cancelled_run_leaves_nothing_under_way() -> None:
    desk = Desk(takes_s=60)
    going = asyncio.create_task(desk.run(plan_of(10), patience=replace(QUICK, leave_s=0.01)))
    await until(lambda: desk.now > 0)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert desk.now == 0


async def test_rows_on_their_way_to_the_disk_get_there() -> None:
    desk = Desk()
    slow = asyncio.Event()

    async def keep(row: Row) -> None:
        await slow.wait()
        await desk.keep(row)

    going: Awaitable[Ended] = asyncio.create_task(desk.run(plan_of(100), keep=keep, patience=replace(QUICK, leave_s=0)))
    await until(lambda: len(desk.asked) >= 2 * tasks_for(4))
    desk.stop.set()
    await asyncio.sleep(0.01)
    slow.set()
    assert (await going).done == len(desk.kept) == 2 * tasks_for(4)


async def test_told_to_end_now_it_does_not_wait_for_what_is_under_way() -> None:
    """Cancelled while what is under way may still land."""
    desk = Desk(takes_s=60)
    going = asyncio.create_task(desk.run(plan_of(10), patience=replace(QUICK, leave_s=60)))
    await until(lambda: desk.now > 0)
    desk.stop.set()
    await asyncio.sleep(0.01)
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going
    assert desk.now == 0


@pytest.mark.parametrize("pace", [None, 0.001])
async def test_a_stop_with_nothing_under_way_ends_at_once(pace: float | None) -> None:
    """The next arrival is a quarter of an hour away, or nothing may be asked: neither is waited for."""
    desk = Desk()
    places = 0 if pace is None else 1
    going = asyncio.create_task(desk.run(plan_of(10), pace=pace, places=lambda: places))
    await asyncio.sleep(0.01)
    desk.stop.set()
    assert await going == Ended(0, 0, True, None)


async def test_who_says_how_many_places_may_fail() -> None:
    """As when the entry is taken out of the file of upstreams: what came is kept, and the failure told."""
    desk = Desk()

    def places() -> int:
        if len(desk.kept) >= 20:
            raise LookupError
        return 4

    with pytest.raises(LookupError):
        await desk.run(plan_of(100), places=places)
    assert len(desk.kept) == len(desk.asked) >= 20
