"""What a crash, a rival process, a broker or a database that is away leave behind of a reconciliation."""

import asyncio
from collections.abc import AsyncGenerator
from decimal import Decimal

import httpx
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.probes import Degraded
from libs.trading.broker.address import BrokerAddress
from libs.trading.broker.client import Broker
from services.jobs.queue import CONNECTION_FAILURES
from services.jobs.reconcile.reconciler import Reconciler
from tests.integration.api_app import database_away
from tests.integration.reconcile_cases import Desk, FakeAlpaca, Held, open_desk
from tools.local_stack.postgres import EmbeddedPostgres


@pytest.fixture
async def desk(engine: AsyncEngine) -> AsyncGenerator[Desk, None]:
    async with open_desk(engine, FakeAlpaca()) as made:
        await made.reconcile()
        yield made


TABLES = ("orders", "fills", "positions", "broker_state", "differences", "alerts")


@pytest.mark.parametrize("table", TABLES)
async def test_a_transaction_that_fails_anywhere_changes_nothing(desk: Desk, table: str) -> None:
    order_id = await desk.send()
    desk.alpaca.positions["ODD"] = Decimal(1)
    await desk.reconcile()
    desk.alpaca.fill(desk.at_broker(order_id), 5)
    before = [await desk.rows(f"select * from {each}") for each in TABLES]
    await desk.change(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'disk full'; end $$"
    )
    await desk.change(f"create trigger refuse before insert or update on {table} execute function refuse()")
    with pytest.raises(DBAPIError, match="disk full"):
        await desk.reconciler.step()
    assert [await desk.rows(f"select * from {each}") for each in TABLES] == before
    await desk.change(f"drop trigger refuse on {table}")
    await desk.reconcile()
    assert await desk.positions() == {"AAPL": (5, 5), "ODD": (1, 1)}
    assert await desk.differences() == [("POSITION_DIFFERS", "ODD")]


async def test_one_process_at_a_time(desk: Desk) -> None:
    held = desk.alpaca.held["/positions"] = Held()
    rival = desk.another()
    task = asyncio.create_task(desk.reconciler.step())
    await held.reached.wait()
    calls = len(desk.alpaca.calls)
    assert await rival.step() is None
    assert len(desk.alpaca.calls) == calls
    held.go_on.set()
    assert await task is not None
    assert await rival.step() is not None


async def test_rivals_count_each_fill_once(desk: Desk) -> None:
    order_id = await desk.send(qty=100)
    await desk.reconcile()
    rivals = [desk.another() for _ in range(3)]

    async def go_round(number: int) -> int:
        done = 0
        for _ in range(10):
            desk.alpaca.fill(desk.at_broker(order_id), 1)
            done += await rivals[number].step() is not None
        return done

    done = await asyncio.gather(*(go_round(number) for number in range(3)))
    assert sum(done) > 0
    await desk.reconcile(2)
    assert await desk.positions() == {"AAPL": (30, 30)}
    assert await desk.differences() == []


