"""`/strategist/gate` and `/strategist/orders` as a strategy sees them: a real gate, and a broker at the wire."""

import asyncio
from collections.abc import AsyncGenerator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import create_key
from libs.trading.halt import EntryLock
from libs.trading.intent import BROKER_PREFIX
from services.paper.types import NewOrder
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, database_away, running, until
from tests.integration.desk_cases import Judged, reconciled, store, turn
from tests.integration.paper_server import Paper, paper_broker
from tools.local_stack.postgres import EmbeddedPostgres

ORDER: dict[str, Any] = {"ticker": "AAPL", "side": "buy", "qty": 3, "ref_price": 100, "client_order_id": "c1"}
VERDICT = {"verdict", "would_have", "mode", "reasons", "forecast_id", "decision_age_s", "verdict_id"}


@pytest.fixture
async def paper() -> AsyncGenerator[Paper, None]:
    """The broker."""
    async with paper_broker("AAPL", "MSFT") as broker:
        yield broker


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, engine: AsyncEngine, paper: Paper, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    """The api, with a judged forecast for a buy of AAPL and an account that was just read."""
    async with FakeEngine(dialect="vllm", slots=8, reply="OK") as model:
        more = {"PAPER_URL": paper.url, "GATE_TIMEOUT_S": "20"}
        async with running(monkeypatch, database_url, model.base_url, tmp_path, **more) as made:
            account = await made.app.state.strategist.broker.identity()
            made.app.state.strategist.desk.trades_on(account)
            await reconciled(engine, account=account)
            yield made


async def stored(engine: AsyncEngine, query: str) -> list[dict[str, Any]]:
    """Rows of a query."""
    async with engine.connect() as connection:
        return [dict(row) for row in (await connection.execute(text(query))).mappings()]


async def send(stack: Stack, **changes: Any) -> tuple[int, dict[str, Any]]:
    """Send an order; status and body."""
    answer = await stack.http.post("/strategist/orders", json=ORDER | changes)
    return answer.status_code, answer.json()


async def bought(stack: Stack, engine: AsyncEngine, paper: Paper, qty: int = 3) -> None:
    """Hold some AAPL."""
    await store(engine, Judged())
    assert (await send(stack, client_order_id="entry", qty=qty))[0] == 200
    await until(lambda: held_of(paper), lambda held: held == qty)


async def test_an_allowed_entry_leaves_as_a_limit_order_at_the_collar(
    stack: Stack, engine: AsyncEngine, paper: Paper
) -> None:
    """The answer has the verdict and the order; the broker knows it by the id that follows from the intent."""
    await store(engine, Judged())
    status, body = await send(stack)
    assert status == 200
    assert set(body) == VERDICT | {"order"}
    [placed] = paper.orders()
    assert (placed.type, placed.limit_price, placed.side) == ("limit", Decimal(105), "buy")
    assert placed.client_order_id == BROKER_PREFIX + body["order"]["id"].replace("-", "")
    [row] = await stored(engine, "select status, broker_id, key_name, verdict_id::text from orders")
    assert (row["broker_id"], row["key_name"], row["verdict_id"]) == (placed.id, "operator", body["verdict_id"])


async def test_the_same_order_again_is_the_same_order(stack: Stack, engine: AsyncEngine, paper: Paper) -> None:
    """Twenty times at once and once more: one order at the broker, one answer."""
    await store(engine, Judged())
    answers = await asyncio.gather(*(send(stack, qty="3.0") for _ in range(20)))
    answers.append(await send(stack))
    assert {status for status, _ in answers} == {200}
    assert len({body["verdict_id"] for _, body in answers}) == 1
    assert len(paper.orders()) == 1
    status, other = await send(stack, qty=4)
    assert (status, other["verdict"]) == (409, "deny")
    assert "DUPLICATE" in other["reasons"]


async def test_a_denied_entry_is_a_conflict_with_the_verdict(stack: Stack, engine: AsyncEngine, paper: Paper) -> None:
    """In enforce it never reaches the broker; in shadow the same thought lets it pass."""
    await store(engine, Judged(allow=False))
    await turn(engine, "LLM_SHADOW_MODE", False)
    status, body = await send(stack)
    assert status == 409
    assert body["detail"] == "denied: POLICY_DENY"
    assert set(body) >= VERDICT
    assert (body["verdict"], body["would_have"], body["mode"]) == ("deny", "deny", "enforce")
    assert paper.orders() == []
    await turn(engine, "LLM_SHADOW_MODE", True)
    status, body = await send(stack, client_order_id="c2")
    assert (status, body["verdict"], body["would_have"], body["reasons"]) == (200, "allow", "deny", ["POLICY_DENY"])
    assert len(paper.orders()) == 1


