"""`features.llm`: the shape that the contract fixes, and reading back without loss."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.judgement.record import (
    SKIPPED,
    RecordError,
    features_llm,
    inputs_from_record,
    judgement_from_record,
    pending,
)
from libs.judgement.types import Decision, Inputs, Judgement, RulesVerdict
from tests.unit.judgement_cases import CALL_ID, RULES, answer, any_inputs, finite, good_inputs, json_values

ALLOW = {"allow": True, "reasons": [], "flags": ["WIDE_RANGE"]}
STRICT = "file:prices.csv"
GOOD = Judgement(
    inputs=good_inputs(),
    rationale=answer("rationale", {"text": "Up to 250."}, text='{"text": "Up to 250."}'),
    policy=answer("policy", ALLOW, text=json.dumps(ALLOW), cached=True),
    decision=Decision(allow=True, reasons=(), flags=("WIDE_RANGE",)),
    rules=RulesVerdict(allow=True),
    ungrounded_numbers=("250",),
)
storable_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


def through_the_database(record: Any) -> Any:
    """What a JSON column gives back: strict JSON, whole floats possibly without their fraction."""
    text = json.dumps(record, allow_nan=False)
    assert all("\x00" not in one and one.encode() == one.encode("utf-8", "replace") for one in texts_in(record))

    def numeric(written: str) -> float | int:
        return int(float(written)) if float(written).is_integer() else float(written)

    return json.loads(text, parse_float=numeric)


def texts_in(value: Any) -> Iterator[str]:
    """Every text of a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        yield from entries
        for entry in entries.values():
            yield from texts_in(entry)
    elif isinstance(value, list):
        for entry in cast("list[Any]", value):
            yield from texts_in(entry)


def test_the_record_of_a_judgement() -> None:
    call = {
        "call_id": str(CALL_ID),
        "model": "Lexi",
        "prompt_version": "1.0.0",
        "prompt_hash": "abc",
        "arm": "1.0.0",
        "error": None,
    }
    assert features_llm(GOOD, True) == {
        "v": 1,
        "rationale": {
            "text": "Up to 250.",
            "status": "ok",
            "cached": False,
            "prompt_key": "rationale",
            **call,
            "ungrounded_numbers": ["250"],
        },
        "policy": {
            "raw": json.dumps(ALLOW),
            "decision": ALLOW,
            "status": "ok",
            "cached": True,
            "prompt_key": "policy",
            **call,
            "shadow_mode": True,
            "shadow_allow": True,
            "rules": {"allow": True, "reasons": []},
        },
        "inputs": {
            "ticker": "AAPL",
            "horizon": "1d",
            "as_of": "2012-11-20T21:00:00+00:00",
            "signal": {
                "side": "buy",
                "last_price": 100.0,
                "mean": 101.0,
                "lower": 98.0,
                "upper": 104.0,
                "expected_return": 0.01,
            },
            "factors": {"momentum_20": 0.5, "momentum_60": 0.25, "reversal_5": -0.5, "trend_50": 0.75},
            "headlines": ["AAPL closed at 100 on 2012-11-20, up 1.0%"],
            "liquidity_usd": 5e8,
            "coverage_pct": 100.0,
            "earnings_in_days": 40,
            "facts": {
                "earnings_date": {"value": "2013-01-23", "as_of": "2012-11-19T21:00:00+00:00", "source": "desk"},
                "borrow": {"value": "available", "as_of": "2012-11-19T21:00:00+00:00", "source": "desk"},
                "macro_regime": {"value": "neutral", "as_of": "2012-11-19T21:00:00+00:00", "source": "desk"},
            },
        },
    }


CONTRACT_CALL = {"cached", "call_id", "model", "prompt_key", "prompt_version", "prompt_hash", "arm", "error", "status"}


@pytest.mark.parametrize("judgement", [GOOD, replace(GOOD, rationale=None, policy=None, decision=None)])
def test_the_names_are_those_of_the_contract(judgement: Judgement) -> None:
    record = features_llm(judgement, False)
    assert set(record) == {"v", "rationale", "policy", "inputs"}
    assert set(record["rationale"]) == CONTRACT_CALL | {"text", "ungrounded_numbers"}
    assert set(record["policy"]) == CONTRACT_CALL | {"raw", "decision", "shadow_mode", "shadow_allow", "rules"}
    assert record["policy"]["shadow_mode"] is False


@pytest.mark.parametrize(
    ("decision", "rules", "shadow_allow"),
    [
        (Decision(True, (), ()), RulesVerdict(True), True),
        (Decision(True, (), ()), RulesVerdict(False, ("COVERAGE",)), False),
        (Decision(False, ("EARNINGS",), ()), RulesVerdict(True), False),
        (None, RulesVerdict(True), False),
    ],
)
def test_shadow_allow_needs_both(decision: Decision | None, rules: RulesVerdict, shadow_allow: bool) -> None:
    for shadow_mode in (True, False):
        record = features_llm(replace(GOOD, decision=decision, rules=rules), shadow_mode)
        assert record["policy"]["shadow_allow"] is shadow_allow
        assert record["policy"]["shadow_mode"] is shadow_mode
        assert record["policy"]["rules"] == {"allow": rules.allow, "reasons": list(rules.reasons)}


