"""The recorder and the reply cache on a real database."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm import calls
from libs.llm.cache import ReplyCache, cache_key
from libs.llm.call_record import BodyRow, CallRecord, CallRow, Kept, line_of, new_call_id, rows_of, time_of
from libs.llm.calls import BATCH, Recorder
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.llm.spool import Spool
from libs.upstreams.types import ChatRequest, Constraint, Message, Sampling, TimeSplit, Usage
from tests.unit.llm_cases import GOOD, VERDICT_INPUTS, ScriptedEngine, reply, write_prompts


def call(**changed: Any) -> CallRecord:
    base: dict[str, Any] = {
        "id": new_call_id(),
        "prompt_key": "verdict",
        "prompt_version": "1.0.0",
        "prompt_hash": "ab",
        "upstream": "lexi",
        "model": "Lexi",
        "status": "ok",
        "messages": (Message("system", "s"), Message("user", "u")),
        "sampling": Sampling(temperature=0.0),
        "inputs": {"ticker": "AAPL"},
        "reply": GOOD,
        "arm": "1.0.0",
        "subject": "AAPL",
        "attempts": 1,
        "finish_reason": "stop",
        "usage": Usage(11, 5),
        "time": TimeSplit(1.5, 2.5, 3.5, 4.5),
    }
    return CallRecord(**{**base, **changed})


async def rows(engine: AsyncEngine, sql: str = "select * from llm_calls order by id") -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(sql))).all())


async def test_every_column_of_a_call_is_kept(engine: AsyncEngine, tmp_path: Path) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    await recorder.start()
    kept = call()
    repaired = call(
        status="invalid", error="schema: $", repaired=True, retry_of=kept.id, replay_of=UUID(int=5), inputs=None
    )
    recorder.record(kept)
    recorder.record(repaired)
    await recorder.close()
    first, second = await rows(engine)
    assert (first.id, first.ts, first.service) == (kept.id, time_of(kept.id), "forecast")
    assert (first.prompt_key, first.prompt_version, first.prompt_hash, first.arm) == ("verdict", "1.0.0", "ab", "1.0.0")
    assert (first.upstream, first.model, first.subject) == ("lexi", "Lexi", "AAPL")
    assert (first.success, first.status, first.error, first.cached) == (True, "ok", None, False)
    assert (first.queue_ms, first.connect_ms, first.first_token_ms, first.total_ms) == (1.5, 2.5, 3.5, 4.5)
    assert (first.tokens_in, first.tokens_out, first.finish_reason, first.attempts) == (11, 5, "stop", 1)
    assert (second.success, second.error, second.repaired, second.retry_of) == (False, "schema: $", True, kept.id)
    assert (first.replay_of, second.replay_of) == (None, UUID(int=5))
    body, bare = await rows(engine, "select * from llm_bodies order by id")
    assert (body.ts, body.id, body.reply) == (first.ts, first.id, GOOD)
    assert body.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert body.sampling == {"temperature": 0.0, "top_p": 0.9, "max_tokens": 512, "seed": None}
    assert body.inputs == {"ticker": "AAPL"}
    assert bare.inputs is None


async def test_many_calls_of_several_days_are_kept_once(engine: AsyncEngine, tmp_path: Path) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    old = UUID(int=(int((datetime.now(UTC) - timedelta(days=3)).timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | 5)
    made = [call() for _ in range(BATCH * 2 + 7)] + [call(id=old)]
    for one in [*made, made[0], call(id=old)]:
        recorder.record(one)
    await recorder.start()
    await recorder.close()
    assert {row.id for row in await rows(engine)} == {one.id for one in made}
    assert len(await rows(engine, "select 1 from llm_bodies")) == len(made)
    assert not list((tmp_path / "spool").glob("*.jsonl"))


@pytest.mark.parametrize(
    "odd",
    [
        {"reply": "nul\x00 and \ud800"},
        {"inputs": {"a": "nul\x00", "when": datetime(2013, 1, 2, tzinfo=UTC), "t": ("x\ud800", 1)}},
        {"messages": (Message("user", "\x00\udfff"),)},
        {"inputs": {"nan": float("nan"), "big": 10**30}},
        {"error": "e\x00", "subject": "\x00", "finish_reason": "\x00"},
    ],
)
async def test_text_that_postgres_refuses_is_kept_all_the_same(
    engine: AsyncEngine, tmp_path: Path, odd: dict[str, Any]
) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    await recorder.start()
    recorder.record(call(**odd))
    await recorder.close()
    assert len(await rows(engine)) == 1
    assert len(await rows(engine, "select 1 from llm_bodies")) == 1


async def test_a_row_the_database_refuses_takes_no_other_with_it(engine: AsyncEngine, tmp_path: Path) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    good = [call() for _ in range(5)]
    for one in [*good[:2], call(attempts=10**6), call(usage=Usage(10**12, 0)), *good[2:]]:
        recorder.record(one)
    await recorder.start()
    await recorder.close()
    assert {row.id for row in await rows(engine)} == {one.id for one in good}
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_a_flush_ends_although_calls_keep_coming(engine: AsyncEngine, tmp_path: Path) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    await recorder.start()

    async def more() -> None:
        while True:
            recorder.record(call())
            await asyncio.sleep(0)

    others = asyncio.create_task(more())
    mine = call()
    recorder.record(mine)
    async with asyncio.timeout(30):
        await recorder.flush()
    assert mine.id in {row.id for row in await rows(engine)}
    others.cancel()
    await asyncio.gather(others, return_exceptions=True)
    await recorder.close()


async def test_a_dropped_partition_is_made_again(engine: AsyncEngine, tmp_path: Path) -> None:
    recorder = Recorder(engine, service="forecast", state_dir=tmp_path, rest_s=0.01)
    await recorder.start()
    recorder.record(call())
    await recorder.flush()
    async with engine.begin() as connection:
        names = await connection.execute(
            text("select inhrelid::regclass::text from pg_inherits where inhparent = 'llm_calls'::regclass")
        )
        for name in names.scalars().all():
            await connection.execute(text(f"drop table {name}"))
    kept = call()
    recorder.record(kept)
    await recorder.flush()
    await recorder.close()
    again = Recorder(engine, service="forecast", state_dir=tmp_path)
    await again.start()
    await again.close()
    assert [row.id for row in await rows(engine)] == [kept.id]


def served(**changed: Any) -> CallRow:
    """The row of a call that came through the gateway."""
    call_id = new_call_id()
    base = rows_of(call(id=call_id, prompt_key="v1/chat/completions", prompt_version=""), "api").call
    return base._replace(**{"caller": "desk-1", "request_id": "req-1", "http_status": 200, "streamed": True, **changed})


async def test_a_callers_request_is_a_row_and_its_body_only_where_it_is_given(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    recorder = Recorder(engine, service="api", state_dir=tmp_path)
    await recorder.start()
    bare, whole = served(), served(http_status=502, streamed=False, success=False, status="failed", error="e")
    recorder.keep(bare)
    recorder.keep(whole, BodyRow(whole.ts, whole.id, '[{"role": "user"}]', '{"n": 1}', None, "yes"))
    recorder.record(call())
    await recorder.close()
    first, second, own = await rows(engine)
    assert (first.id, first.caller, first.request_id, first.http_status, first.streamed) == (
        bare.id,
        "desk-1",
        "req-1",
        200,
        True,
    )
    assert (second.http_status, second.streamed, second.success, second.error) == (502, False, False, "e")
    assert (own.caller, own.request_id, own.http_status, own.streamed) == ("", "", None, False)
    bodies = await rows(engine, "select * from llm_bodies order by id")
    assert [body.id for body in bodies] == [whole.id, own.id]
    assert (bodies[0].messages, bodies[0].sampling, bodies[0].reply) == ([{"role": "user"}], {"n": 1}, "yes")


async def test_calls_that_are_stored_already_do_not_keep_new_ones_out(engine: AsyncEngine, tmp_path: Path) -> None:
    first, second = served(), served()
    body = BodyRow(first.ts, first.id, "[]", "{}", None, "x")
    for batch in ([(first, body)], [(first, body), (second, None)], [(second, None), (first, None)]):
        recorder = Recorder(engine, service="api", state_dir=tmp_path)
        for row, kept in batch:
            recorder.keep(row, kept)
        await recorder.start()
        await recorder.close()
    assert [row.id for row in await rows(engine)] == [first.id, second.id]
    assert len(await rows(engine, "select 1 from llm_bodies")) == 1
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_spooled_lines_come_back_as_they_were_and_only_once(engine: AsyncEngine, tmp_path: Path) -> None:
    bare, stored, own = served(), served(), rows_of(call(), "api")
    seen = Recorder(engine, service="api", state_dir=tmp_path)
    await seen.start()
    seen.keep(stored)
    await seen.close()
    Spool(tmp_path / "spool", "api").append([line_of(Kept(bare)), line_of(Kept(stored)), line_of(own)])
    recorder = Recorder(engine, service="api", state_dir=tmp_path)
    await recorder.start()
    await recorder.close()
    assert [row.id for row in await rows(engine)] == [bare.id, stored.id, own.call.id]
    [first, *_] = await rows(engine)
    assert (first.ts, first.caller, first.http_status, first.streamed) == (bare.ts, "desk-1", 200, True)
    [body] = await rows(engine, "select * from llm_bodies")
    assert (body.id, body.inputs) == (own.call.id, {"ticker": "AAPL"})
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_lines_that_an_earlier_release_spooled_are_stored(engine: AsyncEngine, tmp_path: Path) -> None:
    """They know nothing of callers; a line that lacks more is refused alone."""
    own = rows_of(call(), "api")
    columns = own.call._asdict() | (own.body._asdict() if own.body is not None else {})
    for name in ("caller", "request_id", "http_status", "streamed"):
        del columns[name]
    lame = {"ts": columns["ts"], "id": new_call_id(), "service": 7}
    Spool(tmp_path / "spool", "api").append([orjson.dumps(lame), orjson.dumps(columns)])
    recorder = Recorder(engine, service="api", state_dir=tmp_path)
    await recorder.start()
    await recorder.close()
    [row] = await rows(engine)
    assert (row.id, row.caller, row.http_status) == (own.call.id, "", None)
    assert len(await rows(engine, "select 1 from llm_bodies")) == 1
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_a_document_that_postgres_cannot_hold_takes_no_other_call_with_it(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    """Too deep a document is no fault of the database's and must not be tried for ever."""
    recorder = Recorder(engine, service="api", state_dir=tmp_path)
    good, bad = served(), served()
    recorder.keep(bad, BodyRow(bad.ts, bad.id, "[" * 100_000 + "]" * 100_000, "{}", None, ""))
    recorder.keep(good)
    await recorder.start()
    await recorder.close()
    assert [row.id for row in await rows(engine)] == [good.id]
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_the_queue_is_bounded_by_the_text_it_holds(
    engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "QUEUE_CHARACTERS", 10_000)
    recorder = Recorder(engine, service="api", state_dir=tmp_path)
    kept = [served() for _ in range(5)]
    for row in kept:
        recorder.keep(row, BodyRow(row.ts, row.id, "[]", "{}", None, "x" * 4000))
    await recorder.start()
    await recorder.close()
    assert [row.id for row in await rows(engine)] == [row.id for row in kept[-2:]]


