"""A judgement through a real `jsonb` column and back."""

import math
from dataclasses import replace
from typing import Any

import orjson
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.judgement.record import features_llm, inputs_from_record, judgement_from_record
from libs.judgement.types import Fact, Judgement, RulesVerdict
from tests.unit.judgement_cases import AS_OF, RULES, answer, good_inputs

ROUND_TRIP = text("select cast(:record as jsonb)")


async def stored(engine: AsyncEngine, record: Any) -> Any:
    """What the database makes of a record."""
    async with engine.connect() as connection:
        value: Any = (await connection.execute(ROUND_TRIP, {"record": orjson.dumps(record).decode()})).scalar_one()
    return orjson.loads(value) if isinstance(value, str) else value


async def test_inputs_survive_the_database_exactly(engine: AsyncEngine) -> None:
    facts = {"earnings_date": Fact("earnings_date", "2013-01-23", AS_OF, "desk"), "x": Fact("x", [1, 2.5], AS_OF, "")}
    inputs = good_inputs(
        facts=facts,
        factors={"a": 0.1 + 0.2, "b": -0.0, "c": 3.0, "d": 5e-324, "e": math.pi},
        liquidity_usd=1.7976931348623157e308,
        coverage_pct=100 * 51 / 60,
        headlines=("☃ “quoted” \\u0000 \\ / \t", "naïve"),
    )
    judgement = Judgement(
        inputs=inputs,
        rationale=answer("rationale", "Up."),
        policy=None,
        decision=None,
        rules=RULES.judge(inputs, "file:x"),
        policy_error="pending",
    )
    record = await stored(engine, features_llm(judgement, True))
    assert inputs_from_record(record) == inputs
    again = judgement_from_record(record)
    assert again.rules == judgement.rules
    assert again.rationale is not None
    assert again.rationale.value == "Up."


@pytest.mark.parametrize("raw", ["\x00", "a\ud800b", "\udc00", "\ufffe\uffff", '{"allow": NaN}'])
async def test_no_reply_can_keep_a_row_from_being_stored(engine: AsyncEngine, raw: str) -> None:
    policy = answer("policy", None, text=raw, status="invalid", error=f"not_json: {raw}")
    inputs = good_inputs(headlines=(raw,), liquidity_usd=math.nan, factors={raw: math.inf})
    judgement = Judgement(
        inputs=inputs, rationale=None, policy=policy, decision=None, rules=RulesVerdict(allow=False, reasons=("X",))
    )
    record = await stored(engine, features_llm(judgement, True))
    assert record["policy"]["raw"].translate({0xFFFD: None}) == "".join(
        char for char in raw if char != "\x00" and not "\ud800" <= char <= "\udfff"
    )
    assert inputs_from_record(record) == replace(inputs, headlines=(record["inputs"]["headlines"][0],), **cleaned())


def cleaned() -> dict[str, Any]:
    """What numbers that are no numbers become."""
    return {"liquidity_usd": None, "factors": {}}
