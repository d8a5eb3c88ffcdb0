"""Real completions against the model at LLM_BASE_URL: `make test-llm`. Skipped when nothing answers there."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.llm.client import Client
from libs.model_client import open_model

# Read once, before the fixture that hides the shell's settings from tests.
SHELL = {name: value for name, value in os.environ.items() if name.startswith("LLM_")}
BASE_URL = SHELL.get("LLM_BASE_URL", "http://127.0.0.1:8008/v1")
MODEL = SHELL.get("LLM_MODEL", "Lexi")
KEY = SHELL.get("LLM_API_KEY", "")


def reachable() -> bool:
    """Whether a model server answers at all."""
    try:
        headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
        return httpx.get(f"{BASE_URL}/models", headers=headers, timeout=3).status_code < 500
    except httpx.HTTPError:
        return False


pytestmark = pytest.mark.skipif(not reachable(), reason=f"no model server answers at {BASE_URL}")


@pytest.fixture(autouse=True)
def shell_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give these tests the shell's settings back, with patience for small machines where it says nothing."""
    patient = {"LLM_BASE_URL": BASE_URL, "LLM_MODEL": MODEL, "LLM_DEADLINE_S": "60", "LLM_FIRST_TOKEN_TIMEOUT_S": "50"}
    for name, value in (patient | SHELL).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def client(engine: AsyncEngine, tmp_path: Path) -> AsyncIterator[Client]:
    """The production client on the real upstream; afterwards every call it made must be on record."""
    async with open_model(engine, role="eval", state_dir=tmp_path) as model:
        yield model.client
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from llm_calls where success")) > 0


POLICY_INPUTS: dict[str, Any] = {
    "ticker": "IBM",
    "horizon": "1d",
    "as_of": "2012-08-14",
    "side": "buy",
    "last_price": 199.3,
    "mean": 200.1,
    "lower": 196.4,
    "upper": 203.9,
    "expected_return_pct": 0.4,
    "factors": {"momentum_20d": 0.8, "reversal_5d": -0.3},
    "factor_dispersion": 0.55,
    "liquidity_usd": 650000000,
    "coverage_pct": 100.0,
    "earnings_in_days": 12,
    "borrow": "available",
    "macro_regime": "neutral",
    "rules": {
        "earnings_days": 3,
        "max_factor_dispersion": 2.0,
        "min_coverage_pct": 85,
        "min_liquidity_usd": 5000000,
    },
    "headlines": ["IBM closed at its highest in 20 sessions."],
}


async def test_the_openai_sdk_gets_a_completion() -> None:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY or "none", timeout=60, max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Name one stock exchange."}], max_tokens=16
        )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


async def test_the_openai_sdk_streams() -> None:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY or "none", timeout=60, max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count to five."}], max_tokens=16, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces)


async def test_ask_gets_the_literal_ok(client: Client) -> None:
    answer = await client.ask("health", {}, use_cache=False)
    assert answer.status == "ok", answer.error
    assert answer.text == "OK"


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
async def test_ask_gets_a_valid_policy_and_a_rationale(client: Client, version: str) -> None:
    policy = await client.ask("policy", POLICY_INPUTS, version=version)
    rationale = await client.ask("rationale", POLICY_INPUTS, version=version)
    assert policy.status == "ok", (policy.error, policy.text)
    assert isinstance(policy.value["allow"], bool)
    assert rationale.status == "ok", (rationale.error, rationale.text)
    again = await client.ask("policy", POLICY_INPUTS, version=version)
    assert again.cached
    assert again.text == policy.text
