"""A batch in which something never works: it ends, says why, and holds up no other batch."""

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.commands.evidence import finished_replay
from libs.llm.registry import Registry
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.integration.replay_batch_cases import (
    DENIES,
    PROMPTS,
    Past,
    asked,
    by_ticker,
    now_of,
    remember,
    replays_of,
    until_stored,
    working,
)

CHANGE = text(
    "update forecasts set features = jsonb_set(features, '{llm,policy,call_id}', cast(:value as jsonb)) where id = :id"
)
CUT = text(
    "select pg_terminate_backend(a.pid) from pg_stat_activity a join pg_locks l on l.pid = a.pid "
    "and l.locktype = 'advisory' where a.application_name = 'lexi-test' and a.datname = current_database()"
)


async def test_a_record_that_names_no_call_is_told_and_the_rest_is_asked(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, nonsense, beyond = Past("MISSING"), Past("NONSENSE"), Past("BEYOND")
    await remember(engine, [missing, nonsense, beyond, *(Past(f"T{number:02d}") for number in range(40))])
    async with engine.begin() as connection:
        await connection.execute(
            text("update forecasts set features = features #- '{llm,policy,call_id}' where id = :id"),
            {"id": missing.id},
        )
        for past, value in ((nonsense, "nonsense"), (beyond, "ffffffff-ffff-7fff-bfff-ffffffffffff")):
            await connection.execute(CHANGE, {"id": past.id, "value": json.dumps(value)})
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(DENIES)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
    assert ((ended := await now_of(engine, batch)).state, ended.done, ended.failed) == ("done", 41, 2)
    rows = {row["ticker"]: row for row in await replays_of(engine, batch)}
    assert (rows["MISSING"]["status"], rows["MISSING"]["error"]) == ("refused", "call_id is missing")
    assert rows["NONSENSE"]["status"] == "refused"
    assert (rows["BEYOND"]["status"], rows["BEYOND"]["call_id"]) == ("ok", None)


async def test_words_of_an_engine_that_postgres_cannot_keep_end_nothing(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("BAD"), *(Past(f"T{number:02d}") for number in range(20))])
    batch = await asked(engine)
    said = by_ticker({"BAD": Reply("", fault=Fault.STATUS)})
    async with (
        FakeEngine(reply=said) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch, give_up_s=0.3) as replays,
    ):
        fake.fault_body = json.dumps({"error": {"message": "bad \0 here"}})
        fake.fault_status = 400
        assert await replays.step() is True
        rows = {row["ticker"]: row for row in await replays_of(engine, batch)}
        assert rows["BAD"]["error"] == "refused: answered 400: bad \ufffd here"
        assert (await now_of(engine, batch)).state == "done"
        again = await asked(engine)
        fake.fault, fake.fault_status = Fault.STATUS, 503
        assert await replays.step() is True
    ended = await now_of(engine, again)
    assert ended.state == "failed"
    assert "refused: answered 503: bad \ufffd here" in str(ended.error)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_version_that_the_engine_refuses_ends_at_once_and_says_why(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    await remember(engine, [Past(f"T{number}") for number in range(8)])
    batch, other = await asked(engine), await asked(engine, key="rationale")
    async with (
        FakeEngine(reply="It rises by 77 %.") as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        fake.fault, fake.fault_status = Fault.STATUS, status
        fake.fault_body = json.dumps({"error": {"message": "schema not supported"}})
        assert await replays.step() is True
        assert len(fake.requests) == 8
        fake.fault = Fault.NONE
        assert await replays.step() is True
    ended = await now_of(engine, batch)
    assert (ended.state, ended.failed) == ("failed", 8)
    assert str(ended.error).endswith(f"The usual reason: refused: answered {status}: schema not supported")
    assert (await now_of(engine, other)).state == "done"


async def test_a_batch_of_which_much_failed_is_no_evidence_and_keeps_its_report(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = [Past(f"T{number:02d}") for number in range(20)]
    await remember(engine, past)
    async with engine.begin() as connection:
        await connection.execute(
            text("update forecasts set features = jsonb_set(features, '{llm,v}', '2') where id = any(:ids)"),
            {"ids": [one.id for one in past[:2]]},
        )
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(DENIES)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
    ended = await now_of(engine, batch)
    assert (ended.state, ended.total) == ("failed", 20)
    assert "2 of 20 decisions got no answer, more than 5%" in str(ended.error)
    assert ended.report is not None
    assert ended.report["counts"] == {"total": 20, "answered": 18, "failed": 2, "same_answer": 18}
    async with engine.connect() as connection:
        version = Registry.load_quietly(PROMPTS).version("policy", "1.1.0")
        assert await finished_replay(connection, version) is None


async def test_what_postgres_never_takes_ends_the_batch_and_the_next_one_has_its_turn(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past("AAPL")])
    batch, other = await asked(engine), await asked(engine, version="1.0.0")
    async with engine.begin() as connection:
        await connection.execute(text("alter table replays add constraint no_such check (prompt_version <> '1.1.0')"))
    async with (
        FakeEngine(reply=json.dumps(DENIES)) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch) as replays,
    ):
        assert await replays.step() is True
        assert await replays.step() is True
    ended = await now_of(engine, batch)
    assert (ended.state, ended.error) == ("failed", "internal: CheckViolationError")
    assert (await now_of(engine, other)).state == "done"


async def test_a_lost_connection_ends_no_batch(
    engine: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remember(engine, [Past(f"T{number:02d}") for number in range(12)])
    batch = await asked(engine)
    async with (
        FakeEngine(reply=json.dumps(DENIES), delay_s=0.1) as fake,
        working(database_url, fake.base_url, tmp_path, monkeypatch, share=2) as replays,
    ):
        going = asyncio.create_task(replays.step())
        await until_stored(engine, batch, 2)
        async with engine.begin() as connection:
            await connection.execute(CUT)
        with pytest.raises(DBAPIError, match="connection"):
            await going
        assert (await now_of(engine, batch)).state == "running"
        assert await replays.step() is True
    assert ((ended := await now_of(engine, batch)).state, ended.done) == ("done", 12)