async def test_an_order_whose_submission_got_no_answer_is_looked_up_and_never_sent_twice(
    stack: Stack, engine: AsyncEngine, paper: Paper
) -> None:
    """The broker took it and the connection broke: it is found by its id."""
    await store(engine, Judged())
    paper.fault(kind="reset", route="POST /v2/orders", when="after")
    status, body = await send(stack)
    assert status == 200
    assert body["order"]["broker_id"] == paper.orders()[0].id
    assert (await send(stack))[0] == 200
    assert len(paper.orders()) == 1


async def test_an_order_that_nobody_knows_of_stays_open_until_it_is_reconciled(
    stack: Stack, engine: AsyncEngine, paper: Paper
) -> None:
    """The connection broke before the broker had it; who asks again is told so, and nothing is sent again."""
    await store(engine, Judged())
    paper.fault(kind="reset", route="POST /v2/orders", when="before")
    status, body = await send(stack)
    assert (status, body["order"]["status"]) == (200, "submitting")
    status, again = await send(stack)
    assert (status, again["order"]["status"]) == (200, "submitting")
    assert paper.orders() == []


async def test_a_broker_that_refuses_or_is_away_is_a_bad_gateway(
    stack: Stack, engine: AsyncEngine, paper: Paper
) -> None:
    """The gate allowed it and there is no order: no success."""
    await store(engine, Judged())
    paper.fault(kind="reject", message="not today")
    status, body = await send(stack)
    assert (status, body["order"]["status"]) == (502, "rejected")
    assert "not today" in body["detail"]
    [row] = await stored(engine, "select status, reason from orders")
    assert row["status"] == "rejected"
    assert (await send(stack))[0] == 502
    assert paper.orders() == []


async def test_a_reducing_order_needs_no_gate(stack: Stack, engine: AsyncEngine, paper: Paper) -> None:
    """Halted, denied, in enforce: an exit goes out through the close call, and is put on record."""
    await bought(stack, engine, paper)
    await turn(engine, "LLM_SHADOW_MODE", False)
    async with engine.begin() as connection:
        await connection.execute(
            text("insert into halts (id, reason, halted_at, halted_until) select gen_random_uuid(), 'x', now(), now()")
        )
    status, body = await send(stack, client_order_id="out", side="sell", qty=2, reduce_only=True)
    assert (status, body["verdict"], body["reasons"]) == (200, "allow", ["ALLOW"])
    await until(lambda: held_of(paper), lambda qty: qty == 1)
    again = await send(stack, client_order_id="out", side="sell", qty=2, reduce_only=True)
    assert again[1]["order"]["broker_id"] == body["order"]["broker_id"]
    assert paper.held("AAPL") == 1
    query = "select origin, broker_id, verdict_id::text from orders where client_order_id = 'out'"
    [row] = await until(lambda: stored(engine, query), bool)
    assert row == {"origin": "exit", "broker_id": body["order"]["broker_id"], "verdict_id": body["verdict_id"]}
    [verdict] = await stored(engine, "select verdict, reduce_only from gate_verdicts where client_order_id = 'out'")
    assert verdict == {"verdict": "allow", "reduce_only": True}


async def held_of(paper: Paper) -> Decimal:
    """AAPL at the broker."""
    return paper.held("AAPL")


@pytest.mark.parametrize(("side", "qty"), [("buy", 1), ("sell", 4)])
async def test_a_claim_to_reduce_that_would_open_or_flip_is_refused(
    stack: Stack, engine: AsyncEngine, paper: Paper, side: str, qty: int
) -> None:
    """The broker's own position decides, and nothing was sent."""
    await bought(stack, engine, paper)
    before = len(paper.orders())
    status, body = await send(stack, client_order_id="out", side=side, qty=qty, reduce_only=True)
    assert (status, body["verdict"], body["reasons"]) == (409, "deny", ["NOT_REDUCING"])
    assert len(paper.orders()) == before
    query = "select reasons from gate_verdicts where client_order_id = 'out'"
    [verdict] = await until(lambda: stored(engine, query), bool)
    assert verdict["reasons"] == ["NOT_REDUCING"]


async def test_with_postgres_down_nothing_enters_and_everything_may_leave(
    stack: Stack, engine: AsyncEngine, paper: Paper, postgres: EmbeddedPostgres, database_url: str
) -> None:
    """Entries are refused with GATE_ERROR; an exit goes out, and its record follows when Postgres is back."""
    await bought(stack, engine, paper)
    with database_away(postgres, database_url):
        status, body = await send(stack)
        assert (status, body["verdict"], body["verdict_id"]) == (409, "deny", None)
        assert body["reasons"][0] in {"GATE_ERROR", "GATE_TIMEOUT"}
        gate = await stack.http.post("/strategist/gate", json=ORDER | {"client_order_id": "g"})
        assert (gate.status_code, gate.json()["verdict"]) == (200, "deny")
        status, body = await send(stack, client_order_id="out", side="sell", reduce_only=True)
        assert (status, body["verdict"]) == (200, "allow")
        await until(lambda: held_of(paper), lambda qty: qty == 0)
    query = "select verdict_id::text from orders where client_order_id = 'out'"
    [row] = await until(lambda: stored(engine, query), bool)
    assert row["verdict_id"] == body["verdict_id"]


