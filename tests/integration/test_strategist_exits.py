"""Reducing orders against a broker on a socket: each sent once, whoever asks, and remembered."""

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.trading.broker.client import Broker
from libs.trading.journal import Journal
from libs.trading.reasons import Reason
from services.api.strategist.exits.copier import Copier
from services.api.strategist.exits.elsewhere import Recorded
from services.api.strategist.exits.exits import Exits
from tests.integration.api_app import database_away, until
from tests.integration.desk_cases import reconciled
from tests.integration.exit_cases import (
    CLOSE,
    Clock,
    an_exit,
    holding_broker,
    journal_of,
    restarted,
    sold,
    way_to,
)
from tests.integration.paper_server import Paper
from tests.integration.test_strategist_desk import desk_on
from tools.local_stack.postgres import EmbeddedPostgres


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


async def test_a_retry_that_went_out_is_not_forgotten_when_its_failed_attempt_comes_on_record(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """The copier holds the failed attempt in its hands while the same order succeeds."""
    exits = Exits(broker, state=tmp_path)
    paper.fault(kind="fail_close", where="single", times=1, status=403, code=40310000, message="held\x00 by others")
    failed = await exits.reduce(an_exit())
    assert (failed.failed, "\x00" in failed.detail) == (True, False)
    in_hand = exits.to_copy()
    done = await exits.reduce(an_exit())
    await exits.copied(in_hand[0])
    for knows in (exits, await restarted(broker, tmp_path)):
        assert [each.verdict_id for each in knows.to_copy()] == [done.verdict_id]
        again = await knows.reduce(an_exit())
        assert (again.broker_id, again.verdict_id) == (done.broker_id, done.verdict_id)
    assert sold(paper) == 1


async def test_what_came_further_since_it_was_copied_is_copied_again(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """On record as submitting, found at the broker since: the record follows, also after a restart."""
    paper.fault(kind="reset", route=CLOSE, when="after")
    paper.fault(kind="error", route="GET /v2/orders", times=3)
    clock = Clock()
    exits = Exits(broker, state=tmp_path, now=clock.now)
    assert (await exits.reduce(an_exit())).lost
    [lost] = exits.to_copy()
    clock.later(16)
    await exits.settle()
    await exits.copied(lost)
    [found] = (await restarted(broker, tmp_path)).to_copy()
    assert (found.verdict_id, found.broker_id) == (lost.verdict_id, paper.orders()[-1].id)
    await exits.copied(found)
    assert exits.to_copy() == []
    assert (await restarted(broker, tmp_path)).to_copy() == []


@pytest.mark.parametrize("together", [False, True])
async def test_two_processes_on_one_disk_send_an_exit_once(
    broker: Broker, paper: Paper, tmp_path: Path, together: bool
) -> None:
    """They meet in the journal; another body under the id is refused by the one that did not send it."""
    one, two = await restarted(broker, tmp_path), await restarted(broker, tmp_path)
    if together:
        first, second = await asyncio.gather(one.reduce(an_exit()), two.reduce(an_exit()))
    else:
        first, second = await one.reduce(an_exit()), await two.reduce(an_exit())
    assert first.verdict_id == second.verdict_id
    assert sold(paper) == 1
    for each in (one, two):
        assert (await each.reduce(an_exit())).broker_id == paper.orders()[-1].id
        assert (await each.reduce(an_exit(qty=Decimal(3)))).refusal is Reason.DUPLICATE
    assert sold(paper) == 1


async def test_who_asks_the_other_process_is_told_submitting_until_the_broker_answered(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """The one that has the order id waits for the broker; the other one reads in the journal what came of it."""
    one, two = await restarted(broker, tmp_path), await restarted(broker, tmp_path)
    paper.fault(kind="latency", route=CLOSE, ms=500, times=1)
    sending = asyncio.create_task(one.reduce(an_exit()))
    await until(lambda: journal_of(tmp_path), bool)
    assert (await two.reduce(an_exit())).lost
    done = await sending
    assert (await two.reduce(an_exit())).broker_id == done.broker_id
    assert sold(paper) == 1


async def test_a_failed_attempt_of_another_process_may_be_tried_again_once(
    broker: Broker, paper: Paper, tmp_path: Path
) -> None:
    """The first process failed, the second succeeds, and the first one then knows."""
    one, two = await restarted(broker, tmp_path), await restarted(broker, tmp_path)
    paper.fault(kind="fail_close", where="single", times=1, status=403, code=40310000)
    assert (await one.reduce(an_exit())).failed
    done = await two.reduce(an_exit())
    assert (await one.reduce(an_exit())).broker_id == done.broker_id
    assert sold(paper) == 1


async def test_an_exit_that_another_disk_has_on_record_is_not_sent_again(
    broker: Broker, paper: Paper, tmp_path: Path, engine: AsyncEngine, database_url: str
) -> None:
    """Postgres knows it; the answer is the broker's word of now."""
    await reconciled(engine)
    one, two = (Exits(broker, state=tmp_path / name, elsewhere=Recorded(engine)) for name in "ab")
    async with desk_on(database_url, tmp_path) as desk:
        done = await one.reduce(an_exit())
        await Copier(one, desk).copy()
    again = await two.reduce(an_exit())
    assert (again.verdict_id, again.broker_id, sold(paper)) == (done.verdict_id, done.broker_id, 1)
    assert two.to_copy() == []


async def test_without_postgres_an_exit_goes_out_unasked(
    broker: Broker,
    paper: Paper,
    tmp_path: Path,
    engine: AsyncEngine,
    database_url: str,
    postgres: EmbeddedPostgres,
) -> None:
    """Who is away is not waited for."""
    exits = Exits(broker, state=tmp_path, elsewhere=Recorded(engine))
    with database_away(postgres, database_url):
        assert (await exits.reduce(an_exit())).broker_id == paper.orders()[-1].id


async def test_forty_exits_at_once_are_all_remembered(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """They share their syncs; what the journal did not take while somebody held it follows."""
    exits = Exits(broker, state=tmp_path)
    orders = [an_exit(f"o{number}", qty=Decimal(1)) for number in range(40)]
    descriptor = os.open(tmp_path / "exits.jsonl", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    done = await asyncio.gather(*(exits.reduce(order) for order in orders))
    assert [each.broker_id is not None for each in done] == [True] * 40
    assert (tmp_path / "exits.jsonl").read_text() == ""
    os.close(descriptor)
    await exits.settle()
    again = await restarted(broker, tmp_path)
    assert {each.broker_id for each in again.to_copy()} == {each.broker_id for each in done}
    assert Journal(tmp_path / "exits.jsonl").first_broken() is None
    assert [(await again.reduce(order)).verdict_id for order in orders] == [each.verdict_id for each in done]
    assert sold(paper) == 40


async def test_a_disk_that_refuses_stops_no_exit(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """The journal cannot be opened; this process knows all the same what it did, and notes it when the disk is back."""
    (tmp_path / "exits.jsonl").mkdir()
    exits = await restarted(broker, tmp_path)
    done = await exits.reduce(an_exit())
    assert (await exits.reduce(an_exit())).broker_id == done.broker_id == paper.orders()[-1].id
    (tmp_path / "exits.jsonl").rmdir()
    await exits.settle()
    assert (await restarted(broker, tmp_path)).known(an_exit()) == replace(done, filled_qty=Decimal(0))
    assert sold(paper) == 1


async def test_a_refusal_takes_no_order_id(broker: Broker, paper: Paper, tmp_path: Path) -> None:
    """Neither another key's nor one's own; and the same refusal is on record once."""
    exits = Exits(broker, state=tmp_path)
    refused = [await exits.reduce(an_exit(key_name="other", qty=Decimal(1000))) for _ in range(5)]
    assert {(each.refusal, each.verdict_id) for each in refused} == {(Reason.NOT_REDUCING, refused[0].verdict_id)}
    assert len(await journal_of(tmp_path)) == 1
    assert (await exits.reduce(an_exit())).refusal is None
    assert (await exits.reduce(an_exit(key_name="other"))).refusal is None
    duplicate = await exits.reduce(an_exit(qty=Decimal(5)))
    assert duplicate.refusal is Reason.DUPLICATE
    assert sold(paper) == 2
    verdicts: list[UUID] = [each.verdict_id for each in exits.to_copy()]
    assert len(verdicts) == 4
    assert {refused[0].verdict_id, duplicate.verdict_id} < set(verdicts)
    assert [each.verdict_id for each in (await restarted(broker, tmp_path)).to_copy()] == verdicts
