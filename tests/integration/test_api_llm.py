"""`/llm/chat`, and what the admin routes show of it."""

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.keys import create_key, parse_scopes
from libs.llm import call_pages
from services.api import repository
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.integration.api_app import Stack, running, until


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=Reply("Forty-two.", tokens_in=11, tokens_out=3)) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    limits = {"LLM_DEADLINE_S": "2", "LLM_FIRST_TOKEN_TIMEOUT_S": "0.4", "LLM_IDLE_TIMEOUT_S": "0.4"}
    async with running(monkeypatch, database_url, fake.base_url, tmp_path, **limits) as made:
        yield made


async def chat(stack: Stack, **body: Any) -> httpx.Response:
    return await stack.http.post("/llm/chat", json={"user": "What is it?", **body})


async def kept(stack: Stack, call_id: str) -> dict[str, Any]:
    """The call once the recorder wrote it."""
    answer = await until(lambda: stack.http.get(f"/llm/admin/call/{call_id}"), lambda answer: answer.status_code != 404)
    assert answer.status_code == 200
    return answer.json()


async def test_a_question_is_answered_and_kept_whole(stack: Stack, fake: FakeEngine) -> None:
    answer = await chat(stack, system="You are terse.", temperature=0.7, max_tokens=9)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"content", "cached", "prompt_version", "call_id", "model", "usage"}
    assert (body["content"], body["cached"], body["model"]) == ("Forty-two.", False, "Lexi")
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    (asked,) = fake.requests
    assert (asked["temperature"], asked["max_tokens"]) == (0.7, 9)
    assert [message["content"] for message in asked["messages"]] == ["You are terse.", "What is it?"]
    call = await kept(stack, body["call_id"])
    assert (call["prompt_key"], call["success"], call["status"]) == ("manual", True, "ok")
    assert call["body"]["reply"] == "Forty-two."
    assert call["body"]["inputs"] == {"system": "You are terse.", "user": "What is it?"}
    assert call["body"]["messages"][-1] == {"role": "user", "content": "What is it?"}


async def test_without_a_system_text_the_prompts_own_is_sent(stack: Stack, fake: FakeEngine) -> None:
    assert (await chat(stack)).status_code == 200
    assert "Lexi" in fake.requests[0]["messages"][0]["content"]


async def test_the_same_question_at_temperature_0_comes_from_the_cache(stack: Stack, fake: FakeEngine) -> None:
    first = (await chat(stack, temperature=0)).json()
    again = (await chat(stack, temperature=0)).json()
    assert (first["cached"], again["cached"], len(fake.requests)) == (False, True, 1)
    assert again["content"] == first["content"]


@pytest.mark.parametrize(
    ("fault", "status", "codes"),
    [
        (Fault.STATUS, 502, {"refused"}),
        (Fault.CUT, 502, {"broken_stream"}),
        (Fault.MALFORMED, 502, {"broken_stream"}),
        (Fault.SILENT, 504, {"first_token_timeout", "deadline_exceeded"}),
        (Fault.STALL, 504, {"idle_timeout", "deadline_exceeded"}),
    ],
)
async def test_a_models_fault_is_a_problem_with_its_code(
    stack: Stack, fake: FakeEngine, fault: Fault, status: int, codes: set[str]
) -> None:
    fake.fault = fault
    answer = await chat(stack)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] in codes
    call = await kept(stack, problem["call_id"])
    assert not call["success"]
    assert call["error"]


async def test_a_model_that_is_away_is_503(stack: Stack, fake: FakeEngine) -> None:
    await fake.stop()
    answer = await chat(stack)
    assert answer.status_code == 503
    assert answer.json()["code"] in {"connect_failed", "breaker_open"}