async def test_a_halt_between_verdict_and_broker_stops_the_order(
    stack: Stack, engine: AsyncEngine, paper: Paper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halt file appears while the verdict is stored: the last look before the broker sees it."""
    await store(engine, Judged())
    strategist = stack.app.state.strategist
    judge = strategist.desk.verdict

    async def then_halt(asked: Any) -> Any:
        told = await judge(asked)
        (tmp_path / "halt").touch()
        return told

    monkeypatch.setattr(strategist.desk, "verdict", then_halt)
    status, body = await send(stack)
    assert (status, body["verdict"], body["reasons"]) == (409, "deny", ["HALTED"])
    assert paper.orders() == []
    [row] = await stored(engine, "select status from orders")
    assert row["status"] == "not_sent"
    status, body = await send(stack)
    assert (status, body["verdict"], body["reasons"]) == (409, "deny", ["HALTED"])


@pytest.mark.parametrize(
    "changes",
    [
        {"qty": 0},
        {"qty": -1},
        {"qty": "NaN"},
        {"qty": "Infinity"},
        {"ref_price": "1e400"},
        {"side": "short"},
        {"ticker": "A B"},
        {"ticker": ""},
        {"client_order_id": ""},
        {"client_order_id": "a" * 129},
        {"client_order_id": "a\u0000b"},
        {"reduce_only": "yes"},
        {"surprise": 1},
    ],
)
async def test_an_order_that_makes_no_sense_is_named_and_not_judged(
    stack: Stack, engine: AsyncEngine, changes: dict[str, Any]
) -> None:
    """422 with the field at fault; no verdict is stored."""
    status, body = await send(stack, **changes)
    assert status == 422
    assert next(iter(changes)) in body["detail"]
    assert await stored(engine, "select 1 from gate_verdicts") == []


async def test_a_key_without_the_scope_may_not_trade_and_one_with_it_is_on_record(
    stack: Stack, engine: AsyncEngine, tmp_path: Path
) -> None:
    """The verdict carries the key's name and the strategy."""
    await store(engine, Judged())
    reader = create_key(tmp_path / "keys.json", "reader", frozenset({"read"}))
    trader = create_key(tmp_path / "keys.json", "momentum", frozenset({"trade"}))
    await asyncio.sleep(0.15)
    refused = await stack.http.post("/strategist/orders", json=ORDER, headers={"Authorization": f"Bearer {reader}"})
    assert refused.status_code == 403
    body = ORDER | {"strategy": "follow"}
    allowed = await stack.http.post("/strategist/gate", json=body, headers={"Authorization": f"Bearer {trader}"})
    assert allowed.status_code == 200
    assert await stored(engine, "select key_name, strategy from gate_verdicts") == [
        {"key_name": "momentum", "strategy": "follow"}
    ]


async def test_an_entry_that_may_still_arrive_keeps_a_panic_exit_from_saying_flat(
    stack: Stack, engine: AsyncEngine, paper: Paper, tmp_path: Path
) -> None:
    """Nobody answered for it: the lock of entries is held until it is found."""
    await store(engine, Judged())
    lock = EntryLock(tmp_path)
    paper.fault(kind="reset", route="POST /v2/orders", when="before")
    status, body = await send(stack)
    assert (status, body["order"]["status"]) == (200, "submitting")
    assert not lock.nobody_sending_now()
    order_id = body["order"]["id"].replace("-", "")
    late = NewOrder(
        "AAPL", "buy", Decimal(3), type="limit", limit_price=Decimal(105), client_order_id=f"lexi-{order_id}"
    )
    paper.exchange.submit(late)

    async def quiet() -> bool:
        return lock.nobody_sending_now()

    assert await until(quiet, bool)
    query = f"select 1 from orders where broker_id = '{paper.orders()[0].id}'"
    assert await until(lambda: stored(engine, query), bool)


async def test_fills_that_came_with_the_answer_are_counted_until_they_are_reconciled(
    stack: Stack, engine: AsyncEngine, paper: Paper
) -> None:
    """An order that filled at once stays open in our record until its position is there."""
    await store(engine, Judged())
    paper.fault(kind="reset", route="POST /v2/orders", when="after")
    status, body = await send(stack)
    assert (status, body["order"]["status"]) == (200, "filled")
    [row] = await stored(engine, "select status, filled_qty from orders")
    assert row == {"status": "accepted", "filled_qty": 0}
