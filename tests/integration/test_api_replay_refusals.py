"""What `POST /llm/admin/replay` refuses, and what it says then."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import create_key, parse_scopes
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.replay.errors import UnknownVersion
from tests.conftest import ROOT
from tests.fakes.engine import FakeEngine
from tests.integration.api_app import Stack, running, until
from tests.integration.replay_cases import (
    DENY,
    call_of,
    change,
    judged,
    replay,
    replayed,
    replies,
    rows,
)

PROMPTS = ROOT / "configs" / "llm_prompts.yaml"


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


async def test_what_is_unknown_or_not_kept_names_the_way_out(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    call_id = call_of(judgement)
    asked = len(fake.requests)
    for unknown in (uuid4(), "0192f0c1-2345-7abc-8def-0123456789ab", "ffffffff-ffff-7fff-bfff-ffffffffffff"):
        answer = await replay(stack, unknown)
        assert (answer.status_code, str(unknown) in answer.json()["detail"]) == (404, True)
        assert "/llm/admin/calls" in answer.json()["detail"]
    answer = await replay(stack, call_id, version="9.9.9")
    assert answer.status_code == 422
    assert "9.9.9" in answer.json()["detail"]
    assert "1.0.0, 1.1.0" in answer.json()["detail"]
    await change(engine, "update llm_bodies set inputs = null where id = :id", id=call_id)
    answer = await replay(stack, call_id, version="1.1.0")
    assert (answer.status_code, "without `version`" in answer.json()["detail"]) == (409, True)
    assert (await replay(stack, call_id, force=True)).status_code == 200
    await change(engine, "delete from llm_bodies where id = :id", id=call_id)
    for way in ({}, {"force": True}, {"version": "1.1.0"}):
        answer = await replay(stack, call_id, **way)
        assert (answer.status_code, "not kept" in answer.json()["detail"]) == (409, True)
        assert answer.headers["content-type"] == "application/problem+json"
    assert len(fake.requests) == asked + 1


async def test_a_version_that_says_something_else_now_is_not_asked_in_the_others_name(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    call_id = call_of(judgement)
    await change(engine, "update llm_calls set prompt_hash = 'feedbeef' where id = :id", id=call_id)
    asked = len(fake.requests)
    answer = await replay(stack, call_id, force=True)
    assert answer.status_code == 409
    assert "feedbeef" in answer.json()["detail"]
    assert "name a `version`" in answer.json()["detail"]
    assert len(fake.requests) == asked
    recorded = await replayed(stack, call_id)
    assert (recorded["json"], recorded["prompt_hash"]) == (json.loads(DENY), "feedbeef")
    through = await replayed(stack, call_id, version="1.0.0")
    assert len(fake.requests) == asked + 1
    assert through["prompt_hash"] != "feedbeef"


async def test_inputs_that_another_version_does_not_take_are_a_conflict(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    call_id = call_of(judgement)
    await change(engine, "update llm_bodies set inputs = inputs - 'rules' where id = :id", id=call_id)
    asked = len(fake.requests)
    answer = await replay(stack, call_id, version="1.1.0")
    assert (answer.status_code, "rules" in answer.json()["detail"]) == (409, True)
    assert len(fake.requests) == asked


async def test_a_call_of_a_client_can_be_shown_and_not_asked_again(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine, tmp_path: Path
) -> None:
    token = create_key(tmp_path / "keys.json", "recorded", parse_scopes("infer"), record="body")
    await asyncio.sleep(0.2)
    transport = httpx.ASGITransport(stack.front)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as http:
        body = {"model": "Lexi", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
        done = await http.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {token}"})
        assert done.status_code == 200, done.text
    found = await until(lambda: rows(engine, "select id from llm_bodies"), lambda found: len(found) == 1)
    call_id = found[0]["id"]
    assert (await replayed(stack, call_id))["replay_of"] == str(call_id)
    asked = len(fake.requests)
    for way in ({"force": True}, {"version": "1.0.0"}):
        answer = await replay(stack, call_id, **way)
        assert (answer.status_code, "through the gateway" in answer.json()["detail"]) == (409, True)
    assert len(fake.requests) == asked


async def test_only_an_admin_may(stack: Stack, tmp_path: Path) -> None:
    token = create_key(tmp_path / "keys.json", "reader", parse_scopes("read,infer"))
    await asyncio.sleep(0.2)
    headers = {"Authorization": f"Bearer {token}"}
    body = {"id": str(uuid4())}
    assert (await stack.http.post("/llm/admin/replay", json=body, headers=headers)).status_code == 403
    assert (await stack.http.post("/llm/admin/replay", content=b"{", headers={"Authorization": ""})).status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "id"),
        ({"id": "x"}, "id"),
        ({"id": str(uuid4()), "force": "yes"}, "force"),
        ({"id": str(uuid4()), "version": ""}, "version"),
        ({"id": str(uuid4()), "forced": True}, "forced"),
    ],
)
async def test_nonsense_names_the_field(stack: Stack, body: dict[str, Any], field: str) -> None:
    answer = await stack.http.post("/llm/admin/replay", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


async def test_a_caller_that_leaves_frees_the_models_slot(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    judgement, _ = await judged(stack, engine)
    fake.delay_s = 2.0
    body = json.dumps({"id": str(call_of(judgement)), "version": "1.1.0"}).encode()
    leave, begun = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not begun.is_set():
            begun.set()
            return {"type": "http.request", "body": body, "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        return

    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/llm/admin/replay",
        "raw_path": b"/llm/admin/replay",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"authorization", f"Bearer {stack.token}".encode())],
    }

    async def serve() -> None:
        await stack.front(scope, receive, send)

    async def active() -> int:
        return fake.active

    async with asyncio.TaskGroup() as group:
        group.create_task(serve())
        await until(active, lambda number: number == 1)
        leave.set()
    await until(active, lambda number: number == 0)
    assert fake.aborted == 1
    assert await rows(engine, "select 1 from replays") == []


async def test_a_version_that_is_taken_out_before_it_is_asked_is_unknown(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine, tmp_path: Path
) -> None:
    """The replay still saw it; the client, which looks for itself, does not."""
    judgement, _ = await judged(stack, engine)
    state, path = stack.app.state.api, tmp_path / "with_another.yaml"
    path.write_text(PROMPTS.read_text(encoding="utf-8").replace('"1.1.0"', '"1.2.0"'), encoding="utf-8")
    seen = Prompts.build(Registry.load_unlocked(path))
    replayer = replace(state.replayer, prompts=seen)
    asked = len(fake.requests)
    with pytest.raises(UnknownVersion, match=r"1\.2\.0"):
        await replayer.replay(call_of(judgement), version="1.2.0")
    assert len(fake.requests) == asked
