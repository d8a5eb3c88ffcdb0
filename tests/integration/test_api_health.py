"""`/llm/health` against an engine that dies, freezes, talks nonsense and comes back; and without the database."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import FakeEngine, Fault
from tests.integration.api_app import Stack, database_away, running, until
from tools.local_stack.postgres import EmbeddedPostgres

TTL = "1.2"


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply="OK") as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    async with running(monkeypatch, database_url, fake.base_url, tmp_path, LLM_HEALTH_TTL_S=TTL) as made:
        yield made


async def health(stack: Stack) -> dict[str, Any]:
    answer = await stack.http.get("/llm/health", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert set(answer.json()) == {"ok", "cached", "model", "latency_ms", "checked_at"}
    return answer.json()


async def turns(stack: Stack, *, ok: bool) -> None:
    await until(lambda: health(stack), lambda found: found["ok"] is ok)


async def test_ok_comes_from_one_real_completion_and_asks_no_key(stack: Stack, fake: FakeEngine) -> None:
    found = await health(stack)
    assert (found["ok"], found["cached"], found["model"]) == (True, False, "Lexi")
    again = await asyncio.gather(*(health(stack) for _ in range(10)))
    assert all(one["ok"] and one["cached"] for one in again)
    assert len(fake.requests) == 1


async def test_the_reply_cache_is_never_asked(stack: Stack, fake: FakeEngine) -> None:
    for _ in range(3):
        found = await until(lambda: health(stack), lambda found: not found["cached"])
        assert found["ok"]
    assert len(fake.requests) == 3


async def test_a_killed_server_turns_it_false_and_its_return_true(stack: Stack, fake: FakeEngine) -> None:
    assert (await health(stack))["ok"]
    await fake.stop()
    await turns(stack, ok=False)
    await fake.start()
    await turns(stack, ok=True)


async def test_a_faulty_server_turns_it_false_and_its_healing_true(stack: Stack, fake: FakeEngine) -> None:
    faults = [Fault.FROZEN, Fault.STUCK, Fault.SILENT, Fault.STALL, Fault.CUT, Fault.MALFORMED, Fault.STATUS]
    await turns(stack, ok=True)
    for fault in faults:
        fake.fault = fault
        await turns(stack, ok=False)
        fake.fault = Fault.NONE
        await turns(stack, ok=True)


async def test_a_reply_that_is_not_the_literal_ok_is_not_ok(stack: Stack, fake: FakeEngine) -> None:
    for reply in ("Once upon a time", "ok", "OK!", "NO", ""):
        fake.reply = reply
        found = await until(lambda: health(stack), lambda found: not found["cached"])
        assert not found["ok"], reply


async def test_a_server_slower_than_the_ttl_is_not_ok(stack: Stack, fake: FakeEngine) -> None:
    fake.delay_s = 30
    assert not (await health(stack))["ok"]


async def test_it_works_without_the_database(
    stack: Stack, postgres: EmbeddedPostgres, database_url: str, fake: FakeEngine
) -> None:
    with database_away(postgres, database_url):
        assert (await health(stack))["ok"]
        ready = await stack.http.get("/ready")
        assert ready.status_code == 503
        assert "red    database" in ready.text
        problem = await stack.http.get("/signals/latest")
        assert problem.status_code == 503
        assert problem.headers["content-type"] == "application/problem+json"
    await until(lambda: stack.http.get("/ready"), lambda ready: ready.status_code == 200)
    assert (await stack.http.get("/signals/latest")).status_code == 200


async def test_ready_has_a_line_for_each_dependency(stack: Stack, fake: FakeEngine) -> None:
    ready = await stack.http.get("/ready")
    assert ready.status_code == 200
    assert [line.split()[1].rstrip(":") for line in ready.text.splitlines()] == [
        "database",
        "schema",
        "keys",
        "prompts",
        "upstreams_file",
        "lexi",
    ]
    await fake.stop()
    ready = await until(lambda: stack.http.get("/ready"), lambda ready: "yellow lexi: down" in ready.text)
    assert ready.status_code == 200
