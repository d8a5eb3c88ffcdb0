"""A judged forecast in a real database, with the calls behind it, for the tests of replays."""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.judgement.assess import assess
from libs.judgement.record import features_llm
from libs.judgement.types import Inputs, Judgement
from libs.llm.call_record import time_of
from tests.fakes.engine import Reply
from tests.fakes.engine_replies import ReplySource
from tests.integration.api_app import Stack, until
from tests.unit.judgement_cases import RULES, good_inputs

FEED = "replay:1"
DENY = json.dumps({"allow": False, "reasons": ["COVERAGE"], "flags": []})
ALLOW = json.dumps({"allow": True, "reasons": [], "flags": []})

STORE = text(
    """
    insert into forecasts
      (feed, ticker, horizon, model, as_of, id, last_price, mean, lower, upper, features, ts, judged_at)
    values (:feed, :ticker, '1d', 'theta', :as_of, :id, 100, 101, 98, 104, cast(:features as jsonb), :ts, now())
    """
)


def replies(decision: str) -> ReplySource:
    """A decision where the request is constrained to one, prose elsewhere."""

    def reply(body: dict[str, Any]) -> str | Reply:
        return decision if '"allow"' in json.dumps(body.get("structured_outputs", {})) else "Up 1.0%."

    return reply


async def rows(engine: AsyncEngine, statement: str, **values: Any) -> Sequence[RowMapping]:
    """What a query finds."""
    async with engine.connect() as connection:
        return (await connection.execute(text(statement), values)).mappings().all()


async def change(engine: AsyncEngine, statement: str, **values: Any) -> None:
    """Change what is stored."""
    async with engine.begin() as connection:
        await connection.execute(text(statement), values)


async def kept(stack: Stack, call_id: UUID | str) -> dict[str, Any]:
    """The call once the recorder wrote it."""
    answer = await until(lambda: stack.http.get(f"/llm/admin/call/{call_id}"), lambda answer: answer.status_code == 200)
    return answer.json()


async def store_forecast(engine: AsyncEngine, judgement: Judgement, *, feed: str = FEED) -> UUID:
    """The forecast of a judgement, as the loop leaves it: written just before its policy was asked."""
    forecast_id, inputs = uuid4(), judgement.inputs
    written = time_of(call_of(judgement)) - timedelta(milliseconds=10)
    features = json.dumps({"llm": features_llm(judgement, True)})
    row = {
        "feed": feed,
        "ticker": inputs.ticker,
        "as_of": inputs.as_of,
        "id": forecast_id,
        "features": features,
        "ts": written,
    }
    await change(engine, "insert into feeds (feed, source) values (:feed, 'replay') on conflict do nothing", feed=feed)
    await change(engine, "select ensure_partition('forecasts', 'month', :at)", at=inputs.as_of)
    async with engine.begin() as connection:
        await connection.execute(STORE, row)
    return forecast_id


async def judged(stack: Stack, engine: AsyncEngine, inputs: Inputs | None = None) -> tuple[Judgement, UUID]:
    """A forecast judged by the model behind the stack, stored, with its calls kept."""
    client = stack.app.state.api.client
    judgement = await assess(inputs or good_inputs(), client=client, rules=RULES, feed=FEED)
    forecast_id = await store_forecast(engine, judgement)
    for answer in (judgement.policy, judgement.rationale):
        assert answer is not None
        await kept(stack, answer.call_id)
    return judgement, forecast_id


def call_of(judgement: Judgement) -> UUID:
    """The policy's call."""
    assert judgement.policy is not None
    return judgement.policy.call_id


async def replay(stack: Stack, call_id: UUID | str, **asked: Any) -> httpx.Response:
    """What the route answers."""
    return await stack.http.post("/llm/admin/replay", json={"id": str(call_id), **asked})


async def replayed(stack: Stack, call_id: UUID | str, **asked: Any) -> dict[str, Any]:
    """What the route answers where it is well."""
    answer = await replay(stack, call_id, **asked)
    assert answer.status_code == 200, answer.text
    return answer.json()
