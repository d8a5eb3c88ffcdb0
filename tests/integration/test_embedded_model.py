"""The embedded model server itself: constrained answers, a cancelled call, conduct at start and end.

Shape and conduct are asserted, never wisdom: the model is tiny.
"""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from libs.llm.registry import Registry
from libs.llm.structured import Output, Parsed
from libs.llm.types import PromptVersion
from libs.upstreams.grammar import gbnf
from libs.upstreams.types import Constraint
from tools.local_stack.lexi import engine_threads, usable_cores

ROOT = Path(__file__).parents[2]
START_S = 60.0
INPUTS: dict[str, object] = {
    "ticker": "AAPL", "horizon": "1d", "as_of": "2012-03-01", "side": "buy", "last_price": 544.47, "mean": 547.1,
    "lower": 531.2, "upper": 560.3, "expected_return_pct": 0.48, "factors": {"momentum_20": 1.91, "reversal_5": -0.42},
    "factor_dispersion": 0.93,
    "liquidity_usd": 9_512_345_678, "coverage_pct": 100.0, "earnings_in_days": None, "borrow": None,
    "macro_regime": None, "headlines": ["AAPL rose 4 sessions in a row"],
    "rules": {"earnings_days": 3, "max_factor_dispersion": 1.5, "min_coverage_pct": 85, "min_liquidity_usd": 5_000_000},
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(port: int, **variables: str) -> "subprocess.Popen[str]":
    """The server as `make lexi` starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.local_stack.lexi"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LEXI_PORT": str(port), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """The embedded server on a free port, ready."""
    port = free_port()
    process = start(port)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert f":{port}/v1" in line, f"no line about being ready, but {line!r}"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM, "SIGTERM ends it at once"


@pytest.fixture
async def http(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client; the server ends a connection after each stream, so none is used twice."""
    async with httpx.AsyncClient(base_url=base_url, timeout=120, headers={"Connection": "close"}) as client:
        yield client


def prompt(key: str, version: str = "1.0.0") -> tuple[PromptVersion, list[dict[str, str]]]:
    """A version of the real prompts, and its messages for the inputs above."""
    registry = Registry.load_quietly(ROOT / "configs" / "llm_prompts.yaml")
    found = registry.version(key, version)
    rendered = registry.render(found, INPUTS if key != "health" else {})
    return found, [{"role": message.role, "content": message.content} for message in rendered.messages]


async def answer(
    http: httpx.AsyncClient, messages: list[dict[str, str]], *, constraint: Constraint | None, max_tokens: int
) -> tuple[str, str]:
    """Text and finish reason of one streamed answer at temperature 0."""
    body: dict[str, Any] = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True}
    if constraint is not None:
        body["grammar"] = gbnf(constraint)
    text, finish = "", ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                text += choice["delta"].get("content") or ""
                finish = choice.get("finish_reason") or finish
    return text, finish


async def busy_slots(http: httpx.AsyncClient) -> int:
    """Requests the server is working on, by its own metrics."""
    found = re.search(r"^llamacpp:requests_processing (\d+)", (await http.get("/metrics")).text, re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
async def test_a_policy_answer_is_valid_under_its_schema(http: httpx.AsyncClient, version: str) -> None:
    policy, messages = prompt("policy", version)
    assert policy.constraint is not None
    assert policy.constraint.schema is not None
    text, finish = await answer(http, messages, constraint=policy.constraint, max_tokens=policy.sampling.max_tokens)
    parsed = Output(schema=policy.constraint.schema).parse(text, finish_reason=finish)
    assert isinstance(parsed, Parsed), f"{parsed}: {text!r}"
    assert not re.search(r"\s", text)
    assert list(parsed.value) == list(policy.constraint.schema["properties"])


async def test_a_rationale_is_text_within_its_bound(http: httpx.AsyncClient) -> None:
    rationale, messages = prompt("rationale")
    text, finish = await answer(http, messages, constraint=None, max_tokens=rationale.sampling.max_tokens)
    assert text.strip()
    assert finish in {"stop", "length"}


async def test_the_health_prompt_answers_the_literal_ok(http: httpx.AsyncClient) -> None:
    health, messages = prompt("health")
    text, finish = await answer(http, messages, constraint=health.constraint, max_tokens=health.sampling.max_tokens)
    assert (text, finish) == ("OK", "stop")


async def test_a_bounded_string_ends_where_its_schema_says(http: httpx.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string", "minLength": 5, "maxLength": 40},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
            "score": {"type": ["number", "null"], "minimum": 0},
        },
        "required": ["text", "tags"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "Tell me a very long story about bulls and bears. Never stop."}]
    text, finish = await answer(http, messages, constraint=Constraint(schema=schema), max_tokens=200)
    assert isinstance(Output(schema=schema).parse(text, finish_reason=finish), Parsed), text


async def test_a_caller_that_leaves_frees_its_slot(http: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "Count to a million."}], "max_tokens": 1500, "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if '"content":"' in line:
                break
        assert await busy_slots(http) == 1
    for _ in range(200):
        if not await busy_slots(http):
            return
        await asyncio.sleep(0.05)
    pytest.fail("the slot of the caller that left is still at work")


async def test_the_model_goes_by_the_name_and_slots_it_was_given(http: httpx.AsyncClient) -> None:
    models = (await http.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["Lexi"]
    assert len((await http.get("/slots")).json()) == 8


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 3), (64, 8)])
def test_one_core_stays_free(cores: int, threads: int) -> None:
    assert engine_threads(cores) == threads


def test_a_containers_quota_counts_as_its_cores(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text("150000 100000\n", encoding="ascii")
    assert usable_cores(quota) == 1
    quota.write_text("max 100000\n", encoding="ascii")
    assert usable_cores(quota) == usable_cores(tmp_path / "missing")


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(port)
        _, said = process.communicate(timeout=START_S)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert str(port) in said
    assert "LEXI_PORT" in said


def test_an_open_model_on_a_public_address_is_refused() -> None:
    process = start(free_port(), LEXI_HOST="0.0.0.0")
    _, said = process.communicate(timeout=START_S)
    assert process.returncode == 2
    assert "LLM_API_KEY" in said
