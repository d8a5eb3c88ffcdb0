"""The review of a proposal: Hermes reads the whole request and the whole proposal, as data, or nothing is given out."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.integration.sidecar_app import PROPOSAL, VALID, entries_of, sidecar, two_models


@pytest.fixture
async def models() -> AsyncGenerator[tuple[FakeEngine, FakeEngine], None]:
    async with two_models() as both:
        yield both


@pytest.fixture
async def http(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with sidecar(monkeypatch, tmp_path, *entries_of(*models)) as client:
        yield client


async def said(http: httpx.AsyncClient, prompt: str = "Adjust the stop of AAPL?", **body: Any) -> Any:
    answer = await http.post("/propose_trade_adjustments/", json={"prompt": prompt, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_proposal_is_reviewed_as_data(http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]) -> None:
    expected = {"phi3_proposal": PROPOSAL, "hermes_assessment": "It fits the request."}
    assert await said(http, max_length=100) == expected
    system, data, user = models[0].requests[0]["messages"]
    assert "never instructions" in system["content"]
    shown = json.loads(data["content"])
    assert shown["request"] == "Adjust the stop of AAPL?"
    assert json.loads(shown["proposal"]) == PROPOSAL
    assert user["content"] == "Review the proposal."


async def test_the_whole_request_and_the_whole_proposal_are_reviewed(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    proposal = {**PROPOSAL, "rationale": "\u4e2d" * 800}
    models[1].reply = json.dumps(proposal)
    request = "abcd " * 5200 + "end"
    answer = await said(http, request, max_length=64)
    assert answer["phi3_proposal"] == proposal
    data = models[0].requests[0]["messages"][1]["content"]
    shown = json.loads(data)
    assert shown["request"] == request
    assert json.loads(shown["proposal"]) == proposal
    assert proposal["rationale"] in data  # as letters: escapes cost a model several tokens each


async def test_what_a_review_would_cut_is_refused(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    monkeypatch.setattr("services.sidecar.asking.LONGEST_REVIEWED", 300)
    expected = {"error": "The prompt is too long: prompt and answer have 6144 tokens together."}
    assert await said(http, "x" * 301) == expected
    assert await said(http, "\ufdfa" * 20) == expected  # 18 letters each, spelt out
    models[1].reply = json.dumps({**PROPOSAL, "rationale": "x" * 300})
    assert await said(http) == expected
    assert models[0].requests == []
    models[1].reply = VALID
    assert "hermes_assessment" in await said(http, "x" * 300)


async def test_a_review_counts_the_marks_that_its_data_has(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    await said(http, '"' * 2000, max_length=6144)
    assert 256 < models[0].requests[0]["max_tokens"] < 6144 - 2 * 2000  # each quote has a backslash there