async def test_postgres_gone_in_the_middle_leaves_the_next_round_whole(
    desk: Desk, postgres: EmbeddedPostgres, database_url: str
) -> None:
    order_id = await desk.send(qty=10)
    await desk.reconcile()
    desk.alpaca.fill(desk.at_broker(order_id), 4)
    held = desk.alpaca.held["/account"] = Held()
    task = asyncio.create_task(desk.reconciler.step())
    await held.reached.wait()
    with database_away(postgres, database_url):
        held.go_on.set()
        (failure,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(failure, CONNECTION_FAILURES)
        (again,) = await asyncio.gather(desk.reconciler.step(), return_exceptions=True)
        assert isinstance(again, CONNECTION_FAILURES)
    await desk.reconcile()
    assert await desk.positions() == {"AAPL": (4, 4)}
    await desk.reconcile(2)
    assert await desk.differences() == []


async def test_a_process_leaves_it_to_another_that_did_it_just_now(desk: Desk) -> None:
    lately = Reconciler(desk.engine, desk.broker, every_s=600)
    assert await lately.step() is not None  # until it knows which account it reads, it cannot leave it to anybody
    calls = len(desk.alpaca.calls)
    assert await lately.step() is None
    assert len(desk.alpaca.calls) == calls
    assert await lately.broker_check() is None
    await desk.change("update broker_state set account = 'alpaca:x:y'")
    assert await lately.step() is not None


async def test_a_reading_that_was_overtaken_is_not_stored(desk: Desk) -> None:
    held = desk.alpaca.held["/account"] = Held()
    task = asyncio.create_task(desk.reconciler.step())
    await held.reached.wait()
    await desk.change("update broker_state set reconciled_at = now(), equity = 1")
    desk.alpaca.positions["AAPL"] = Decimal(1)
    held.go_on.set()
    assert await task is None
    assert [row["equity"] for row in await desk.rows("select equity from broker_state")] == [1]
    assert await desk.positions() == {}


async def test_two_processes_on_different_accounts_do_not_alert_every_round(desk: Desk, engine: AsyncEngine) -> None:
    async with open_desk(engine, FakeAlpaca("PA2")) as elsewhere:
        for _ in range(4):
            await elsewhere.reconcile()
            await desk.reconcile()
    ours, theirs = "paper:PA1", "paper:PA2"
    assert await desk.differences() == [("ACCOUNT_CHANGED", theirs), ("ACCOUNT_CHANGED", ours)]
    alerts = "select key from alerts where kind = 'reconciliation'"
    assert len(await desk.rows(alerts)) == 2
    await desk.change("update differences set at = now() - interval '2 hours'")
    async with open_desk(engine, FakeAlpaca("PA2")) as elsewhere:
        await elsewhere.reconcile()
    assert len(await desk.rows(alerts)) == 3


@pytest.mark.parametrize("routes", [("/orders", "/orders"), ("/positions", "/account", "/clock")])
async def test_a_slow_broker_is_asked_side_by_side(desk: Desk, routes: tuple[str, ...]) -> None:
    """A reading counts from its beginning, so that its calls must not wait for each other needlessly."""
    reached = 0
    all_reached = asyncio.Event()
    answer = desk.alpaca.handle

    async def slow(request: httpx.Request) -> httpx.Response:
        nonlocal reached
        if request.url.path.removeprefix("/v2") in routes:
            reached += 1
            if reached == len(routes):
                all_reached.set()
            await all_reached.wait()
        return await answer(request)

    address = BrokerAddress(name="paper", base_url="http://broker", key_id="key", secret="s")
    async with Broker(address, transport=httpx.MockTransport(slow)) as broker:
        assert await Reconciler(desk.engine, broker, every_s=0).step() is not None
    assert reached == len(routes)


async def test_calls_that_fail_side_by_side_are_one_failure(desk: Desk) -> None:
    before = await desk.rows("select * from broker_state")

    def refuse() -> None:
        raise httpx.ReadTimeout("slow")

    for route in ("/positions", "/account", "/clock"):
        desk.alpaca.before[route] = refuse
    assert await desk.reconciler.step() is None
    assert "GET /v2/positions: slow" in str(await desk.reconciler.broker_check())
    assert await desk.rows("select * from broker_state") == before
    await desk.reconcile()
    assert await desk.reconciler.broker_check() is None


async def test_a_process_that_is_cancelled_on_the_way_lets_go_of_the_lock(desk: Desk) -> None:
    held = desk.alpaca.held["/clock"] = Held()
    task = asyncio.create_task(desk.reconciler.step())
    await held.reached.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await desk.another().step() is not None


async def test_a_broker_that_is_away_is_yellow_and_changes_nothing(desk: Desk) -> None:
    order_id = await desk.send()
    await desk.reconcile()
    assert await desk.reconciler.broker_check() is None
    before = await desk.rows("select * from broker_state")
    desk.alpaca.away = True
    assert await desk.reconciler.step() is None
    assert await desk.reconciler.step() is None
    reason = await desk.reconciler.broker_check()
    assert isinstance(reason, Degraded)
    assert "paper away since" in reason
    assert "http://broker cannot be reached" in reason
    assert await desk.rows("select * from broker_state") == before
    assert (await desk.order(order_id))["status"] == "new"
    await desk.change("update broker_state set reconciled_at = now() - interval '40 seconds'")
    assert "last done 40 s ago; entries are refused" in str(await desk.reconciler.reconciled_check())
    desk.alpaca.away = False
    await desk.reconcile()
    assert await desk.reconciler.broker_check() is None
    assert await desk.reconciler.reconciled_check() is None


async def test_a_broker_that_never_answers_is_given_up(desk: Desk) -> None:
    held = desk.alpaca.held["/orders"] = Held()
    patient = Reconciler(desk.engine, desk.broker, every_s=0, limit_s=0.05)
    assert await patient.step() is None
    assert "no full answer within 0.05 s" in str(await patient.broker_check())
    assert held.reached.is_set()
