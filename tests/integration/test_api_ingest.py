"""`/ingest/*`: whole batches, once each, and nothing that later readers would stumble over."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, running

POST = {
    "source": "x",
    "external_id": "1",
    "ticker": "aapl",
    "ts": "2010-01-04T10:00:00-05:00",
    "handle": "@a",
    "text": "To the moon 🚀",
}
RATING = {
    "source": "wire",
    "external_id": "1",
    "ticker": "AAPL",
    "ts": "2010-01-04T10:00:00Z",
    "provider": "wire",
    "firm": "Bank & Sons",
    "analyst": "J. Doe",
    "action": "upgrade",
    "rating": "buy",
    "target": "210.50",
}
FACT = {
    "source": "desk",
    "ticker": "AAPL",
    "name": "earnings_date",
    "value": "2010-01-25",
    "as_of": "2010-01-04T00:00:00Z",
}
SAMPLES = {"social": POST, "ratings": RATING, "facts": FACT}
TABLES = {"social": "social_messages", "ratings": "analyst_ratings", "facts": "facts"}


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch, database_url: str, tmp_path: Path) -> AsyncGenerator[Stack, None]:
    async with FakeEngine() as fake, running(monkeypatch, database_url, fake.base_url, tmp_path) as made:
        yield made


async def send(stack: Stack, kind: str, batch: Any) -> httpx.Response:
    content = json.dumps(batch)  # ASCII with escapes, so that lone surrogates can be sent
    return await stack.http.post(f"/ingest/{kind}", content=content, headers={"Content-Type": "application/json"})


async def rows(engine: AsyncEngine, kind: str) -> list[dict[str, Any]]:
    async with engine.connect() as connection:
        found = await connection.execute(text(f"select * from {TABLES[kind]} order by source, external_id"))
        return [dict(row) for row in found.mappings()]


@pytest.mark.parametrize("kind", SAMPLES)
async def test_a_batch_sent_twice_is_stored_once(stack: Stack, engine: AsyncEngine, kind: str) -> None:
    batch = [{**SAMPLES[kind], "external_id": str(number)} for number in range(3)]
    first = await send(stack, kind, batch)
    assert first.status_code == 200
    counts = ("received", "stored", "known")
    assert [first.json()[name] for name in counts] == [3, 3, 0]
    again = await send(stack, kind, [*batch, {**batch[0], "external_id": "new"}, {**batch[0], "external_id": "new"}])
    assert [again.json()[name] for name in counts] == [5, 1, 4]
    assert len(await rows(engine, kind)) == 4


async def waiting_for_a_lock(engine: AsyncEngine, count: int) -> None:
    """Until so many statements wait for another transaction."""
    query = text("select count(*) from pg_locks where not granted")
    while True:
        async with engine.connect() as connection:
            if await connection.scalar(query) == count:
                return


@pytest.mark.parametrize("kind", SAMPLES)
async def test_batches_that_meet_in_any_order_are_both_stored(stack: Stack, engine: AsyncEngine, kind: str) -> None:
    batch = [{**SAMPLES[kind], "external_id": str(number)} for number in range(9)]
    held = text(
        {
            "social": "insert into social_messages values (:source, '4', 'A', now(), '', '')",
            "ratings": "insert into analyst_ratings values (:source, '4', 'A', now(), '', '', '', '', '')",
            "facts": "insert into facts values ('A', 'a', now(), :source, '4', '1')",
        }[kind]
    )
    async with asyncio.timeout(30), asyncio.TaskGroup() as group, engine.connect() as connection:
        await connection.execute(held, {"source": SAMPLES[kind]["source"]})
        sent = [group.create_task(send(stack, kind, one)) for one in (batch, batch[::-1])]
        await waiting_for_a_lock(engine, 2)  # both are under way, in the middle of their rows
        await connection.rollback()
    assert [one.result().status_code for one in sent] == [200, 200]
    assert sum(one.result().json()["stored"] for one in sent) == 9


async def test_a_fact_that_no_rule_reads_is_kept_with_a_warning(stack: Stack, engine: AsyncEngine) -> None:
    given = [
        {"source": "desk", "ticker": ticker, "name": name, "value": "available", "as_of": "2010-01-04T15:00:00Z"}
        for ticker, name in (("AAPL", "borow"), ("IBM", "borow"), ("IBM", "borrow"))
    ]
    answer = await send(stack, "facts", given)
    assert (answer.status_code, answer.json()["stored"]) == (200, 3)
    assert answer.json()["warnings"] == ["borow: no rule reads this name"]
    assert len(await rows(engine, "facts")) == 3


async def test_a_post_is_kept_as_it_was(stack: Stack, engine: AsyncEngine) -> None:
    await send(stack, "social", [POST])
    (row,) = await rows(engine, "social")
    assert (row["ticker"], row["handle"], row["text"]) == ("AAPL", "@a", "To the moon 🚀")
    assert row["ts"] == datetime(2010, 1, 4, 15, tzinfo=UTC)


async def test_a_rating_may_give_its_target_as_text_number_or_not_at_all(stack: Stack, engine: AsyncEngine) -> None:
    without = {name: value for name, value in RATING.items() if name != "target"}
    batch = [RATING, {**RATING, "external_id": "2", "target": 7}, {**without, "external_id": "3"}]
    assert (await send(stack, "ratings", batch)).status_code == 200
    assert [row["target"] for row in await rows(engine, "ratings")] == [210.5, 7.0, None]


async def test_a_fact_without_an_id_is_known_by_ticker_name_and_time(stack: Stack, engine: AsyncEngine) -> None:
    same_time = {**FACT, "as_of": "2010-01-03T19:00:00-05:00"}
    later = {**FACT, "as_of": "2010-01-05T00:00:00Z", "value": "2010-01-26"}
    answer = await send(stack, "facts", [FACT, same_time, later])
    assert answer.json() == {"received": 3, "stored": 2, "known": 1, "warnings": []}
    assert [row["value"] for row in await rows(engine, "facts")] == ["2010-01-25", "2010-01-26"]


async def test_facts_of_any_name_keep_their_plain_value(stack: Stack, engine: AsyncEngine) -> None:
    values: list[Any] = ["text", 1.5, 3, True, False]
    batch = [
        {**FACT, "name": "short_interest", "value": value, "external_id": str(number)}
        for number, value in enumerate(values)
    ]
    assert (await send(stack, "facts", batch)).status_code == 200
    stored = [row["value"] for row in await rows(engine, "facts")]
    assert stored == values
    assert [isinstance(value, bool) for value in stored] == [isinstance(value, bool) for value in values]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("social", {"text": ""}, "text"),
    ("social", {"text": "x" * 10_001}, "text"),
    ("social", {"text": "a\x00b"}, "text"),
    ("social", {"text": "\ud800"}, "text"),
    ("social", {"handle": "x" * 201}, "handle"),
    ("social", {"ts": "2010-01-04T10:00:00"}, "ts"),
    ("social", {"ts": 1262617200}, "ts"),
    ("social", {"ts": "yesterday"}, "ts"),
    ("social", {"external_id": ""}, "external_id"),
    ("social", {"ticker": "A B"}, "ticker"),
    ("social", {"ticker": "A" * 33}, "ticker"),
    ("social", {"sentiment": 1}, "sentiment"),
    ("ratings", {"target": "much"}, "target"),
    ("ratings", {"target": -1}, "target"),
    ("ratings", {"target": "nan"}, "target"),
    ("facts", {"as_of": "2010-01-04"}, "as_of"),
    ("facts", {"as_of": None}, "as_of"),
    ("facts", {"name": "Earnings Date"}, "name"),
    ("facts", {"value": "soon"}, ""),
    ("facts", {"name": "borrow", "value": "maybe"}, ""),
    ("facts", {"name": "macro_regime", "value": 3}, ""),
    ("facts", {"name": "x", "value": {"deep": 1}}, "value"),
    ("facts", {"name": "x", "value": None}, "value"),
]


async def test_one_wrong_item_refuses_the_batch_and_is_named(stack: Stack, engine: AsyncEngine) -> None:
    for kind, wrong, field in WRONG:
        answer = await send(stack, kind, [SAMPLES[kind], {**SAMPLES[kind], "external_id": "2", **wrong}])
        assert answer.status_code == 422, wrong
        named = {error["field"] for error in answer.json()["errors"]}
        assert all(name.startswith(f"1.{field}".rstrip(".")) for name in named), wrong
        assert await rows(engine, kind) == []


async def test_a_time_far_in_the_future_is_refused(stack: Stack) -> None:
    ahead = (datetime.now(UTC) + timedelta(days=2)).isoformat()
    assert (await send(stack, "social", [{**POST, "ts": ahead}])).status_code == 422


async def test_a_body_that_is_no_batch_is_refused(stack: Stack) -> None:
    bodies: list[Any] = [[], {}, POST, None, "text", [None], [[POST]]]
    for body in bodies:
        answer = await send(stack, "social", body)
        assert answer.status_code == 422, body
        assert answer.json()["errors"], body


async def test_batches_are_bounded_in_number_and_in_bytes(stack: Stack, engine: AsyncEngine) -> None:
    many = [{**POST, "external_id": str(number)} for number in range(1001)]
    assert (await send(stack, "social", many)).status_code == 422
    assert (await send(stack, "social", many[:1000])).json()["stored"] == 1000
    large = [{**POST, "external_id": f"l{number}", "text": "x" * 10_000} for number in range(300)]
    answer = await send(stack, "social", large)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(await rows(engine, "social")) == 1000


async def test_nan_in_a_body_is_refused(stack: Stack, engine: AsyncEngine) -> None:
    headers = {"Content-Type": "application/json"}
    body = '[{"source":"a","ticker":"A","name":"x","value":NaN,"as_of":"2010-01-04T00:00:00Z"}]'
    answer = await stack.http.post("/ingest/facts", content=body, headers=headers)
    assert answer.status_code == 422
    assert await rows(engine, "facts") == []


async def test_text_that_looks_like_sql_is_text(stack: Stack, engine: AsyncEngine) -> None:
    nasty = "'); drop table facts; -- %s :x {y} \\"
    await send(stack, "social", [{**POST, "text": nasty, "handle": nasty}])
    assert (await rows(engine, "social"))[0]["text"] == nasty
