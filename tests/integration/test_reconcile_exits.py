"""Exits whose order at the broker nobody named: reconciliation finds the one that is theirs."""

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.reconcile_cases import Desk, FakeAlpaca, open_desk


@pytest.fixture
async def desk(engine: AsyncEngine) -> AsyncGenerator[Desk, None]:
    async with open_desk(engine, FakeAlpaca()) as made:
        await made.reconcile()
        yield made


async def copy_exit(desk: Desk, status: str, *, sent_s: float | None = None, copied_s: float = 0) -> UUID:
    """A row of an exit without an order, copied so long ago; its verdict says when it was sent, where that is known."""
    order_id, verdict_id = uuid4(), uuid4()
    if sent_s is not None:
        sent_at = datetime.now(UTC) - timedelta(seconds=sent_s)
        await desk.change(
            "insert into gate_verdicts (seq, id, at, key_name, strategy, client_order_id, intent, first, ticker, side, "
            "qty, ref_price, reduce_only, verdict, would_have, mode, reasons, payload, hash) values (1, :id, now(), "
            "'k', 's', 'mine', 'i', true, 'AAPL', 'sell', 5, 100, true, 'allow', 'allow', 'enforce', '{}', :payload, "
            "'h')",
            id=verdict_id,
            payload=json.dumps({"exit": {"at": sent_at.isoformat(), "status": status, "broker_id": None}}),
        )
    await desk.change(
        "insert into orders (id, origin, verdict_id, ticker, side, qty, status, reason, created_at, updated_at) "
        "select :id, 'exit', :verdict_id, 'AAPL', 'sell', 5, :status, 'said no', at, at "
        "from (select now() - make_interval(secs => :copied)) as t(at)",
        id=order_id,
        verdict_id=verdict_id,
        status=status,
        copied=copied_s,
    )
    return order_id


async def exits_orders(desk: Desk) -> list[dict[str, Any]]:
    return await desk.rows("select id, origin, broker_id, status from orders")


async def test_an_exit_that_got_no_answer_is_known_by_its_form(desk: Desk) -> None:
    for _ in range(2):
        await copy_exit(desk, "submitting")
    closing = desk.alpaca.order("AAPL", -5, type_="market")
    other = desk.alpaca.order("AAPL", -6, type_="market")
    written = await desk.reconcile()
    assert {each.subject for each in written.suspected if each.kind == "UNKNOWN_ORDER"} == {other}
    rows = await desk.rows("select broker_id, status from orders order by broker_id")
    assert rows == [{"broker_id": closing, "status": "new"}, {"broker_id": None, "status": "submitting"}]


@pytest.mark.parametrize("status", ["rejected", "not_sent"])
async def test_an_exit_that_was_refused_at_first_gets_the_order_of_its_next_attempt(desk: Desk, status: str) -> None:
    order_id = await copy_exit(desk, status, sent_s=600, copied_s=600)
    closing = desk.alpaca.order("AAPL", -5, type_="market")
    written = await desk.reconcile()
    assert len(written.suspected) == 1  # it may be another exit's, whose row comes in a moment
    assert (await desk.order(order_id))["broker_id"] is None
    await desk.reconcile()
    order = await desk.order(order_id)
    assert (order["status"], order["broker_id"], order["reason"]) == ("new", closing, "")
    assert await desk.differences() == []


async def test_an_old_refusal_does_not_take_the_order_of_an_exit_without_an_answer(desk: Desk) -> None:
    refused = await copy_exit(desk, "rejected", copied_s=300)
    unanswered = await copy_exit(desk, "submitting")
    closing = desk.alpaca.order("AAPL", -5, type_="market")
    await desk.reconcile(2)
    assert (await desk.order(unanswered))["broker_id"] == closing
    assert (await desk.order(refused))["status"] == "rejected"


async def test_an_order_from_before_an_exit_was_sent_is_not_its_own(desk: Desk) -> None:
    order_id = await copy_exit(desk, "submitting", sent_s=600)
    stranger = desk.alpaca.order("AAPL", -5, type_="market", age_s=900)
    await desk.reconcile(2)
    assert (await desk.order(order_id))["broker_id"] is None
    assert await desk.differences() == [("UNKNOWN_ORDER", stranger)]


async def test_an_exit_copied_hours_after_it_was_sent_gets_its_order(desk: Desk) -> None:
    await desk.change("update broker_state set reconciled_at = now() - interval '5 hours'")  # Postgres was away so long
    closing = desk.alpaca.order("AAPL", -5, type_="market", age_s=17_000)
    desk.alpaca.fill(closing, age_s=16_990)
    order_id = await copy_exit(desk, "submitting", sent_s=17_000)
    await desk.reconcile(2)
    assert await exits_orders(desk) == [{"id": order_id, "origin": "exit", "broker_id": closing, "status": "filled"}]
    assert await desk.positions() == {"AAPL": (-5, -5)}
    assert await desk.differences() == []


async def test_an_exits_order_that_was_taken_for_a_strangers_becomes_the_exits_when_its_row_comes(desk: Desk) -> None:
    closing = desk.alpaca.order("AAPL", -5, type_="market", age_s=7200)
    desk.alpaca.fill(closing, 3)
    await desk.reconcile(2)
    assert await desk.differences() == [("UNKNOWN_ORDER", closing)]
    order_id = await copy_exit(desk, "submitting", sent_s=7200)
    desk.alpaca.fill(closing)
    await desk.reconcile(2)
    assert await exits_orders(desk) == [{"id": order_id, "origin": "exit", "broker_id": closing, "status": "filled"}]
    assert await desk.positions() == {"AAPL": (-5, -5)}
    assert len(await desk.differences()) == 1


async def test_an_exit_that_is_tried_again_has_its_minute_anew(desk: Desk) -> None:
    order_id = await copy_exit(desk, "submitting", copied_s=600)
    await desk.change("update orders set updated_at = now()")
    await desk.reconcile()
    assert (await desk.order(order_id))["status"] == "submitting"
    await desk.change("update orders set updated_at = now() - interval '70 seconds'")
    await desk.reconcile()
    assert (await desk.order(order_id))["status"] == "not_sent"