async def test_a_call_that_no_row_can_be_made_of_takes_nobody_down(engine: AsyncEngine, tmp_path: Path) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    recorder = Recorder(engine, service="forecast", state_dir=tmp_path)
    await recorder.start()
    kept = call()
    recorder.record(call(inputs={"x": Unspeakable()}))
    recorder.record(kept)
    await recorder.close()
    assert [row.id for row in await rows(engine)] == [kept.id]


def request(**changed: Any) -> ChatRequest:
    base: dict[str, Any] = {
        "messages": (Message("user", "u"),),
        "sampling": Sampling(temperature=0.0),
        "constraint": Constraint(choice=("OK", "NO")),
    }
    return ChatRequest(**{**base, **changed})


async def test_a_reply_is_kept_until_its_end(engine: AsyncEngine) -> None:
    cache = ReplyCache(engine, ttl_s=60)
    call_id = new_call_id()
    assert await cache.get("k") is None
    await cache.put("k", reply("first"), call_id=new_call_id())
    await cache.put("k", reply("OK"), call_id=call_id)
    found = await cache.get("k")
    assert found is not None
    assert (found.reply.text, found.reply.model, found.reply.usage, found.call_id) == (
        "OK",
        "model-of-lexi",
        Usage(11, 5),
        call_id,
    )
    async with engine.begin() as connection:
        await connection.execute(text("update llm_cache set expires_at = now()"))
    assert await cache.get("k") is None


