"""What differs between an answer and the same question's answer from a replay. Pure."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from libs.judgement.assess import decided
from libs.judgement.record import decision_block, read_decision, storable
from libs.judgement.types import Decision
from libs.llm.types import Answer

Flip: TypeAlias = Literal["deny_to_allow", "allow_to_deny"]
Word: TypeAlias = Literal["allow", "deny"]
Json: TypeAlias = dict[str, Any]

MISSING = "(absent)"
"""Stands in a difference for a field that one side does not have: null is a value."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one answer came to.

    `text` is the reply as received, `value` its validated JSON (None where it is not valid; for free text the text),
    `decision` the policy decision in it, `rules_allow` what the rules in code said of the same inputs, None where they
    are not known: a prompt other than the policy, or a call whose forecast cannot be found.
    """

    text: str
    value: Any
    decision: Decision | None = None
    rules_allow: bool | None = None

    @property
    def allow(self) -> bool | None:
        """What decision and rules say together; None where a decision allows and the rules are not known."""
        if self.decision is None or not self.decision.allow:
            return False
        return self.rules_allow

    def document(self) -> Json:
        """As `replays.before` and `replays.after` keep it: `{text, value, decision, rules, allow}`."""
        decision = None if self.decision is None else decision_block(self.decision)
        return storable(
            {
                "text": self.text,
                "value": self.value,
                "decision": decision,
                "rules": self.rules_allow,
                "allow": self.allow,
            }
        )


def outcome_of(answer: Answer | None, *, policy: bool, rules_allow: bool | None = None) -> Outcome:
    """The outcome of an answer; of none, an empty one. Only a `policy` answer holds a decision."""
    if policy:
        answer, decision = decided(answer)
    else:
        decision = None
    if answer is None:
        return Outcome("", None, None, rules_allow)
    return Outcome(answer.text, answer.value, decision, rules_allow)


def outcome_from(document: Mapping[str, Any]) -> Outcome:
    """An outcome as `Outcome.document` wrote it."""
    decision = document["decision"]
    return Outcome(
        text=document["text"],
        value=document["value"],
        decision=None if decision is None else read_decision(decision),
        rules_allow=document["rules"],
    )


def flip(before: Outcome, after: Outcome) -> Flip | None:
    """Which way the decision turned, None where it did not. Without a valid decision nothing is allowed: a deny."""
    was, now = _allowed(before), _allowed(after)
    if was is now:
        return None
    return "deny_to_allow" if now else "allow_to_deny"


def difference(before: Outcome, after: Outcome) -> Json:
    """`{text, json, decision, verdict}`; each is None where both sides are the same.

    `text`: the lines of a unified diff. `json`: `{field: [before, after]}`, fields of fields with a dot between, an
    absent one as "(absent)"; a value that is no object stands under `$`. `decision`: `{before, after, flip}`, before
    and after being `{allow, reasons, flags}` or null. `verdict`: `{before, after}` of decision and rules together,
    "allow", "deny", or null where the rules are not known.
    """
    return {
        "text": _text(before.text, after.text),
        "json": _values(before.value, after.value),
        "decision": _decision(before, after),
        "verdict": _verdict(before, after),
    }


def changed_fields(before: Any, after: Any, path: str = "") -> dict[str, list[Any]]:
    """The fields in which two JSON values differ, by path, in the order they stand; lists are compared as a whole.

    `true` and 1 differ, as they do in JSON; 1 and 1.0 do not, since a database may write one for the other.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = cast("Mapping[str, Any]", before), cast("Mapping[str, Any]", after)
        found: dict[str, list[Any]] = {}
        for name in dict.fromkeys((*old, *new)):
            found |= changed_fields(old.get(name, MISSING), new.get(name, MISSING), f"{path}.{name}" if path else name)
        return found
    return {} if _same(before, after) else {path or "$": [before, after]}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        old, new = cast("list[Any]", before), cast("list[Any]", after)
        return len(old) == len(new) and all(not changed_fields(*pair) for pair in zip(old, new, strict=True))
    return isinstance(before, bool) is isinstance(after, bool) and before == after


def _allowed(outcome: Outcome) -> bool:
    return outcome.decision is not None and outcome.decision.allow


def _text(before: str, after: str) -> list[str] | None:
    if before == after:
        return None
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm=""))
    return lines or [f"-{before!r}", f"+{after!r}"]  # only their line ends differ


def _values(before: Any, after: Any) -> dict[str, list[Any]] | None:
    """None for plain texts too: their difference is that of the text."""
    if all(value is None or isinstance(value, str) for value in (before, after)):
        return None
    return changed_fields(before, after) or None


def _decision(before: Outcome, after: Outcome) -> Json | None:
    if before.decision == after.decision:
        return None
    old, new = (None if side.decision is None else decision_block(side.decision) for side in (before, after))
    return {"before": old, "after": new, "flip": flip(before, after)}


def _verdict(before: Outcome, after: Outcome) -> Json | None:
    old, new = _word(before.allow), _word(after.allow)
    return None if old == new else {"before": old, "after": new}


def _word(allow: bool | None) -> Word | None:
    if allow is None:
        return None
    return "allow" if allow else "deny"
