"""Exact replay of what stands in the database: forecasts judged over the wire, verdicts of a real desk."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.registry import Registry
from libs.replay import cases
from libs.replay.cases import stored_cases
from libs.replay.check import Checked, Checker, check_all
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, running
from tests.integration.desk_cases import Judged, reconciled, store
from tests.integration.paper_server import paper_broker
from tests.integration.replay_cases import ALLOW, DENY, call_of, change, judged, kept, replies
from tests.unit.judgement_cases import ROOT, RULES, good_inputs
from tools.replay_check import main

REGISTRY = Registry.load_quietly(ROOT / "configs" / "llm_prompts.yaml")
SINCE = ["--since", "2020-01-01"]


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=replies(DENY)) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    """The api, on a broker whose account was just read."""
    async with (
        paper_broker("AAPL", "MSFT") as paper,
        running(monkeypatch, database_url, fake.base_url, tmp_path, PAPER_URL=paper.url, GATE_TIMEOUT_S="20") as made,
    ):
        yield made


async def checked(engine: AsyncEngine, *, since: timedelta = timedelta(hours=1)) -> Checked:
    """How a check of everything in the database goes."""
    found, now = Checked(), datetime.now(UTC)
    until = now + timedelta(minutes=1)
    await check_all(Checker(REGISTRY, RULES), stored_cases(engine, since=now - since, until=until), into=found)
    return found


async def test_what_the_model_said_over_the_wire_comes_out_again(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "PAGE", 2)
    start = good_inputs().as_of
    for day, reply in enumerate((DENY, ALLOW, "No idea.", ALLOW, DENY)):
        fake.reply = replies(reply)
        await judged(stack, engine, good_inputs(as_of=start + timedelta(days=day), factors={"b": 1.5, "a": -2.0}))
    asked = len(fake.requests)
    found = await checked(engine)
    assert (found.first, found.cases, found.answers, found.not_kept) == (None, 5, 10, 0)
    assert len(fake.requests) == asked


async def test_a_repaired_answer_comes_out_again(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    def reply(body: dict[str, Any]) -> str:
        return ALLOW if "cannot be used" in body["messages"][-1]["content"] else "Let me think."

    fake.reply = reply
    judgement, _ = await judged(stack, engine)
    assert judgement.decision is not None
    assert (await kept(stack, call_of(judgement)))["repaired"]
    found = await checked(engine)
    assert (found.first, found.answers) == (None, 2)


async def test_a_decision_changed_in_the_database_is_named(stack: Stack, engine: AsyncEngine) -> None:
    _, forecast_id = await judged(stack, engine)
    await change(
        engine,
        "update forecasts set features = jsonb_set(features, '{llm,policy,decision,allow}', 'true') where id = :id",
        id=forecast_id,
    )
    found = await checked(engine)
    assert found.first is not None
    assert (found.first.where, found.first.stored, found.first.now) == ("policy.decision.allow", True, False)
    assert str(forecast_id) in str(found)


async def test_a_recorded_reply_changed_in_the_database_is_named(stack: Stack, engine: AsyncEngine) -> None:
    judgement, _ = await judged(stack, engine)
    await change(engine, "update llm_bodies set reply = :reply where id = :id", reply=ALLOW, id=call_of(judgement))
    found = await checked(engine)
    assert found.first is not None
    assert (found.first.where, found.first.stored, found.first.now) == ("policy.raw", DENY, ALLOW)


async def test_calls_that_are_not_kept_any_more_are_no_difference(stack: Stack, engine: AsyncEngine) -> None:
    await judged(stack, engine)
    await change(engine, "delete from llm_bodies")
    found = await checked(engine)
    assert (found.first, found.cases, found.answers, found.not_kept, found.read_again) == (None, 1, 0, 2, 1)


async def test_past_the_retention_of_calls_a_changed_decision_is_still_named(stack: Stack, engine: AsyncEngine) -> None:
    _, forecast_id = await judged(stack, engine)
    await change(engine, "delete from llm_bodies")
    await change(engine, "delete from llm_calls")
    await change(
        engine,
        "update forecasts set features = jsonb_set(features, '{llm,policy,decision,allow}', 'true') where id = :id",
        id=forecast_id,
    )
    found = await checked(engine)
    assert found.first is not None
    assert (found.first.where, found.first.stored, found.first.now) == ("policy.decision.allow", True, False)


async def test_the_period_is_gone_through_once_however_many_pages_it_has(
    stack: Stack, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "PAGE", 2)
    start = good_inputs().as_of
    ids = [(await judged(stack, engine, good_inputs(as_of=start + timedelta(days=day))))[1] for day in range(5)]
    by_time: list[str] = []

    def seen(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "ts >=" in statement and "from forecasts" in statement:
            by_time.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", seen)
    now = datetime.now(UTC)
    period = {"since": now - timedelta(hours=1), "until": now + timedelta(minutes=1)}
    found = [case.forecast_id async for case in stored_cases(engine, **period)]
    assert (found, len(by_time)) == (ids, 1)
    left: list[UUID] = []
    async for case in stored_cases(engine, **period):
        left.append(case.forecast_id)
        await change(engine, "delete from forecasts where id = any(:ids)", ids=ids[3:])
    assert left == ids[:3]


async def test_a_period_without_anything_is_no_pass(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert await asyncio.to_thread(main, ["--since", "yesterday"]) == 2
    assert "nothing was checked" in capsys.readouterr().err


async def test_forecasts_outside_the_period_are_left_alone(stack: Stack, engine: AsyncEngine) -> None:
    await judged(stack, engine)
    assert (await checked(engine, since=timedelta(seconds=-30))).cases == 0


async def test_the_desks_verdicts_come_out_again_and_a_changed_one_is_named(
    stack: Stack, engine: AsyncEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    account = await stack.app.state.strategist.broker.identity()
    stack.app.state.strategist.desk.trades_on(account)
    await reconciled(engine, account=account)
    await store(engine, Judged(ticker="AAPL"))
    await store(engine, Judged(ticker="MSFT", allow=False, reasons=["COVERAGE"], rules=["COVERAGE"]))
    told: list[str] = []
    for number, (ticker, side) in enumerate((("AAPL", "buy"), ("MSFT", "buy"), ("AAPL", "sell"), ("IBM", "buy"))):
        body = {"ticker": ticker, "side": side, "qty": 3, "ref_price": 100, "client_order_id": f"c{number}"}
        answer = (await stack.http.post("/strategist/gate", json=body)).json()
        assert answer["verdict_id"]
        told.append(answer["would_have"])
    assert told == ["allow", "deny", "deny", "deny"]
    await change(engine, "delete from forecasts")  # made by hand for the desk, without calls behind them
    assert await asyncio.to_thread(main, SINCE) == 0
    assert "4 verdicts: all as stored" in capsys.readouterr().out
    await change(
        engine,
        """update gate_verdicts set payload = replace(payload, '"would_have":"deny"', '"would_have":"allow"')
        where client_order_id = 'c1'""",
    )
    assert await asyncio.to_thread(main, SINCE) == 1
    said = capsys.readouterr().out
    assert "4 verdicts: 1 differ" in said
    assert "(order c1, MSFT): would_have: stored 'allow', now 'deny'" in said


async def test_the_command_reads_the_database_and_says_how_it_went(
    stack: Stack, engine: AsyncEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    _, forecast_id = await judged(stack, engine)
    assert await asyncio.to_thread(main, SINCE) == 0
    said = capsys.readouterr().out
    assert "1 forecasts, 2 recorded answers replayed: all as stored" in said
    assert "0 verdicts: nothing to check" in said
    await change(
        engine,
        "update forecasts set features = jsonb_set(features, '{llm,policy,raw}', cast(:raw as jsonb)) where id = :id",
        raw=json.dumps("other"),
        id=forecast_id,
    )
    assert await asyncio.to_thread(main, SINCE) == 1
    assert "policy.raw: stored 'other'" in capsys.readouterr().out
