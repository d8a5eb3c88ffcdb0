"""Why the gate said what it said: one enumeration of stable codes, from which the documentation's table is made.

A reason is of one kind. POLICY reasons are opinions about the decision: they deny in enforce, are only noted in shadow,
and the kill switch waives them. HARD reasons deny in every mode. NOTE reasons deny nothing.
"""

from enum import Enum, StrEnum


class Kind(Enum):
    """What a reason does."""

    POLICY = "policy"
    HARD = "hard"
    NOTE = "note"


class Reason(StrEnum):
    """A stable code; `kind` says when it denies, `meaning` is the sentence of the documentation."""

    kind: Kind
    meaning: str

    def __new__(cls, code: str, kind: Kind, meaning: str) -> "Reason":
        made = str.__new__(cls, code)
        made._value_ = code
        made.kind = kind
        made.meaning = meaning
        return made

    ALLOW = "ALLOW", Kind.NOTE, "Nothing speaks against the order."
    KILL_SWITCH = "KILL_SWITCH", Kind.NOTE, "ORDER_GATE_DISABLED is on: the policy counted as allow."

    NO_DECISION = "NO_DECISION", Kind.POLICY, "There is no judged forecast for this ticker and horizon."
    STALE_DECISION = (
        "STALE_DECISION",
        Kind.POLICY,
        "The decision was last judged too long ago, or the next bar of its live feed is overdue.",
    )
    INVALID_DECISION = (
        "INVALID_DECISION",
        Kind.POLICY,
        "The model's answer did not validate, or contradicts itself: it allows and names reasons against.",
    )
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE", Kind.POLICY, "The model gave no answer on this forecast."
    MODEL_FALLBACK = "MODEL_FALLBACK", Kind.POLICY, "Another model than LLM_MODEL answered; that never authorises."
    MISMATCH = "MISMATCH", Kind.POLICY, "Ticker, horizon or side differs from the stored signal."
    DECISION_USED = "DECISION_USED", Kind.POLICY, "The forecast authorised another entry already."
    POLICY_DENY = "POLICY_DENY", Kind.POLICY, "The model denied."
    RULE_DENY = "RULE_DENY", Kind.POLICY, "A rule in code denied; the decision's copy names it."
    UNKNOWN_EARNINGS = "UNKNOWN_EARNINGS", Kind.POLICY, "The rule EARNINGS has no datum to judge by."
    UNKNOWN_DISPERSION = "UNKNOWN_DISPERSION", Kind.POLICY, "The rule DISPERSION has no datum to judge by."
    UNKNOWN_COVERAGE = "UNKNOWN_COVERAGE", Kind.POLICY, "The rule COVERAGE has no datum to judge by."
    UNKNOWN_LIQUIDITY = "UNKNOWN_LIQUIDITY", Kind.POLICY, "The rule LIQUIDITY has no datum to judge by."
    UNKNOWN_BORROW = "UNKNOWN_BORROW", Kind.POLICY, "The rule BORROW has no datum to judge by."
    UNKNOWN_MACRO = "UNKNOWN_MACRO", Kind.POLICY, "The rule MACRO has no datum to judge by."

    HALTED = "HALTED", Kind.HARD, "The halt stands: nothing is entered until a person re-arms."
    RECONCILING = (
        "RECONCILING",
        Kind.HARD,
        "The broker's account has not been read lately, so the limits have no ground.",
    )
    RESTRICTED = "RESTRICTED", Kind.HARD, "RESTRICTED_TICKERS names this ticker."
    LIMIT_QTY = "LIMIT_QTY", Kind.HARD, "The quantity exceeds MAX_ORDER_QTY."
    LIMIT_NOTIONAL = (
        "LIMIT_NOTIONAL",
        Kind.HARD,
        "Quantity times the larger of ref_price and our last price exceeds MAX_ORDER_NOTIONAL.",
    )
    LIMIT_RATE = "LIMIT_RATE", Kind.HARD, "MAX_ORDERS_PER_MIN entries were authorised in the last minute."
    LIMIT_POSITION = "LIMIT_POSITION", Kind.HARD, "The ticker's position could exceed MAX_POSITION_NOTIONAL."
    LIMIT_GROSS = "LIMIT_GROSS", Kind.HARD, "All positions together could exceed MAX_GROSS_NOTIONAL."
    LIMIT_DAILY_LOSS = "LIMIT_DAILY_LOSS", Kind.HARD, "The account lost MAX_DAILY_LOSS or more today."
    STALE_PRICE = "STALE_PRICE", Kind.HARD, "We have no price of this ticker younger than MAX_PRICE_AGE_S."
    PRICE_COLLAR = "PRICE_COLLAR", Kind.HARD, "ref_price is more than PRICE_COLLAR_PCT away from our last price."
    DUPLICATE = "DUPLICATE", Kind.HARD, "This client_order_id was used for another order."
    NOT_REDUCING = "NOT_REDUCING", Kind.HARD, "reduce_only was claimed, and the order would open, enlarge or flip."
    GATE_TIMEOUT = "GATE_TIMEOUT", Kind.HARD, "The verdict was not made and stored in time."
    GATE_ERROR = "GATE_ERROR", Kind.HARD, "The verdict could not be made or stored."


UNKNOWN_PREFIX = "UNKNOWN_"


def of_rule(code: str) -> Reason:
    """The reason for a rule's code: `UNKNOWN_BORROW` is itself, a plain denial such as `COVERAGE` is RULE_DENY."""
    known = Reason.__members__.get(code) if code.startswith(UNKNOWN_PREFIX) else None
    return known or Reason.RULE_DENY
