"""What a replay says differs."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.judgement.types import Decision
from libs.llm.call_record import storable_text
from libs.replay.difference import (
    MISSING,
    Outcome,
    changed_fields,
    difference,
    flip,
    outcome_from,
    outcome_of,
)
from tests.unit.judgement_cases import answer, any_text, json_values

ALLOW = Decision(allow=True, reasons=(), flags=())
DENY = Decision(allow=False, reasons=("COVERAGE",), flags=())
NOTHING = {"text": None, "json": None, "decision": None, "verdict": None}

decisions = st.none() | st.builds(
    Decision, allow=st.booleans(), reasons=st.lists(any_text).map(tuple), flags=st.lists(any_text).map(tuple)
)
outcomes = st.builds(
    Outcome, text=any_text, value=json_values, decision=decisions, rules_allow=st.none() | st.booleans()
)


def outcome(
    decision: Decision | None = None, *, rules: bool | None = True, text: str = "", value: Any = None
) -> Outcome:
    return Outcome(text, value, decision, rules)


@given(outcomes)
def test_nothing_differs_from_itself(one: Outcome) -> None:
    assert difference(one, one) == NOTHING
    assert flip(one, one) is None


@given(outcomes, outcomes)
def test_a_flip_turns_round_when_the_sides_do(one: Outcome, other: Outcome) -> None:
    back = {"deny_to_allow": "allow_to_deny", "allow_to_deny": "deny_to_allow", None: None}
    assert flip(other, one) == back[flip(one, other)]


@given(outcomes, outcomes)
def test_every_difference_can_be_sent_and_stored(one: Outcome, other: Outcome) -> None:
    found = difference(one, other)
    json.dumps(found, allow_nan=False)
    assert (found["text"] is None) == (one.text == other.text)
    assert (found["decision"] is None) == (one.decision == other.decision)
    assert all(found[name] is None or found[name] for name in NOTHING)


@given(outcomes)
def test_an_outcome_survives_being_stored(one: Outcome) -> None:
    text = json.dumps(one.document(), allow_nan=False)
    again = outcome_from(json.loads(text))
    assert again.document() == one.document()
    assert again.text == storable_text(one.text)
    assert (again.allow, again.rules_allow) == (one.allow, one.rules_allow)


@pytest.mark.parametrize(
    ("before", "after", "turned"),
    [
        (DENY, ALLOW, "deny_to_allow"),
        (None, ALLOW, "deny_to_allow"),
        (ALLOW, DENY, "allow_to_deny"),
        (ALLOW, None, "allow_to_deny"),
        (None, DENY, None),
        (DENY, None, None),
        (ALLOW, Decision(allow=True, reasons=(), flags=("WIDE_RANGE",)), None),
    ],
)
def test_no_valid_decision_is_a_deny(before: Decision | None, after: Decision | None, turned: str | None) -> None:
    assert flip(outcome(before), outcome(after)) == turned


@pytest.mark.parametrize(
    ("decision", "rules", "allow"),
    [
        (ALLOW, True, True),
        (ALLOW, False, False),
        (ALLOW, None, None),
        (DENY, True, False),
        (DENY, None, False),
        (None, True, False),
    ],
)
def test_only_decision_and_rules_together_allow(
    decision: Decision | None, rules: bool | None, allow: bool | None
) -> None:
    assert outcome(decision, rules=rules).allow is allow


def test_a_decision_that_turns_and_rules_that_do_not() -> None:
    found = difference(outcome(DENY, rules=False), outcome(ALLOW, rules=False))
    assert found["decision"] == {
        "before": {"allow": False, "reasons": ["COVERAGE"], "flags": []},
        "after": {"allow": True, "reasons": [], "flags": []},
        "flip": "deny_to_allow",
    }
    assert found["verdict"] is None
    assert difference(outcome(ALLOW, rules=True), outcome(ALLOW, rules=False))["verdict"] == {
        "before": "allow",
        "after": "deny",
    }
    assert difference(outcome(ALLOW, rules=None), outcome(DENY, rules=None))["verdict"] == {
        "before": None,
        "after": "deny",
    }


@pytest.mark.parametrize(
    ("before", "after", "fields"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, {}),
        ({"a": 1}, {"a": True}, {"a": [1, True]}),
        ({"a": 1}, {"a": 1.0}, {}),
        ({"a": [1, {"b": True}]}, {"a": [1, {"b": 1}]}, {"a": [[1, {"b": True}], [1, {"b": 1}]]}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a.c": [2, 3]}),
        ({"a": None}, {}, {"a": [None, MISSING]}),
        ({}, {"a": None}, {"a": [MISSING, None]}),
        (None, {"a": 1}, {"$": [None, {"a": 1}]}),
        ([1], [1, 2], {"$": [[1], [1, 2]]}),
    ],
)
def test_values_differ_field_by_field(before: Any, after: Any, fields: dict[str, list[Any]]) -> None:
    assert changed_fields(before, after) == fields


@given(json_values, json_values)
def test_values_without_a_changed_field_are_equal(one: Any, other: Any) -> None:
    assert changed_fields(one, one) == {}
    if changed_fields(one, other) == {}:
        assert one == other


def test_texts_differ_line_by_line_and_not_twice() -> None:
    found = difference(outcome(text="a\nb\nc", value="a\nb\nc"), outcome(text="a\nB\nc", value="a\nB\nc"))
    assert found["text"] == ["--- before", "+++ after", "@@ -1,3 +1,3 @@", " a", "-b", "+B", " c"]
    assert found["json"] is None
    assert difference(outcome(text="a"), outcome(text="a\n"))["text"] == ["-'a'", "+'a\\n'"]


def test_only_a_policys_answer_holds_a_decision() -> None:
    value: dict[str, Any] = {"allow": True, "reasons": [], "flags": []}
    assert outcome_of(answer("policy", value), policy=True, rules_allow=True).allow is True
    assert outcome_of(answer("rationale", value), policy=False).decision is None
    assert outcome_of(answer("policy", {"allow": "true"}), policy=True) == Outcome("reply", None, None, None)
    assert outcome_of(None, policy=True, rules_allow=False) == Outcome("", None, None, False)
