"""A decision in words: what the model said, what the rules said, and what orders were told."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from libs.trading.reasons import Reason

Word: TypeAlias = Literal["allow", "deny by policy", "deny by rules", "no decision"]

RULES: Final[Mapping[str, str]] = {
    "NO_SIGNAL": "the forecast has no side, so there is nothing to enter",
    "EARNINGS": "earnings are announced within the days that the rules keep clear",
    "DISPERSION": "the factors contradict each other too much",
    "COVERAGE": "the price history has too many holes",
    "LIQUIDITY": "too little of it is traded a day",
    "BORROW": "there are no shares to borrow for a short",
    "MACRO": "the regime speaks against this side",
}
UNKNOWN: Final = "UNKNOWN_"
STATUSES: Final[Mapping[str, str]] = {
    "ok": "The reply is valid.",
    "invalid": "The reply is not valid, so it decides nothing and nothing is allowed.",
    "unavailable": "The model gave no answer, so nothing is allowed.",
    "skipped": "The model was not asked, so nothing is allowed.",
}


def word_of(*, allow: bool | None, rules_allow: bool | None) -> Word:
    """What a decision came to. Without a valid answer of the model there is none, whatever the rules say."""
    if allow is None:
        return "no decision"
    if not rules_allow:
        return "deny by rules"
    return "allow" if allow else "deny by policy"


def rule_words(code: str) -> str:
    """A rule's code with its sentence."""
    if code.startswith(UNKNOWN):
        name = code.removeprefix(UNKNOWN)
        return f"{code}: the rule {name} has no datum to judge by, which denies"
    said = RULES.get(code)
    return code if said is None else f"{code}: {said}"


def reason_words(code: str) -> str:
    """A verdict's reason with its sentence."""
    known = Reason.__members__.get(code)
    return code if known is None else f"{code}: {known.meaning}"


def status_words(block: Mapping[str, Any]) -> str:
    """How a reply was read, with what was wrong with it."""
    if block.get("error") == "pending":
        return "The model has not answered yet, so nothing is allowed."
    said = STATUSES.get(str(block.get("status")), f"Status {block.get('status')}.")
    error = block.get("error")
    return said if not error else f"{said} What was wrong: {error}"


def decision_words(decision: Mapping[str, Any] | None) -> str:
    """A decision as the model gave it; of none, nothing."""
    if decision is None:
        return ""
    said = "The model allows." if decision["allow"] else "The model denies."
    reasons, flags = _listed(decision["reasons"]), _listed(decision["flags"])
    return said + (f" Reasons: {reasons}." if reasons else "") + (f" Flags: {flags}." if flags else "")


def _listed(codes: Sequence[Any]) -> str:
    return ", ".join(str(code) for code in codes)


def outcome_words(row: Mapping[str, Any]) -> str:
    """What came of a forecast."""
    if row["realised_price"] is None:
        return "Not settled yet: the price at the horizon has not come."
    band = "inside" if row["inside"] else "outside"
    return (
        f"At {row['realised_as_of']:%Y-%m-%d %H:%M} UTC the price was {row['realised_price']:.6g}, {band} the band: "
        f"a return of {row['realised_return']:+.2%}."
    )
