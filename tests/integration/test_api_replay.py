"""`POST /llm/admin/replay` on a real database, with the engine's requests seen at the wire."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.judgement.assess import reassess
from libs.judgement.inputs import prompt_inputs
from libs.judgement.record import features_llm
from tests.fakes.engine import FakeEngine, Fault
from tests.integration.api_app import Stack, running
from tests.integration.replay_cases import (
    ALLOW,
    DENY,
    FEED,
    call_of,
    change,
    judged,
    kept,
    replay,
    replayed,
    replies,
    rows,
    store_forecast,
)
from tests.unit.judgement_cases import RULES, good_inputs

SAME = {"text": None, "json": None, "decision": None, "verdict": None}
SETTING_ASIDE = {"priority"}
"""What may differ between a call and its replay: where it stands in the engine's queue."""
UNTOUCHED = ("forecasts", "forecast_heads", "exposures", "llm_cache", "outcomes", "activations", "feeds")


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


async def contents(engine: AsyncEngine) -> dict[str, str]:
    """Every row of the tables that no replay may touch, as text."""
    found: dict[str, str] = {}
    for table in UNTOUCHED:
        (row,) = await rows(
            engine, f"select coalesce(string_agg(t::text, '|' order by t::text), '') as held from {table} t"
        )
        found[table] = row["held"]
    return found


def sent(body: dict[str, Any]) -> bytes:
    """What was asked of the engine, as bytes."""
    return json.dumps({name: value for name, value in body.items() if name not in SETTING_ASIDE}).encode()


