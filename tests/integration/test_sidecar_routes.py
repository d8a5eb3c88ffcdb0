"""What old clients send the sidecar, and what they get."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.sidecar.answers import INVALID_MODEL_ID, NOT_LOADED
from tests.fakes.engine import FakeEngine, Fault, Reply
from tests.integration.sidecar_app import NOWHERE, PROPOSAL, VALID, entries_of, entry, sidecar, two_models

ROUTES = ("/generate/", "/generate/hermes/", "/generate/phi3/", "/propose_trade_adjustments/")


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


async def said(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await http.post(path, json={"prompt": "Adjust the stop of AAPL?", **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


async def test_hermes_answers_exactly_its_text(http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]) -> None:
    expected = {"generated_text": "It fits the request."}
    assert await said(http, "/generate/") == expected
    assert await said(http, "/generate/", model_id="hermes") == expected
    assert await said(http, "/generate/hermes/", max_length=17) == expected
    asked = models[0].requests
    assert [body["max_tokens"] for body in asked] == [256, 256, 17]
    # The words of the caller alone: the server puts its template around them.
    assert all(body["messages"] == [{"role": "user", "content": "Adjust the stop of AAPL?"}] for body in asked)
    assert models[1].requests == []


async def test_phi3_answers_its_object_under_a_constraint(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    assert await said(http, "/generate/", model_id="phi3") == PROPOSAL
    assert await said(http, "/generate/phi3/") == PROPOSAL
    schema = models[1].requests[0]["structured_outputs"]["json"]
    assert schema["required"] == ["ticker", "action", "confidence", "rationale"]
    assert schema["additionalProperties"] is False
    assert models[0].requests == []


@pytest.mark.parametrize("model_id", ["gpt-4", "", "Hermes", None, 5, True, ["hermes"], {"name": "phi3"}])
async def test_a_wrong_model_id_is_said_again(http: httpx.AsyncClient, model_id: object) -> None:
    assert await said(http, "/generate/", model_id=model_id) == {
        "error": "Invalid model_id specified. Choose 'hermes' or 'phi3'.",
        "specified_model_id": model_id,
    }


async def test_a_model_id_that_json_has_no_form_for_is_still_refused(http: httpx.AsyncClient) -> None:
    forms = {'"\\ud800"': "\ud800", "NaN": None, "1e999": None, f"{10**40}": 10**40}
    for text, shown in forms.items():
        answer = await http.post(
            "/generate/", content=f'{{"prompt": "x", "model_id": {text}}}', headers={"Content-Type": "application/json"}
        )
        assert answer.json() == {"error": INVALID_MODEL_ID, "specified_model_id": shown}, text


async def test_fields_that_are_not_known_change_nothing(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    assert "generated_text" in await said(http, "/generate/hermes/", model_id="phi3", temperature=9, base_url=NOWHERE)
    assert models[0].requests[0]["temperature"] != 9


BAD_BODIES = {
    "prompt: Field required": {},
    "prompt: Input should be a valid string": {"prompt": 5},
    "prompt: Value error, there is nothing to answer": {"prompt": " \n"},
    "max_length: Input should be greater than or equal to 1": {"prompt": "x", "max_length": 0},
    "max_length: Input should be a valid integer": {"prompt": "x", "max_length": None},
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("named", BAD_BODIES)
async def test_a_bad_body_is_named_and_not_repeated(http: httpx.AsyncClient, path: str, named: str) -> None:
    answer = await http.post(path, json=BAD_BODIES[named])
    assert answer.status_code == 422
    assert named in answer.json()["detail"]
    assert "input" not in answer.text.replace("Input should", "")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 422),
        (b"{", "application/json", 400),
        (b'{"prompt": "\xff\xfe"}', "application/json", 400),
        (b'{"prompt": "x", "max_length": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"prompt": "x", "more": ' + b"[" * 100_000 + b"}", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 422),
        (b'["prompt"]', "application/json", 422),
        (b'{"prompt": "x"}', "text/plain", 415),
        (b'{"prompt": "x"}', "application/x-www-form-urlencoded", 415),
        (b'{"prompt": "' + b"x" * 300_000 + b'"}', "application/json", 413),
    ],
)
async def test_what_is_no_such_json_is_refused_as_a_problem(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine], content: bytes, kind: str, status: int
) -> None:
    answer = await http.post("/generate/", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert "Traceback" not in answer.text
    assert models[0].requests == []


async def test_a_huge_max_length_is_cut_to_what_fits(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    await said(http, "/generate/hermes/", max_length=10**30)
    await said(http, "/generate/phi3/", max_length=10**30)
    await said(http, "/generate/hermes/", prompt="word " * 3000, max_length=6144)
    whole, of_object, beside_a_long_prompt = (
        body["max_tokens"] for body in (models[0].requests[0], models[1].requests[0], models[0].requests[1])
    )
    assert 5000 < whole < 6144
    assert of_object == 1024
    assert 1 <= beside_a_long_prompt <= 6144 - 3000


async def test_a_prompt_that_cannot_fit_is_told_so_and_asks_nobody(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    expected = {"error": "The prompt is too long: prompt and answer have 6144 tokens together."}
    for path in ROUTES:
        assert await said(http, path, prompt="x" * 40_000) == expected
    assert models[0].requests == models[1].requests == []
    models[0].context = 3  # the engine counts what we estimated
    counted = await said(http, "/generate/")
    assert counted == {**expected, "call_id": counted["call_id"]}  # it was asked, so the call is on record


async def test_an_invalid_object_is_repaired_once(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]
) -> None:
    replies = iter(['{"ticker": "AAPL", "action": "buy"}', VALID])

    def reply(_body: dict[str, Any]) -> str:
        return next(replies)

    models[1].reply = reply
    assert await said(http, "/generate/phi3/") == PROPOSAL
    assert "That reply cannot be used" in models[1].requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    "garbage",
    ["", "no JSON at all", VALID[:40], f"Sure! {VALID}", VALID + VALID, "[]", "null", '{"ticker": "A", "ticker": "B"}'],
)
async def test_an_object_that_stays_invalid_never_gets_out(
    http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine], garbage: str
) -> None:
    models[1].reply = garbage
    for path in ("/generate/phi3/", "/propose_trade_adjustments/"):
        answer = await said(http, path)
        assert set(answer) == {"error", "call_id"}
        assert answer["error"].startswith("Phi-3 gave no valid answer")
    assert len(models[1].requests) == 4  # each asked once more
    assert models[0].requests == []


async def test_a_number_of_any_size_is_a_number(http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]) -> None:
    huge = {**PROPOSAL, "new_stop_pct": 10**40, "new_target_pct": -1e308, "rationale": "\u2028 and \U0001f642"}
    models[1].reply = json.dumps(huge)
    assert await said(http, "/generate/phi3/") == huge
    assert (await said(http, "/propose_trade_adjustments/"))["phi3_proposal"] == huge


async def test_an_object_that_was_cut_says_so(http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]) -> None:
    models[1].reply = Reply(VALID[:20], finish_reason="length")
    answer = await said(http, "/generate/phi3/", max_length=5)
    assert answer["error"] == "Phi-3 gave no valid answer: it was cut at max_length."


async def test_an_empty_text_is_an_answer(http: httpx.AsyncClient, models: tuple[FakeEngine, FakeEngine]) -> None:
    models[0].reply = ""
    assert await said(http, "/generate/hermes/") == {"generated_text": ""}


async def test_each_model_that_is_away_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> None:
    hermes, phi3 = entries_of(*models)
    async with sidecar(monkeypatch, tmp_path, {**hermes, "base_url": NOWHERE}, phi3) as http:
        away = {"error": "Hermes model not loaded. Please check server logs."}
        assert await said(http, "/generate/") == away
        assert await said(http, "/generate/hermes/") == away
        assert await said(http, "/generate/phi3/") == PROPOSAL
        asked = len(models[1].requests)
        assert await said(http, "/propose_trade_adjustments/") == away
        assert len(models[1].requests) == asked  # nobody would review it
    async with sidecar(monkeypatch, tmp_path, hermes, {**phi3, "base_url": NOWHERE}) as http:
        away = {"error": "Phi-3 ONNX model not loaded. Please check server logs."}
        assert await said(http, "/generate/", model_id="phi3") == away
        assert await said(http, "/generate/phi3/") == away
        assert await said(http, "/propose_trade_adjustments/") == away
        assert "generated_text" in await said(http, "/generate/hermes/")


async def test_a_server_without_the_model_or_a_share_counts_as_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> None:
    hermes, phi3 = entries_of(*models)
    unshared = {**phi3, "shares": {"api": 8}}
    async with sidecar(monkeypatch, tmp_path, {**hermes, "model": "Other"}, unshared) as http:
        assert await said(http, "/generate/hermes/") == {"error": NOT_LOADED["hermes"]}
        assert await said(http, "/generate/phi3/") == {"error": NOT_LOADED["phi3"]}


async def test_statuses_tell_where_old_clients_are_not_minded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> None:
    hermes, phi3 = entries_of(*models)
    away = {**hermes, "base_url": NOWHERE}
    async with sidecar(monkeypatch, tmp_path, away, phi3, SIDECAR_LEGACY_STATUS="0") as http:
        body = {"prompt": "x"}
        assert (await http.post("/generate/phi3/", json=body)).status_code == 200
        wrong = await http.post("/generate/", json={**body, "model_id": "gpt"})
        assert (wrong.status_code, wrong.json()["error"]) == (422, INVALID_MODEL_ID)
        gone = await http.post("/generate/", json=body)
        assert (gone.status_code, gone.json()) == (503, {"error": NOT_LOADED["hermes"]})
        models[1].reply = "garbage"
        assert (await http.post("/generate/phi3/", json=body)).status_code == 502
        models[1].fault = Fault.SILENT
        assert (await http.post("/generate/phi3/", json=body)).status_code == 504


async def test_keys_are_asked_for_where_it_is_not_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> None:
    entries = entries_of(*models)
    async with sidecar(monkeypatch, tmp_path, *entries, SIDECAR_LEGACY_OPEN="0") as http:
        for path in ROUTES:
            assert (await http.post(path, content=b"not read")).status_code == 401
        for path in ("/health", "/ready", "/metrics"):
            assert (await http.get(path)).status_code == 200
    async with sidecar(monkeypatch, tmp_path, *entries, keyed=True, SIDECAR_LEGACY_OPEN="0") as http:
        assert await said(http, "/generate/phi3/") == PROPOSAL


async def test_more_than_it_takes_at_once_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> None:
    async with sidecar(monkeypatch, tmp_path, *entries_of(*models), SIDECAR_MAX_REQUESTS="1") as http:
        models[0].reply = Reply("late", delay_s=0.5)
        answers = await _at_once(http, 3)
        assert sorted(answer.status_code for answer in answers) == [200, 503, 503]
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["Retry-After"] == "2"
        assert "SIDECAR_MAX_REQUESTS" in refused.json()["detail"]
        assert "generated_text" in await said(http, "/generate/")


async def test_many_at_once_share_the_slots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: tuple[FakeEngine, FakeEngine]
) -> None:
    hermes = entry("hermes", models[0].base_url, "Hermes", slots=3, shares={"sidecar": 3})
    models[0].reply = Reply("done", delay_s=0.02)
    async with sidecar(monkeypatch, tmp_path, hermes) as http:
        answers = await _at_once(http, 30)
    assert {answer.text for answer in answers} == {'{"generated_text":"done"}'}
    assert models[0].peak == 3


async def _at_once(http: httpx.AsyncClient, number: int) -> list[httpx.Response]:
    return await asyncio.gather(*(http.post("/generate/", json={"prompt": f"{n}"}) for n in range(number)))
