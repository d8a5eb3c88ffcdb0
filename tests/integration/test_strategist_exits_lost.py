"""Closes without an answer: found, given up in time, and never taken for one another's."""

import asyncio
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path

import pytest

from libs.trading.broker.client import Broker
from services.api.strategist.exits.exits import Exits
from tests.integration.api_app import until
from tests.integration.exit_cases import (
    CLOSE,
    HELD,
    Clock,
    an_exit,
    crashed,
    holding_broker,
    journal_of,
    restarted,
    sold,
    way_to,
)
from tests.integration.paper_server import Paper
from tests.integration.test_strategist_orders import held_of


@pytest.fixture
async def paper() -> AsyncGenerator[Paper, None]:
    """The broker."""
    async with holding_broker() as made:
        yield made


@pytest.fixture
async def broker(paper: Paper) -> AsyncGenerator[Broker, None]:
    """The way to it."""
    async with way_to(paper) as made:
        yield made


async def test_a_close_that_never_arrived_may_be_tried_again_after_a_minute(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """Until then nobody can tell, and who asks is told so."""
    clock = Clock()
    exits = Exits(broker, state=tmp_path, now=clock.now)
    paper.fault(kind="reset", route=CLOSE, when="before")
    lost = await exits.reduce(an_exit())
    assert (lost.status, lost.broker_id) == ("submitting", None)
    clock.later(30)
    assert (await exits.reduce(an_exit())).lost
    clock.later(31)
    await exits.settle()
    [known] = exits.to_copy()
    assert (known.verdict_id, known.status) == (lost.verdict_id, "not_sent")
    assert (await restarted(broker, tmp_path)).to_copy() == [known]
    done = await exits.reduce(an_exit())
    assert (done.broker_id, sold(paper)) == (paper.orders()[-1].id, 1)


async def test_a_process_that_was_killed_before_the_broker_had_it_blocks_nothing(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """The order is asked for again a minute later: it goes out, once."""
    crashed(tmp_path, an_exit(), ago_s=61)
    exits = await restarted(broker, tmp_path)
    done = await exits.reduce(an_exit())
    assert (await exits.reduce(an_exit())).broker_id == done.broker_id == paper.orders()[-1].id
    assert sold(paper) == 1


@pytest.mark.parametrize("asked_again", [True, False])
async def test_a_process_that_was_killed_after_the_broker_had_it_finds_its_order(
    broker: Broker, paper: Paper, tmp_path: Path, asked_again: bool
) -> None:
    """By its form, for who asks again and in the background."""
    crashed(tmp_path, an_exit(), ago_s=16)
    await broker.close_position("AAPL", Decimal(2))
    exits = await restarted(broker, tmp_path)
    if asked_again:
        await exits.reduce(an_exit())
    else:
        await exits.settle()
    [found] = exits.to_copy()
    assert (found.broker_id, sold(paper)) == (paper.orders()[-1].id, 1)


async def test_somebody_elses_later_order_is_not_taken_for_a_lost_close(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """It came when the lost one could not come any more."""
    crashed(tmp_path, an_exit(), ago_s=3600)
    await broker.close_position("AAPL", Decimal(2))
    exits = await restarted(broker, tmp_path)
    await exits.settle()
    assert [each.status for each in exits.to_copy()] == ["not_sent"]


async def test_a_broker_that_does_not_answer_gives_no_exit_up(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """Not found is not the same as not asked."""
    crashed(tmp_path, an_exit(), ago_s=3600)
    paper.fault(kind="error", route="GET /v2/orders")
    exits = await restarted(broker, tmp_path)
    assert (await exits.reduce(an_exit())).lost
    assert sold(paper) == 0


async def test_who_asks_again_is_told_how_it_stands_now(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """New when it was sent, filled since; with the broker away, as it was."""
    paper.fault(kind="hold_fills", for_s=0.5)
    exits = Exits(broker, state=tmp_path)
    done = await exits.reduce(an_exit())
    assert (done.status, done.filled_qty) == ("new", 0)
    await until(lambda: held_of(paper), lambda held: held == HELD - 2)
    paper.fault(kind="error", route="GET /v2/orders/{id}", times=1)
    assert (await exits.reduce(an_exit())).status == "new"
    again = await exits.reduce(an_exit())
    assert (again.status, again.filled_qty, again.verdict_id) == ("filled", 2, done.verdict_id)


async def test_a_stop_waits_for_exits_under_way(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """Its caller is gone and the process ends: what became of it is in the journal."""
    paper.fault(kind="latency", route=CLOSE, ms=400, times=1)
    exits = Exits(broker, state=tmp_path)
    caller = asyncio.create_task(exits.reduce(an_exit()))
    await until(lambda: journal_of(tmp_path), bool)
    caller.cancel()
    await exits.close(within_s=6)
    actions = [(entry["action"], entry["result"]["broker_id"]) for entry in await journal_of(tmp_path)]
    assert actions == [("closing", None), ("done", paper.orders()[-1].id)]


async def test_a_stop_does_not_wait_for_ever(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """A broker that hangs: the next start finds the order that it had begun."""
    paper.fault(kind="latency", route=CLOSE, ms=60_000, times=1)
    exits = Exits(broker, state=tmp_path)
    caller = asyncio.create_task(exits.reduce(an_exit()))
    await until(lambda: journal_of(tmp_path), bool)
    await exits.close(within_s=0.05)
    assert caller.cancelled() or (await asyncio.wait([caller]))[0]
    assert [each.lost for each in (await restarted(broker, tmp_path)).to_copy()] == [True]


async def test_two_lost_closes_never_share_an_order(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """One arrived, one did not; they look alike and look at the same time."""
    paper.fault(kind="reset", route=CLOSE, when="after", nth=1)
    paper.fault(kind="reset", route=CLOSE, when="before", nth=2)
    clock = Clock()
    exits = Exits(broker, state=tmp_path, now=clock.now)
    both = await asyncio.gather(*(exits.reduce(an_exit(name)) for name in ("o1", "o2")))
    assert sorted(each.broker_id or "" for each in both) == ["", paper.orders()[-1].id]
    clock.later(61)
    again = await asyncio.gather(*(exits.reduce(an_exit(name)) for name in ("o1", "o2")))
    assert {each.broker_id for each in again} == {each.id for each in paper.orders() if each.side == "sell"}
    assert sold(paper) == 2