async def test_many_questions_at_once_get_their_own_answers(engine: AsyncEngine) -> None:
    cache = ReplyCache(engine, ttl_s=60)
    await asyncio.gather(*(cache.put(f"k{n}", reply(f"t{n}"), call_id=new_call_id()) for n in range(300)))
    found = await asyncio.gather(*(cache.get(f"k{n}") for n in range(400)))
    assert [None if one is None else one.reply.text for one in found] == [
        *(f"t{n}" for n in range(300)),
        *([None] * 100),
    ]


async def test_no_time_to_live_means_no_cache(engine: AsyncEngine) -> None:
    cache = ReplyCache(engine, ttl_s=0)
    await cache.put("k", reply("OK"), call_id=new_call_id())
    assert await cache.get("k") is None
    assert await rows(engine, "select 1 from llm_cache") == []


def test_the_key_covers_everything_that_can_change_the_answer(tmp_path: Path) -> None:
    registry = Registry.load_quietly(write_prompts(tmp_path))
    prompt, other = registry.versions("verdict").values()
    keys = [
        cache_key(request(), prompt, model="a", place="p"),
        cache_key(request(), prompt, model="b", place="p"),
        cache_key(request(), prompt, model="a", place="q"),
        cache_key(request(), other, model="a", place="p"),
        cache_key(request(messages=(Message("system", "u"),)), prompt, model="a", place="p"),
        cache_key(request(messages=(Message("user", "v"),)), prompt, model="a", place="p"),
        cache_key(request(sampling=Sampling(temperature=0.0, seed=1)), prompt, model="a", place="p"),
        cache_key(request(sampling=Sampling(temperature=0.0, max_tokens=1)), prompt, model="a", place="p"),
        cache_key(request(sampling=Sampling(temperature=0.0, top_p=0.5)), prompt, model="a", place="p"),
        cache_key(request(constraint=None), prompt, model="a", place="p"),
        cache_key(request(constraint=Constraint(schema={"type": "object"})), prompt, model="a", place="p"),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(request(), prompt, model="a", place="p") == keys[0]


async def test_two_processes_share_replies_and_every_ask_leaves_a_row(engine: AsyncEngine, tmp_path: Path) -> None:
    registry = Registry.load_quietly(write_prompts(tmp_path))
    model = ScriptedEngine(GOOD)
    answers: list[Any] = []
    for service in ("forecast", "api"):
        recorder = Recorder(engine, service=service, state_dir=tmp_path)
        await recorder.start()
        client = Client(
            engine=model,
            prompts=Prompts.build(registry),
            cache=ReplyCache(engine, ttl_s=60),
            recorder=recorder,
            settings=LLMSettings(),
        )
        answers += await asyncio.gather(*(client.ask("verdict", VERDICT_INPUTS) for _ in range(3)))
        await recorder.close()
    assert len(model.requests) == 1
    kept = await rows(engine)
    assert {row.id for row in kept} == {answer.call_id for answer in answers}
    assert [row.cached for row in kept].count(False) == 1
    assert sum(row.tokens_out for row in kept) == 5
    [inputs] = await rows(engine, "select distinct inputs::text as inputs from llm_bodies")
    assert json.loads(inputs.inputs) == VERDICT_INPUTS
