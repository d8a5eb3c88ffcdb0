"""A long silence that is no absence: a slow answer on its way, or a server that turns down only what is left."""

import asyncio
from dataclasses import replace

import pytest

from libs.evaluation.running.presence import is_there, without_quotes
from libs.evaluation.running.row import Row
from libs.evaluation.running.work import Patience
from libs.upstreams.types import UpstreamState, UpstreamStatus
from tests.unit.evaluation_running_cases import plan_of, row_of_item
from tests.unit.test_evaluation_runner import AWAY, Desk

SHORT = Patience(first_s=0.001, longest_s=0.01, give_up_s=0.1, leave_s=1)
BAD_GATEWAY = "refused: answered 502: bad gateway"
OPEN = "breaker_open: not asked: a trial call failed (last: refused: answered 502); trying again in 5 s"


@pytest.mark.parametrize("bad", [{7}, {17, 18, 19}, {0, 1, 2, 3, 4, 5, 6, 7}])
@pytest.mark.parametrize("status", [429, 502, 503])
async def test_cases_that_a_live_server_always_turns_down_do_not_hold_up_the_run(bad: set[int], status: int) -> None:
    error = f"refused: answered {status}: no"
    desk = Desk(says=lambda item, times: error if item in bad else None)
    ended = await desk.run(plan_of(20), patience=SHORT)
    assert (ended.done, ended.failed, ended.away) == (20, len(bad), None)
    assert desk.items == list(range(20))
    assert {row.item for row in desk.kept if row.status == "unavailable"} == bad


async def test_nor_do_they_when_a_run_is_gone_on_with_and_the_breaker_opens_on_them() -> None:
    desk = Desk(says=lambda item, times: OPEN if times % 3 == 0 else BAD_GATEWAY)
    ended = await desk.run(plan_of(20), patience=SHORT, skip=set(range(20)) - {7})
    assert (ended.done, ended.failed, ended.away) == (1, 1, None)
    assert [(row.item, row.error) for row in desk.kept] == [(7, BAD_GATEWAY)]


async def test_what_is_turned_down_on_behalf_of_a_dead_server_is_no_result() -> None:
    desk = Desk(says=lambda item, times: BAD_GATEWAY)
    ended = await desk.run(plan_of(20), patience=SHORT, there=lambda: False)
    assert ended.away is not None
    assert desk.kept == []


@pytest.mark.parametrize("error", [AWAY, "breaker_open: not asked: down: nobody listens"])
async def test_where_nobody_turns_anything_down_the_model_is_away(error: str) -> None:
    desk = Desk(says=lambda item, times: error)
    ended = await desk.run(plan_of(2), patience=SHORT)
    assert ended.away is not None
    assert desk.kept == []


async def test_a_server_that_turns_down_much_more_than_the_last_few_is_away() -> None:
    desk = Desk(says=lambda item, times: BAD_GATEWAY)
    ended = await desk.run(plan_of(100_000), patience=SHORT)
    assert ended.away is not None
    assert desk.kept == []


async def test_an_answer_on_its_way_is_waited_for() -> None:
    """Two at a time are answered, slower than the patience; who comes meanwhile is turned away."""
    under_way = 0

    async def ask(case: object, pinned: object, *, item: int, repeat: int) -> Row:
        nonlocal under_way
        await asyncio.sleep(0.001)
        if under_way == 2:
            return row_of_item(item, status="unavailable", error="refused: answered 429: slow down")
        under_way += 1
        try:
            await asyncio.sleep(0.3)
        finally:
            under_way -= 1
        return row_of_item(item)

    desk = Desk()
    ended = await desk.run(plan_of(6), ask=ask, patience=replace(SHORT, longest_s=0.02))
    assert (ended.done, ended.failed, ended.away) == (6, 0, None)


async def test_what_a_server_says_of_a_question_is_told_nobody() -> None:
    quoting = "refused: answered 429: busy with: [your prompt]"
    desk = Desk(says=lambda item, times: quoting)
    ended = await desk.run(plan_of(20), patience=SHORT, there=lambda: False)
    assert ended.away is not None
    assert ended.away.endswith("(refused: answered 429)")
    assert set(desk.waits) == {"refused: answered 429"}


def test_only_what_may_quote_is_cut() -> None:
    assert without_quotes("broken_stream: the engine sent an error: in your prompt") == (
        "broken_stream: the engine sent an error"
    )
    assert without_quotes(AWAY) == AWAY
    assert without_quotes(OPEN) == OPEN


@pytest.mark.parametrize(
    ("state", "reason", "there"),
    [
        ("up", "", True),
        ("busy", "", True),
        ("down", "not asked: too many failed (last: refused: answered 502); trying again in 5 s", True),
        ("down", "/health answered 502", False),
        ("stuck", "3 requests running, no progress for 90 s", False),
        ("unknown", "not looked at yet", False),
    ],
)
def test_a_server_is_there_where_its_heartbeat_says_so(state: UpstreamState, reason: str, there: bool) -> None:
    assert is_there(UpstreamStatus("lexi", "Lexi", state, reason, 0, 4)) is there
