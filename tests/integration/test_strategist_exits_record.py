"""Exits on their way to the record: every attempt and every refusal, whatever one of them or Postgres does."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.broker.client import Broker
from libs.trading.intent import intent_id
from services.api.strategist.desk.desk import Desk
from services.api.strategist.exits.copier import AWAY_AFTER, Copier, copy_exits
from services.api.strategist.exits.elsewhere import Recorded
from services.api.strategist.exits.exits import Exits
from tests.integration.api_app import database_away, until
from tests.integration.exit_cases import Clock, an_exit, holding_broker, sold, way_to
from tests.integration.paper_server import Paper
from tests.integration.test_strategist_desk import desk_on
from tools.local_stack.postgres import EmbeddedPostgres

POISON = "\x00"
"""Postgres takes no text with it, so an exit by such an id never comes on record."""


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


@pytest.fixture
async def desk(database_url: str, tmp_path: Path) -> AsyncGenerator[Desk, None]:
    """A desk that gives up quickly."""
    async with desk_on(database_url, tmp_path, timeout_s=5) as running:
        yield running


async def stored(engine: AsyncEngine, query: str) -> list[dict[str, Any]]:
    """Rows of a query."""
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(query))).mappings()]


async def ids(engine: AsyncEngine) -> set[str]:
    """The order ids of the exits on record."""
    return {row["client_order_id"] for row in await stored(engine, "select client_order_id from orders")}


async def test_one_that_cannot_be_recorded_holds_up_no_other(
    broker: Broker, desk: Desk, engine: AsyncEngine, tmp_path: Path
) -> None:
    """Nor do as many as it takes to think that the database is away."""
    exits = Exits(broker, state=tmp_path)
    for number in range(AWAY_AFTER):
        await exits.reduce(an_exit(f"{POISON}{number}"))
    for name in ("good", "fine"):
        await exits.reduce(an_exit(name))
    copying = asyncio.create_task(copy_exits(exits, desk))
    await until(lambda: ids(engine), lambda found: found == {"good", "fine"})
    copying.cancel()
    with suppress(asyncio.CancelledError):
        await copying
    assert [each.order.client_order_id[0] for each in exits.to_copy()] == [POISON] * AWAY_AFTER


async def test_with_the_database_away_a_round_ends_early_and_all_follow_when_it_is_back(
    broker: Broker, desk: Desk, engine: AsyncEngine, tmp_path: Path, *, postgres: EmbeddedPostgres, database_url: str
) -> None:
    """Nobody is made to wait for what was the database's fault."""
    exits = Exits(broker, state=tmp_path)
    names = {f"o{number}" for number in range(AWAY_AFTER + 2)}
    for name in sorted(names):
        await exits.reduce(an_exit(name))
    copier = Copier(exits, desk)
    with database_away(postgres, database_url):
        await copier.copy()
    assert len(exits.to_copy()) == len(names)
    await copier.copy()  # those that were not tried go first, and tell that it is back
    await copier.copy()
    assert exits.to_copy() == []
    assert await ids(engine) == names


async def test_every_attempt_and_every_refusal_has_its_verdict(
    broker: Broker, desk: Desk, engine: AsyncEngine, tmp_path: Path, *, paper: Paper
) -> None:
    """Refused, failed, sent, and another body under its id: four verdicts, one order, and nothing twice."""
    exits = Exits(broker, state=tmp_path)
    copier = Copier(exits, desk)
    too_many = await exits.reduce(an_exit(qty=Decimal(61)))
    paper.fault(kind="fail_close", where="single", times=1, status=403, code=40310000, message="held\x00 by others")
    failed = await exits.reduce(an_exit())
    sent = await exits.reduce(an_exit())
    duplicate = await exits.reduce(an_exit(qty=Decimal(3)))
    await copier.copy()
    again = Exits(broker, state=tmp_path)
    await again.load()
    assert again.to_copy() == []
    verdicts = await stored(engine, "select id, verdict, reasons from gate_verdicts order by seq")
    assert [(row["id"], row["verdict"], row["reasons"]) for row in verdicts] == [
        (too_many.verdict_id, "deny", ["NOT_REDUCING"]),
        (failed.verdict_id, "allow", ["ALLOW"]),
        (sent.verdict_id, "allow", ["ALLOW"]),
        (duplicate.verdict_id, "deny", ["DUPLICATE"]),
    ]
    [order] = await stored(engine, "select id, broker_id from orders")
    assert order == {"id": intent_id(sent.order), "broker_id": sent.broker_id}


async def test_a_retry_while_its_failed_attempt_comes_on_record_sends_once(
    broker: Broker, desk: Desk, engine: AsyncEngine, tmp_path: Path, *, paper: Paper
) -> None:
    """The gate's lock keeps the copier waiting with the failed attempt; the retry is what is remembered."""
    exits = Exits(broker, state=tmp_path, elsewhere=Recorded(engine))
    paper.fault(kind="fail_close", where="single", times=1, status=403, code=40310000)
    async with engine.connect() as other:
        await other.execute(text("select pg_advisory_xact_lock(hashtext('gate'))"))
        assert (await exits.reduce(an_exit())).failed
        copying = asyncio.create_task(Copier(exits, desk).copy())
        waits = "select 1 from pg_stat_activity where wait_event = 'advisory' and datname = current_database()"
        await until(lambda: stored(engine, waits), bool)
        sent = await exits.reduce(an_exit())
        await other.rollback()
    await copying
    assert (await exits.reduce(an_exit())).broker_id == sent.broker_id
    await Copier(exits, desk).copy()
    [order] = await stored(engine, "select status, broker_id from orders")
    assert order["broker_id"] == sent.broker_id
    assert sold(paper) == 1


async def test_a_close_found_late_and_one_given_up_come_on_record_as_such(
    broker: Broker, desk: Desk, engine: AsyncEngine, tmp_path: Path, *, paper: Paper
) -> None:
    """What was recorded as on its way is corrected under the same verdict."""
    exits = Exits(broker, state=tmp_path)
    paper.fault(kind="reset", route="DELETE /v2/positions/{symbol}", when="before")
    lost = await exits.reduce(an_exit())
    copier = Copier(exits, desk)
    await copier.copy()
    assert [row["status"] for row in await stored(engine, "select status from orders")] == ["submitting"]
    later = Exits(broker, state=tmp_path, now=lambda: lost.at.replace(year=lost.at.year + 1))
    await later.load()
    await later.settle()
    await Copier(later, desk).copy()
    query = "select o.status, v.id from orders o join gate_verdicts v on v.client_order_id = o.client_order_id"
    assert await stored(engine, query) == [{"status": "not_sent", "id": lost.verdict_id}]


async def test_ones_own_lost_attempt_on_record_does_not_stop_the_next_one(
    broker: Broker, desk: Desk, engine: AsyncEngine, tmp_path: Path, *, paper: Paper
) -> None:
    """Postgres still says that it is on its way when this process knows that it never was."""
    clock = Clock()
    exits = Exits(broker, state=tmp_path, elsewhere=Recorded(engine), now=clock.now)
    paper.fault(kind="reset", route="DELETE /v2/positions/{symbol}", when="before")
    assert (await exits.reduce(an_exit())).lost
    await Copier(exits, desk).copy()
    clock.later(61)
    done = await exits.reduce(an_exit())
    assert (done.broker_id, sold(paper)) == (paper.orders()[-1].id, 1)
