"""What a batch reads of the past, counts, and keeps: on a real database, without a model."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from libs.replay.batch.ask import refused
from libs.replay.batch.figures import figures
from libs.replay.batch.held import Held, Original, ReplayRow, Spent
from libs.replay.batch.report import report
from libs.replay.batch.rows import Batch, end, progress
from libs.replay.difference import Outcome
from tests.integration.replay_batch_cases import CALL, Past, asked, now_of, remember

SET = text("update forecasts set features = jsonb_set(features, :path, cast(:value as jsonb)) where id = :id")


async def change(engine: AsyncEngine, past: Past, field: str, value: str) -> None:
    """Change a field of a stored policy."""
    async with engine.begin() as connection:
        await connection.execute(SET, {"id": past.id, "path": ["llm", "policy", field], "value": value})


async def take(connection: AsyncConnection, batch: Batch) -> Held:
    """The batch, held by this connection."""
    held = await Held.take(connection, batch.id)
    assert held is not None
    return held


def turned(original: Original) -> ReplayRow:
    """A decision that turned."""
    row = refused(original, Outcome("", None), "", call_id=None)
    return replace(row, status="ok", error=None, flip="deny_to_allow", before=row.before | {"status": "ok"})


async def test_what_lost_its_answer_since_it_was_gathered_is_passed_over(engine: AsyncEngine) -> None:
    past = [Past("KEPT"), Past("LOST")]
    await remember(engine, past)
    batch = await asked(engine)
    async with engine.connect() as connection:
        held = await take(connection, batch)
        assert await held.begin() == 2
        await change(engine, past[1], "status", '"skipped"')
        assert [one.ticker for one in await held.next(10)] == ["KEPT"]
        await connection.invalidate()


async def test_a_limit_holds_after_a_restart_too(engine: AsyncEngine) -> None:
    past = sorted((Past(f"T{number}") for number in range(6)), key=lambda one: one.id)
    past[0] = replace(past[0], decision=None, status="unavailable")
    await remember(engine, past)
    batch = await asked(engine, most=3)
    async with engine.connect() as connection:
        held = await take(connection, batch)
        assert await held.begin() == 3
        first = (await held.next(10))[:2]
        assert await held.store([refused(one, Outcome("", None), "no") for one in first]) is True
        await connection.invalidate()
    await change(engine, past[0], "status", '"ok"')
    async with engine.connect() as connection:
        held = await take(connection, batch)
        assert await held.begin() == 3
        assert len(await held.next(10)) == 1
        await connection.invalidate()


async def test_a_repaired_answer_cost_both_of_its_turns(engine: AsyncEngine) -> None:
    first, plain = uuid7(), Past("PLAIN")
    repaired, torn = Past("REPAIRED"), Past("TORN")
    await remember(engine, [plain, repaired, torn])
    async with engine.begin() as connection:
        values: dict[str, Any] = {"ts": datetime.now(UTC), "id": first, "total_ms": 600.0}
        await connection.execute(CALL, values)
        link = text("update llm_calls set retry_of = :first where id = :id")
        await connection.execute(link, {"first": first, "id": repaired.call_id})
        await connection.execute(link, {"first": UUID(int=1), "id": torn.call_id})
    batch = await asked(engine)
    async with engine.connect() as connection:
        held = await take(connection, batch)
        await held.begin()
        spent = {one.ticker: one.spent for one in await held.next(10)}
        await connection.invalidate()
    assert spent == {"PLAIN": Spent(100.0, 400, 20), "REPAIRED": Spent(700.0, 800, 40), "TORN": None}


async def test_how_far_a_batch_is_stands_in_its_row(engine: AsyncEngine) -> None:
    await remember(engine, [Past(f"T{number}") for number in range(5)])
    batch = await asked(engine)
    async with engine.connect() as connection:
        held = await take(connection, batch)
        await held.begin()
        originals = await held.next(10)
        for _ in range(2):  # the second time they are there
            await held.store([turned(one) for one in originals[:3]])
        await held.store([refused(originals[3], Outcome("", None), "no")])
        await connection.invalidate()
    async with engine.begin() as connection:
        now = await progress(connection, await now_of(engine, batch))
        assert (now.done, now.failed, now.eta_s is not None) == (3, 1, True)
        await end(connection, batch.id, "cancelled")
        await connection.execute(text("delete from replays"))
    async with engine.connect() as connection:
        ended = await now_of(engine, batch)
        assert (ended.total, await progress(connection, ended)) == (5, replace(now, eta_s=None))


async def test_what_turned_is_named_though_its_forecast_was_dropped_since(engine: AsyncEngine) -> None:
    await remember(engine, [Past("GONE")])
    batch = await asked(engine)
    async with engine.connect() as connection:
        held = await take(connection, batch)
        await held.begin()
        await held.store([turned(one) for one in await held.next(10)])
        await connection.invalidate()
    async with engine.begin() as connection:
        await connection.execute(text("delete from forecasts"))
        made = report(await figures(connection, batch.id), key="policy", version="1.1.0")
    assert made["flips"]["deny_to_allow"] == len(made["flipped"]) == 1
    assert (made["flipped"][0]["ticker"], made["flipped"][0]["side"]) == ("GONE", None)
