"""What a replay is not taken for: live work, another forecast's, another model's answer."""

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.judgement.assess import reassess
from libs.judgement.record import features_llm
from libs.llm.call_record import new_call_id
from tests.fakes.engine import FakeEngine, Fault
from tests.integration.api_app import Stack, running, until
from tests.integration.replay_cases import (
    ALLOW,
    DENY,
    FEED,
    call_of,
    change,
    judged,
    kept,
    replayed,
    replies,
    rows,
    store_forecast,
)
from tests.unit.judgement_cases import RULES


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=replies(DENY)) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    limits = {"LLM_DEADLINE_S": "5", "LLM_FIRST_TOKEN_TIMEOUT_S": "2", "LLM_IDLE_TIMEOUT_S": "2"}
    async with running(monkeypatch, database_url, fake.base_url, tmp_path, **limits) as made:
        yield made


async def test_a_forecast_written_after_the_call_is_not_its_original(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    """The bundled feed starts again, and comes by the same day with the same inputs."""
    judgement, forecast_id = await judged(stack, engine)
    client = stack.app.state.api.client
    again = await reassess(judgement, client=client, rules=RULES, feed=FEED)
    await change(
        engine,
        "update forecasts set features = jsonb_set(features, '{llm}', cast(:llm as jsonb)) where id = :id",
        llm=json.dumps(features_llm(again, True)),
        id=forecast_id,
    )
    assert again.policy is not None
    later = replace(again, policy=replace(again.policy, call_id=new_call_id()))
    other = await store_forecast(engine, later, feed="replay:2")
    await replayed(stack, call_of(judgement))
    await change(engine, "delete from forecasts where id = :id", id=forecast_id)
    await change(engine, "update forecasts set ts = now() + interval '1 minute' where id = :id", id=other)
    await replayed(stack, call_of(judgement))
    found = await rows(engine, "select forecast_id from replays order by at")
    assert [row["forecast_id"] for row in found] == [forecast_id, None]


async def test_replays_do_not_count_in_the_statistics(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    judgement, _ = await judged(stack, engine)
    before = (await stack.http.get("/llm/admin/stats")).json()
    fake.reply = "No idea."
    await replayed(stack, call_of(judgement), force=True)
    (row,) = await rows(engine, "select new_call_id from replays")
    await kept(stack, str(row["new_call_id"]))
    after = (await stack.http.get("/llm/admin/stats")).json()
    assert before["totals"]["total"] == 2
    assert (after["totals"], after["breakdown"]) == (before["totals"], before["breakdown"])


async def test_an_engines_error_is_kept_as_postgres_can(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    judgement, _ = await judged(stack, engine)
    fake.fault, fake.fault_status = Fault.STATUS, 400
    fake.fault_body = json.dumps({"error": {"message": "bad \0 here", "code": 400}})
    answer = await replayed(stack, call_of(judgement), version="1.1.0")
    assert (answer["success"], "bad \ufffd here" in answer["error"]) == (False, True)
    (row,) = await rows(engine, "select error from replays")
    assert row["error"] == answer["error"]


async def test_a_fallbacks_answer_is_not_the_versions(
    monkeypatch: pytest.MonkeyPatch, engine: AsyncEngine, database_url: str, tmp_path: Path
) -> None:
    upstreams = tmp_path / "upstreams.yaml"
    async with (
        FakeEngine(dialect="vllm", slots=8, reply=replies(DENY)) as lexi,
        FakeEngine(dialect="vllm", slots=8, reply=replies(ALLOW), model="Other") as other,
    ):
        upstreams.write_text(
            "upstreams:\n"
            "  - {name: lexi, dialect: vllm, slots: 8, shares: {api: 4}, fallback: [other]}\n"
            f"  - {{name: other, model: Other, base_url: '{other.base_url}', dialect: vllm, slots: 8, "
            "shares: {api: 4}}\n"
        )
        settings = {"UPSTREAMS_FILE": str(upstreams), "LLM_DEADLINE_S": "5"}
        async with running(monkeypatch, database_url, lexi.base_url, tmp_path, **settings) as stack:
            judgement, _ = await judged(stack, engine)
            call_id, ways = call_of(judgement), ({"version": "1.1.0"}, {"force": True})
            await lexi.stop()
            for way in ways:
                away = await replayed(stack, call_id, **way)
                assert (away["success"], away["text"], away["json"]) == (False, "", None)
                assert away["error"] == "Other answered in its place, which says nothing about Lexi"
            assert {row["status"] for row in await rows(engine, "select status from replays")} == {"unavailable"}
            assert len(other.requests) == 2
            await lexi.start()
            back = await until(lambda: replayed(stack, call_id, version="1.1.0"), lambda answer: answer["success"])
            assert (back["text"], back["cached"]) == (DENY, False)