def test_an_invalid_answer_keeps_its_raw_text_and_decides_nothing() -> None:
    invalid = answer("policy", None, text='{"allow": "false"}', status="invalid", error="schema: no boolean")
    record = features_llm(replace(GOOD, policy=invalid, decision=None), True)["policy"]
    assert record["raw"] == '{"allow": "false"}'
    assert record["decision"] is None
    assert (record["status"], record["error"]) == ("invalid", "schema: no boolean")


def test_a_row_that_waits_says_so() -> None:
    record = pending(good_inputs(), rules=RULES.judge(good_inputs(), STRICT), shadow_mode=True)
    for part in ("rationale", "policy"):
        assert (record[part]["status"], record[part]["error"]) == (SKIPPED, "pending")
        assert record[part]["call_id"] is None
    assert record["policy"]["raw"] == ""
    assert record["policy"]["decision"] is None
    assert record["policy"]["shadow_allow"] is False
    assert record["policy"]["rules"]["allow"] is True
    waiting = judgement_from_record(record)
    assert (waiting.rationale, waiting.policy, waiting.policy_error) == (None, None, "pending")


@given(any_inputs(numbers=finite, texts=storable_texts))
def test_inputs_come_back_as_they_were(inputs: Inputs) -> None:
    inputs = replace(inputs, facts={name: replace(fact, value=str(fact.as_of)) for name, fact in inputs.facts.items()})
    record = through_the_database(features_llm(replace(GOOD, inputs=inputs), True))
    assert inputs_from_record(record) == inputs
    assert RULES.judge(inputs_from_record(record), STRICT) == RULES.judge(inputs, STRICT)


@given(any_inputs(), st.text(), json_values)
def test_any_judgement_becomes_strict_json(inputs: Inputs, text: str, value: Any) -> None:
    """Whatever a model or an ingested text holds (NUL, lone surrogates, NaN), the row can be stored and read."""
    policy = answer("policy", value, text=text)
    decision = Decision(False, (text,), (text,))
    judgement = replace(GOOD, inputs=inputs, policy=policy, decision=decision, ungrounded_numbers=(text,))
    record = through_the_database(features_llm(judgement, True))
    assert set(record["inputs"]["facts"]) == set(inputs.facts)
    if "\x00" not in text and text.isprintable():
        assert record["policy"]["raw"] == text


@pytest.mark.parametrize("status", ["ok", "invalid", "unavailable"])
def test_a_judgement_comes_back_for_judging_again(status: Any) -> None:
    decision = GOOD.decision if status == "ok" else None
    policy = answer("policy", ALLOW if status == "ok" else None, status=status, error=None if status == "ok" else "why")
    judgement = replace(GOOD, policy=policy, decision=decision)
    record = features_llm(judgement, True)
    again = judgement_from_record(through_the_database(record))
    assert again.inputs == judgement.inputs
    assert again.decision == judgement.decision
    assert again.rules == judgement.rules
    assert features_llm(again, True) == record


def broken(**changes: Any) -> dict[str, Any]:
    """The good record with its inputs changed."""
    record = features_llm(GOOD, True)
    return {**record, "inputs": {**record["inputs"], **changes}}


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({}, "v:"),
        ({"v": 2}, "version 2"),
        ({"v": 1}, "inputs is missing"),
        ({"v": 1, "inputs": {}}, "signal is missing"),
        ({"v": 1, "inputs": None}, "inputs"),
        (broken(as_of="2012-11-20"), "time zone"),
        (broken(as_of=5), "inputs"),
        (broken(signal={"side": "hold"}), "hold"),
        (broken(factors=[]), "inputs"),
        (broken(liquidity_usd="much"), "inputs"),
        (broken(facts={"borrow": {"value": 1}}), "as_of is missing"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(record: dict[str, Any], named: str) -> None:
    for read in (inputs_from_record, judgement_from_record):
        with pytest.raises(RecordError, match=named):
            read(record)


@pytest.mark.parametrize(("part", "name", "value"), [("policy", "status", "fine"), ("policy", "call_id", "x")])
def test_a_broken_answer_is_refused(part: str, name: str, value: Any) -> None:
    record = features_llm(GOOD, True)
    with pytest.raises(RecordError):
        judgement_from_record({**record, part: {**record[part], name: value}})
    with pytest.raises(RecordError, match=f"{name} is missing"):
        judgement_from_record({**record, part: {key: kept for key, kept in record[part].items() if key != name}})