async def test_without_force_the_recorded_answer_comes_and_nothing_is_asked(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, forecast_id = await judged(stack, engine)
    asked = len(fake.requests)
    answer = await replayed(stack, call_of(judgement))
    assert set(answer) == {
        *("id", "replay_of", "text", "json", "cached", "success", "error"),
        *("prompt_key", "prompt_version", "prompt_hash", "diff"),
    }
    assert (answer["text"], answer["json"]) == (DENY, json.loads(DENY))
    assert (answer["cached"], answer["success"], answer["error"]) == (True, True, None)
    assert answer["replay_of"] == str(call_of(judgement))
    assert answer["diff"] == SAME
    assert len(fake.requests) == asked
    (row,) = await rows(engine, "select * from replays")
    assert (str(row["id"]), row["source"], row["new_call_id"]) == (answer["id"], "recorded", None)
    assert (row["forecast_id"], row["ticker"], row["flip"]) == (forecast_id, "AAPL", None)
    assert (row["before"], row["asked_by"]) == (row["after"], "operator")


async def test_force_sends_the_same_messages_sampling_and_seed(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    client = stack.app.state.api.client
    words = {"system": "Be terse.\n", "user": "Naïve “☃”? \\u0041 \t{{ x }}"}
    sampling = {"temperature": 0.7, "top_p": 0.31, "max_tokens": 17, "seed": 4711}
    first = await client.ask("manual", words, sampling=sampling)
    await kept(stack, first.call_id)
    fake.reply = "Another answer."
    answer = await replayed(stack, first.call_id, force=True)
    before, after = fake.requests
    assert sent(before) == sent(after)
    assert {name: after[name] for name in sampling} == sampling
    assert answer["text"] == "Another answer."
    assert (answer["cached"], answer["success"], answer["json"]) == (False, True, None)
    assert answer["diff"]["text"] == ["--- before", "+++ after", "@@ -1 +1 @@", "-Up 1.0%.", "+Another answer."]
    (row,) = await rows(engine, "select * from replays")
    call = await kept(stack, str(row["new_call_id"]))
    assert (call["replay_of"], call["arm"], call["service"]) == (str(first.call_id), "", "api")


async def test_force_asks_even_what_the_reply_cache_holds(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    judgement, _ = await judged(stack, engine)
    policy = next(body for body in fake.requests if "structured_outputs" in body)
    asked = len(fake.requests)
    fake.reply = replies(ALLOW)
    answer = await replayed(stack, call_of(judgement), force=True)
    assert len(fake.requests) == asked + 1
    assert sent(fake.requests[-1]) == sent(policy)
    assert answer["diff"]["json"] == {"allow": [False, True], "reasons": [["COVERAGE"], []]}
    assert answer["diff"]["decision"] == {
        "before": json.loads(DENY),
        "after": json.loads(ALLOW),
        "flip": "deny_to_allow",
    }
    assert answer["diff"]["verdict"] == {"before": "deny", "after": "allow"}
    (row,) = await rows(engine, "select flip, after from replays")
    assert (row["flip"], row["after"]["rules"], row["after"]["allow"]) == ("deny_to_allow", True, True)


async def test_another_version_renders_the_stored_inputs(stack: Stack, engine: AsyncEngine, fake: FakeEngine) -> None:
    inputs = good_inputs(factors={"zeta": 1.5, "b": -2.25, "alpha_long_name": 1.0, "m": 2.0})
    judgement, _ = await judged(stack, engine, inputs)
    registry = stack.app.state.api.prompts.now.registry
    assert judgement.rationale is not None
    for key, call_id in (("policy", call_of(judgement)), ("rationale", judgement.rationale.call_id)):
        prompt = registry.version(key, "1.1.0")
        rendered = registry.render(prompt, prompt_inputs(inputs, RULES, feed=FEED))
        answer = await replayed(stack, call_id, version="1.1.0")
        assert [(one["role"], one["content"]) for one in fake.requests[-1]["messages"]] == [
            (one.role, one.content) for one in rendered.messages
        ]
        assert (answer["prompt_version"], answer["prompt_hash"]) == ("1.1.0", prompt.sha256)
        assert answer["cached"] is False


async def test_an_earlier_replay_of_the_pair_answers_unless_forced(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    asked = len(fake.requests)
    first = await replayed(stack, call_of(judgement), version="1.1.0")
    again = await replayed(stack, call_of(judgement), version="1.1.0")
    assert len(fake.requests) == asked + 1
    assert again == {**first, "cached": True}
    fake.reply = replies(ALLOW)
    forced = await replayed(stack, call_of(judgement), version="1.1.0", force=True)
    assert len(fake.requests) == asked + 2
    assert (forced["id"] != first["id"], forced["text"], forced["cached"]) == (True, ALLOW, False)
    assert await replayed(stack, call_of(judgement), version="1.1.0") == {**forced, "cached": True}
    assert len(fake.requests) == asked + 2


async def test_the_version_it_was_made_with_is_no_other_version(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    asked = len(fake.requests)
    assert (await replayed(stack, call_of(judgement), version="1.0.0"))["cached"] is True
    assert len(fake.requests) == asked


async def test_forecasts_exposures_and_the_cache_stay_as_they_are(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, forecast_id = await judged(stack, engine)
    await change(
        engine,
        "insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side) "
        "values ('policy', :id, 'file-0', 'AAPL', '1.0.0', :feed, 'AAPL', '1d', now(), 'buy')",
        id=forecast_id,
        feed=FEED,
    )
    before = await contents(engine)
    assert before["llm_cache"]
    assert before["exposures"]
    fake.reply = replies(ALLOW)
    for asked in ({}, {"force": True}, {"version": "1.1.0"}, {"version": "1.1.0"}, {"version": "1.1.0", "force": True}):
        assert (await replay(stack, call_of(judgement), **asked)).status_code == 200
    made = await rows(engine, "select new_call_id from replays where new_call_id is not null")
    for row in made:
        await kept(stack, str(row["new_call_id"]))
    assert len(made) == 3
    assert await contents(engine) == before


async def test_two_who_ask_for_the_same_pair_at_once_ask_the_model_once(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    asked = len(fake.requests)
    fake.delay_s = 0.3
    same = [replayed(stack, call_of(judgement), version="1.1.0") for _ in range(5)]
    answers = await asyncio.gather(*same)
    assert len(fake.requests) == asked + 1
    assert len({answer["id"] for answer in answers}) == 1
    assert sorted(answer["cached"] for answer in answers) == [False, True, True, True, True]
    forced = await asyncio.gather(*(replayed(stack, call_of(judgement), force=True) for _ in range(3)))
    assert len(fake.requests) == asked + 4
    assert len({answer["id"] for answer in forced}) == 3


async def test_a_model_that_is_away_is_told_and_no_earlier_answer(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    fake.fault = Fault.CUT
    away = await replayed(stack, call_of(judgement), version="1.1.0")
    assert (away["success"], away["text"], away["json"], away["cached"]) == (False, "", None, False)
    assert "broken_stream" in away["error"]
    assert away["diff"]["decision"] == {"before": json.loads(DENY), "after": None, "flip": None}
    fake.fault = Fault.NONE
    back = await replayed(stack, call_of(judgement), version="1.1.0")
    assert (back["success"], back["id"] != away["id"], back["cached"]) == (True, True, False)


async def test_an_invalid_answer_is_repaired_as_any_other_and_shown_as_it_came(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, _ = await judged(stack, engine)
    asked = len(fake.requests)
    fake.reply = "No idea."
    answer = await replayed(stack, call_of(judgement), force=True)
    assert len(fake.requests) == asked + 2
    assert (answer["success"], answer["text"], answer["json"]) == (False, "No idea.", None)
    assert answer["error"].startswith("not_json")


async def test_a_call_of_an_earlier_judgement_still_finds_its_forecast(
    stack: Stack, engine: AsyncEngine, fake: FakeEngine
) -> None:
    judgement, forecast_id = await judged(stack, engine)
    client = stack.app.state.api.client
    again = await reassess(judgement, client=client, rules=RULES, feed=FEED)
    assert call_of(again) != call_of(judgement)
    await change(
        engine,
        "update forecasts set features = jsonb_set(features, '{llm}', cast(:llm as jsonb)) where id = :id",
        llm=json.dumps(features_llm(again, True)),
        id=forecast_id,
    )
    other = replace(good_inputs(), as_of=good_inputs().as_of + timedelta(minutes=1), factors={"x": 1.0})
    await store_forecast(engine, replace(again, inputs=other), feed="replay:2")
    await replayed(stack, call_of(judgement))
    (row,) = await rows(engine, "select forecast_id, before from replays")
    assert (row["forecast_id"], row["before"]["rules"]) == (forecast_id, True)