async def test_a_prompt_that_cannot_fit_is_the_callers_fault(stack: Stack, fake: FakeEngine) -> None:
    answer = await chat(stack, user="word " * 20_000)
    assert answer.status_code == 422
    assert answer.json()["code"] == "prompt_too_long"
    assert fake.requests == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "user"),
        ({"user": ""}, "user"),
        ({"user": "x", "max_tokens": 0}, "max_tokens"),
        ({"user": "x", "temperature": 2.5}, "temperature"),
        ({"user": "x", "model": "other"}, "model"),
    ],
)
async def test_a_wrong_question_names_the_field(stack: Stack, body: dict[str, Any], field: str) -> None:
    answer = await stack.http.post("/llm/chat", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_caller_that_leaves_frees_the_models_slot(stack: Stack, fake: FakeEngine) -> None:
    fake.delay_s = 1.0
    body = json.dumps({"user": "What is it?"}).encode()
    leave = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not sent:
            sent.append(body)
            return {"type": "http.request", "body": body, "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        return

    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/llm/chat",
        "raw_path": b"/llm/chat",
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
    assert (fake.aborted, fake.served) == (1, 0)


async def test_scopes_guard_the_routes(stack: Stack, tmp_path: Path) -> None:
    reader = create_key(tmp_path / "keys.json", "reader", parse_scopes("read"))
    headers = {"Authorization": f"Bearer {reader}"}
    assert (await stack.http.post("/llm/chat", json={"user": "x"}, headers=headers)).status_code == 403
    assert (await stack.http.get("/llm/admin/stats", headers=headers)).status_code == 403
    assert (await stack.http.get("/signals/latest", headers=headers)).status_code == 200
    for path in ("/llm/admin/calls", "/llm/admin/prompts", "/signals/latest"):
        assert (await stack.http.get(path, headers={"Authorization": ""})).status_code == 401


@pytest.mark.parametrize("path", ["/llm/chat", "/ingest/social", "/ingest/ratings", "/ingest/facts"])
@pytest.mark.parametrize("sent", [b"{bad", b'{"user": 1}', b"\xff"])
async def test_without_a_key_a_body_is_not_even_read(stack: Stack, path: str, sent: bytes) -> None:
    headers = {"Authorization": "Bearer lexi_wrong", "Content-Type": "application/json"}
    assert (await stack.http.post(path, content=sent, headers=headers)).status_code == 401


async def test_pages_of_calls_hold_every_call_once_newest_first(stack: Stack) -> None:
    ids = [(await chat(stack, user=f"question {number}")).json()["call_id"] for number in range(7)]
    await kept(stack, ids[-1])
    seen: list[str] = []
    before: str | None = None
    while True:
        given = {"limit": "3", **({"before": before} if before else {})}
        page = (await stack.http.get("/llm/admin/calls", params=given)).json()
        seen += [call["id"] for call in page["calls"]]
        before = page["next_before"]
        if before is None:
            break
    assert seen == ids[::-1]


async def test_calls_are_filtered(stack: Stack, fake: FakeEngine) -> None:
    good = (await chat(stack)).json()["call_id"]
    fake.fault = Fault.STATUS
    bad = (await chat(stack)).json()["call_id"]
    await kept(stack, bad)

    async def ids(**given: str) -> list[str]:
        page = (await stack.http.get("/llm/admin/calls", params=given)).json()
        return [call["id"] for call in page["calls"]]

    assert await ids(success="true") == [good]
    assert await ids(success="false") == [bad]
    assert await ids(prompt_key="manual", version="1.0.0") == [bad, good]
    assert await ids(prompt_key="policy") == []


async def test_an_unknown_call_is_404_and_nonsense_names_the_field(stack: Stack) -> None:
    beyond_dates = "ffffffff-ffff-7fff-bfff-ffffffffffff"
    for unknown in ("0192f0c1-2345-7abc-8def-0123456789ab", str(uuid4()), beyond_dates):
        answer = await stack.http.get(f"/llm/admin/call/{unknown}")
        assert answer.status_code == 404
        assert unknown in answer.json()["detail"]
    assert (await stack.http.get("/llm/admin/calls", params={"before": beyond_dates})).status_code == 200
    answer = await stack.http.get("/llm/admin/call/nonsense")
    assert answer.json()["errors"][0]["field"] == "call_id"
    answer = await stack.http.get("/llm/admin/calls", params={"limit": 0, "before": "x"})
    assert {error["field"] for error in answer.json()["errors"]} == {"limit", "before"}


async def test_stats_count_what_happened(stack: Stack, fake: FakeEngine) -> None:
    empty = (await stack.http.get("/llm/admin/stats")).json()
    assert empty["totals"]["total"] == 0
    assert empty["totals"]["p99_ms"] is None
    assert empty["breakdown"] == []
    await chat(stack, temperature=0)
    await chat(stack, temperature=0)
    fake.fault = Fault.STATUS
    await kept(stack, (await chat(stack)).json()["call_id"])
    stats = (await stack.http.get("/llm/admin/stats", params={"hours": 1})).json()
    totals = stats["totals"]
    assert set(totals) == {
        *("total", "success_count", "failure_count", "cached_count", "p50_ms", "p95_ms", "p99_ms"),
        *("tokens_in", "tokens_out"),
    }
    assert (totals["total"], totals["success_count"], totals["failure_count"], totals["cached_count"]) == (3, 2, 1, 1)
    assert totals["p50_ms"] == totals["p99_ms"] > 0
    assert stats["breakdown"] == [
        {"prompt_key": "manual", "prompt_version": "1.0.0", "success": True, "n": 2},
        {"prompt_key": "manual", "prompt_version": "1.0.0", "success": False, "n": 1},
    ]
    assert (await stack.http.get("/llm/admin/stats", params={"hours": "nan"})).status_code == 422


async def test_a_page_deep_in_history_starts_at_its_call(stack: Stack, engine: AsyncEngine) -> None:
    """The plan of a later page must use the index on id in each partition, not sort or filter from the top."""
    made = text(
        """
        insert into llm_calls
          (ts, id, service, prompt_key, prompt_version, prompt_hash, upstream, model, success, status)
        select t, (lpad(to_hex((extract(epoch from t) * 1000)::bigint), 12, '0') || '70008000' ||
          lpad(to_hex(n), 12, '0'))::uuid, 'api', 'manual', '1.0.0', '', 'lexi', 'Lexi', true, 'ok'
        from generate_series(1, 20000) n, lateral (select timestamptz '2026-01-01' + n * interval '10 s') s(t)
        """
    )
    async with engine.begin() as connection:
        for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
            await connection.execute(text(f"select ensure_partition('llm_calls', 'day', timestamptz '{day}')"))
        await connection.execute(made)
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("analyze llm_calls"))
        middle = await connection.scalar(text("select id from llm_calls order by id limit 1 offset 10000"))
        found = await connection.execute(
            text("explain select id from llm_calls c where c.id < :before and c.ts <= :ts order by c.id desc limit 50"),
            {"before": middle, "ts": await connection.scalar(text("select timestamptz '2026-01-02 12:00:00'"))},
        )
        plan = "\n".join(found.scalars())
    assert "Seq Scan" not in plan
    assert "Sort  (" not in plan  # a Merge Append only names its sort key
    assert "llm_calls_20260103" not in plan
    page = (await stack.http.get("/llm/admin/calls", params={"before": str(middle), "limit": 2})).json()
    assert len(page["calls"]) == 2


SERVED = text(
    """
    insert into llm_calls
      (ts, id, service, prompt_key, prompt_version, prompt_hash, upstream, model, success, status, caller, http_status)
    select t, (lpad(to_hex((extract(epoch from t) * 1000)::bigint), 12, '0') || '70008000' ||
      lpad(to_hex(n), 12, '0'))::uuid, 'api', case when own then 'manual' else 'v1/chat/completions' end,
      case when own then '1.0.0' else '' end, '', 'lexi', 'Lexi', true, 'ok',
      case when own then '' when n % 5000 = 1 then 'rare' else 'desk' end, case when own then null else 200 end
    from generate_series(1, 20000) n,
      lateral (select timestamptz '2026-01-01' + n * interval '10 s', n % 4000 = 0) s(t, own)
    """
)


async def test_pages_of_a_caller_and_of_the_houses_own_calls_have_an_index(stack: Stack, engine: AsyncEngine) -> None:
    """However many calls others made: neither is looked for among those of the rest."""
    async with engine.begin() as connection:
        for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
            await connection.execute(text(f"select ensure_partition('llm_calls', 'day', timestamptz '{day}')"))
        await connection.execute(SERVED)
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("analyze llm_calls"))
        for asked, own, index in (
            ({"caller": "rare"}, False, "caller_id_idx"),
            ({"version": "1.0.0"}, True, "id_idx1"),
        ):
            page = call_pages.calls_page(asked, own=own)
            found = await connection.execute(text(f"explain {page.text}"), {**asked, "limit": 51})
            plan = "\n".join(found.scalars())
            assert "Seq Scan" not in plan
            assert "Sort  (" not in plan
            assert plan.count(index) == 3
    rare = (await stack.http.get("/llm/admin/calls", params={"caller": "rare"})).json()["calls"]
    assert [(call["caller"], call["prompt_key"], call["http_status"]) for call in rare] == [
        ("rare", "v1/chat/completions", 200)
    ] * 4
    own = (await stack.http.get("/llm/admin/calls", params={"prompt_key": "manual"})).json()["calls"]
    assert [(call["caller"], call["http_status"], call["streamed"]) for call in own] == [("", None, False)] * 5
    both = {"caller": "rare", "prompt_key": "v1/chat/completions", "limit": "1"}
    page = (await stack.http.get("/llm/admin/calls", params=both)).json()
    older = (await stack.http.get("/llm/admin/calls", params={**both, "before": page["next_before"]})).json()
    assert [call["id"] for call in page["calls"] + older["calls"]] == [call["id"] for call in rare[:2]]
    nobody = (await stack.http.get("/llm/admin/calls", params={"caller": "nobody"})).json()
    assert nobody == {"calls": [], "next_before": None}
    async with engine.connect() as connection:
        shares = await repository.breakdown(connection, datetime(2026, 1, 1, tzinfo=UTC))
    assert {(share["prompt_key"], share["prompt_version"]): share["n"] for share in shares} == {
        ("manual", "1.0.0"): 5,
        ("v1/chat/completions", ""): 19995,
    }


async def test_prompts_show_versions_hashes_and_arms(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> None:
    buckets = {"LLM_AB_BUCKETS": "policy:1.0.0@90,1.1.0@10"}
    async with running(monkeypatch, database_url, fake.base_url, tmp_path, **buckets) as stack:
        prompts = {prompt["key"]: prompt for prompt in (await stack.http.get("/llm/admin/prompts")).json()}
        policy = (await stack.http.get("/llm/admin/prompts/policy")).json()
        unknown = await stack.http.get("/llm/admin/prompts/nothing")
    assert {"rationale", "policy", "summary", "manual", "health"} <= set(prompts)
    assert prompts["policy"] == policy
    assert policy["active"] == "1.0.0"
    assert policy["arms"] == {"1.0.0": 90, "1.1.0": 10}
    assert {"1.0.0", "1.1.0"} <= set(policy["versions"])
    assert len(policy["versions"]["1.0.0"]["hash"]) == 64
    assert "released_at" in policy["versions"]["1.0.0"]
    assert prompts["health"]["versions"]["1.0.0"]["output"] == {"choice": ["OK", "NO"]}
    assert unknown.status_code == 404
