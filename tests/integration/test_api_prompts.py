"""What `/llm/admin/prompts` says is in force, while it changes under a running api."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.activations import activate
from libs.llm.in_force import Activation, Ground
from libs.llm.registry import Registry
from libs.upstreams.types import Sampling
from services.api.deps import ApiState
from tests.fakes.engine import FakeEngine, Reply
from tests.integration.api_app import Stack, running, until

ENV_ARMS = "1.0.0@90,1.1.0@10"


@pytest.fixture
async def fake() -> AsyncGenerator[FakeEngine, None]:
    async with FakeEngine(dialect="vllm", slots=8, reply=Reply("Forty-two.")) as engine:
        yield engine


@pytest.fixture
async def stack(
    monkeypatch: pytest.MonkeyPatch, database_url: str, fake: FakeEngine, tmp_path: Path
) -> AsyncGenerator[Stack, None]:
    buckets = {"LLM_AB_BUCKETS": f"policy:{ENV_ARMS}"}
    async with running(monkeypatch, database_url, fake.base_url, tmp_path, **buckets) as made:
        yield made


async def policy(stack: Stack) -> dict[str, Any]:
    return (await stack.http.get("/llm/admin/prompts/policy")).json()


async def promote(engine: AsyncEngine, version: str, ground: Ground) -> Activation:
    async with engine.begin() as connection:
        made = await activate(
            connection, key="policy", version=version, arms=(), who="ada", why="better", ground=ground
        )
    assert made is not None
    return made


async def test_an_activation_shows_within_seconds_and_without_a_restart(stack: Stack, engine: AsyncEngine) -> None:
    before = await policy(stack)
    assert (before["source"], before["activation"], before["active"]) == ("environment", None, "1.0.0")
    assert before["arms"] == {"1.0.0": 90, "1.1.0": 10}
    assert before["phase"].startswith("environment-")
    made = await promote(engine, "1.1.0", Ground("1.0.0", None, ENV_ARMS))
    after = await until(lambda: policy(stack), lambda body: body["source"] == "activation")
    assert (after["active"], after["arms"], after["phase"]) == ("1.1.0", {}, "")
    activation = after["activation"]
    assert {name: activation[name] for name in ("id", "version", "who", "why")} == {
        "id": made.id,
        "version": "1.1.0",
        "who": "ada",
        "why": "better",
    }
    assert after["versions"] == before["versions"]
    labels = {"key": "policy", "version": "1.1.0", "hash": after["versions"]["1.1.0"]["hash"][:12]}
    assert REGISTRY.get_sample_value("lexi_prompt_in_force", {**labels, "source": "activation"}) == 1
    metrics = (await stack.http.get("/metrics")).text
    assert 'key="policy",source="activation",version="1.1.0"} 1.0' in metrics
    assert 'key="policy",source="environment"' not in metrics


async def test_an_activation_on_other_ground_is_shown_and_does_not_rule(stack: Stack, engine: AsyncEngine) -> None:
    made = await promote(engine, "1.1.0", Ground("0.9.0", None, None))
    body = await until(lambda: policy(stack), lambda body: body["activation"] is not None)
    assert (body["activation"]["id"], body["source"], body["active"]) == (made.id, "environment", "1.0.0")


async def test_what_rules_is_shown_and_not_what_came_later_on_other_ground(stack: Stack, engine: AsyncEngine) -> None:
    made = await promote(engine, "1.1.0", Ground("1.0.0", None, ENV_ARMS))
    later = await promote(engine, "1.0.0", Ground("1.0.0", None, None))
    state: ApiState = stack.app.state.api

    async def last() -> int | None:
        return state.prompts.now.in_force["policy"].last_id

    await until(last, lambda found: found == later.id)
    body = await policy(stack)
    assert (body["activation"]["id"], body["source"], body["active"]) == (made.id, "activation", "1.1.0")


async def test_an_activation_that_cannot_be_followed_turns_ready_yellow(stack: Stack, engine: AsyncEngine) -> None:
    async def line() -> str:
        answer: httpx.Response = await stack.http.get("/ready")
        return next(line for line in answer.text.splitlines() if line.split()[1].rstrip(":") == "prompts")

    assert await line() == "green  prompts"
    await promote(engine, "9.9.9", Ground("1.0.0", None, ENV_ARMS))
    reason = "activation 1 of policy is not followed: it names version 9.9.9, which is not in the file"
    await until(line, lambda said: said == f"yellow prompts: {reason}")


async def test_a_call_says_which_one_it_asks_again(stack: Stack) -> None:
    state: ApiState = stack.app.state.api
    registry: Registry = state.prompts.now.registry
    asked = (await stack.http.post("/llm/chat", json={"user": "What is it?"})).json()
    original = asked["call_id"]
    inputs = {"system": "", "user": "What is it?"}
    rendered = registry.render(registry.active("manual"), inputs)
    answer = await state.client.ask_again(rendered, sampling=Sampling(), inputs=inputs, replay_of=UUID(original))
    found = await until(
        lambda: stack.http.get(f"/llm/admin/call/{answer.call_id}"), lambda answer: answer.status_code != 404
    )
    assert found.json()["replay_of"] == original
    first = await until(lambda: stack.http.get(f"/llm/admin/call/{original}"), lambda answer: answer.status_code != 404)
    assert first.json()["replay_of"] is None
