"""What a page says of a replay: first the decision before and now, then what differs."""

from typing import Any

import pytest

from services.analytics.console.pages.decision.replaying import summary

ALLOW: dict[str, Any] = {"allow": True, "reasons": [], "flags": []}
DENY: dict[str, Any] = {"allow": False, "reasons": ["COVERAGE"], "flags": []}
REORDERED = ['-{"allow": true, "reasons": []}', '+{"reasons": [], "allow": true}']


def answered(value: Any, **diff: Any) -> dict[str, Any]:
    nothing = {"text": None, "json": None, "decision": None, "verdict": None}
    answer = {"cached": False, "success": True, "error": None, "prompt_version": "1.0.0"}
    return {**answer, "json": value, "diff": {**nothing, **diff}}


def turned(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    return {"before": before, "after": after, "flip": None}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answered(ALLOW), "Nothing differs from the original."),
        (answered(ALLOW, text=REORDERED), "Allow before, allow now: the same decision in other words."),
        (answered(DENY, text=REORDERED), "Deny before, deny now: the same decision in other words."),
        (answered(ALLOW, decision=turned(DENY, ALLOW)), "Deny before, allow now: the decision turned."),
        (answered(DENY, decision=turned(None, DENY)), "No decision before, deny now: the decision turned."),
        (
            answered(DENY, decision=turned({**DENY, "reasons": ["MACRO"]}, DENY)),
            "Deny before, deny now: the same, for other reasons or with other flags.",
        ),
        (answered(None, text=["-A.", "+B."]), "It differs as shown below."),
        (answered({"allow": "yes"}, text=["-A.", "+B."]), "It differs as shown below."),
    ],
)
def test_it_says_the_decision_before_and_now(answer: dict[str, Any], words: str) -> None:
    assert summary(answer) == f"The model was called; version 1.0.0. {words}"


def test_without_a_sound_answer_there_is_nothing_to_compare() -> None:
    failed = {**answered(None), "success": False, "error": "it broke"}
    assert summary(failed) == "The model was called; version 1.0.0. There is no sound answer: it broke"
