"""The gate's reasons against a second telling of the same rules: each code a sentence, in exact fractions.

Where both agree over the whole space of sensible numbers, neither rounding nor the order of checks hides a reason.
"""

import math
from collections.abc import Callable
from fractions import Fraction

from hypothesis import given

from libs.trading.types import Holding, LastPrice
from tests.unit.gate_cases import Case, cases

DATUM_RULES = {"EARNINGS", "DISPERSION", "COVERAGE", "LIQUIDITY", "BORROW", "MACRO"}


def fresh(age: float, most: float) -> bool:
    """Whether an age is one, and not above the most; what is not a number is no age."""
    return not math.isnan(age) and 0 <= age <= most


def price_of(case: Case) -> Fraction:
    """What a piece is valued at."""
    ours = [Fraction(case.situation.price.price)] if case.situation.price else []
    return max([Fraction(case.order.ref_price), *ours])


def exposure(case: Case) -> dict[str, Fraction]:
    """The most money in each ticker once all that is open, and this order, filled in the worst way."""
    worst: dict[str, Fraction] = {}
    holdings = dict(case.situation.book.holdings or {})
    holdings.setdefault(case.order.ticker, Holding())
    for ticker, held in holdings.items():
        here = ticker == case.order.ticker
        more = Fraction(case.order.qty) if here else Fraction(0)
        longest = Fraction(held.qty) + Fraction(held.buying) + (more if case.order.side == "buy" else 0)
        shortest = Fraction(held.qty) - Fraction(held.selling) - (more if case.order.side == "sell" else 0)
        price = max(Fraction(held.price), price_of(case)) if here else Fraction(held.price)
        worst[ticker] = max(abs(longest), abs(shortest)) * price
    return worst


def too_far(case: Case) -> bool:
    """Whether the order's price leaves the collar around a last price that can be used."""
    last = case.situation.price
    if last is None or not usable(case, last):
        return False
    allowed = Fraction(last.price) * Fraction(case.situation.limits.price_collar_pct) / 100
    return abs(Fraction(case.order.ref_price) - Fraction(last.price)) > allowed


def usable(case: Case, last: LastPrice) -> bool:
    """Whether our last price is young enough."""
    return fresh(last.age_s, case.situation.limits.max_price_age_s)


def known(case: Case) -> bool:
    """Whether the account is known."""
    return case.situation.book.holdings is not None


HARD: dict[str, Callable[[Case], bool]] = {
    "DUPLICATE": lambda c: c.situation.duplicate,
    "HALTED": lambda c: c.situation.halted,
    "RECONCILING": lambda c: not (known(c) and c.situation.book.reconciled),
    "RESTRICTED": lambda c: c.order.ticker in c.situation.limits.restricted_tickers,
    "LIMIT_RATE": lambda c: c.situation.book.orders_last_minute + 1 > c.situation.limits.max_orders_per_min,
    "LIMIT_DAILY_LOSS": lambda c: c.situation.book.lost_today - c.situation.limits.max_daily_loss >= 0,
    "STALE_PRICE": lambda c: c.situation.price is None or not usable(c, c.situation.price),
    "PRICE_COLLAR": too_far,
    "LIMIT_QTY": lambda c: c.order.qty > c.situation.limits.max_order_qty,
    "LIMIT_NOTIONAL": lambda c: Fraction(c.order.qty) * price_of(c) > Fraction(c.situation.limits.max_order_notional),
    "LIMIT_POSITION": lambda c: (
        known(c) and exposure(c)[c.order.ticker] > Fraction(c.situation.limits.max_position_notional)
    ),
    "LIMIT_GROSS": lambda c: known(c) and sum(exposure(c).values()) > Fraction(c.situation.limits.max_gross_notional),
}


def against_the_decision(case: Case) -> set[str]:
    """What speaks against the decision."""
    found, order = case.decision, case.order
    if found is None:
        return {"NO_DECISION"}
    about = {found.ticker == order.ticker, found.side == order.side, order.horizon in {None, found.horizon}}
    said: set[str] = set() if about == {True} else {"MISMATCH"}
    if found.age_s is None:
        said.add("NO_DECISION")
    elif found.past_due or not fresh(found.age_s, case.situation.terms.ttl_s):
        said.add("STALE_DECISION")
    if found.used_by is not None and found.used_by != order.client_order_id:
        said.add("DECISION_USED")
    return said | against_the_answer(case) | against_by_rules(case)


def against_the_answer(case: Case) -> set[str]:
    """What the model's answer says against the order."""
    found = case.decision
    assert found is not None
    match found.status, found.allow:
        case "skipped", _:
            return {"NO_DECISION" if found.error == "pending" else "MODEL_UNAVAILABLE"}
        case "unavailable", _:
            return {"MODEL_UNAVAILABLE"}
        case "ok", False:
            said = {"POLICY_DENY"}
        case "ok", True:
            said = {"INVALID_DECISION"} if found.reasons else set[str]()
        case _:
            return {"INVALID_DECISION"}
    return said if found.answered_by == case.situation.terms.model else said | {"MODEL_FALLBACK"}


def against_by_rules(case: Case) -> set[str]:
    """What the rules say against it: a missing datum by its own name, all else as one."""
    found = case.decision
    assert found is not None
    if found.rules_allow and not found.rules_reasons:
        return set()
    missing = {f"UNKNOWN_{rule}" for rule in DATUM_RULES}
    return {code if code in missing else "RULE_DENY" for code in found.rules_reasons or ("",)}


@given(cases())
def test_every_reason_that_applies_is_named_and_no_other(case: Case) -> None:
    if case.order.reduce_only:
        return  # these have properties of their own
    expected = against_the_decision(case) | {code for code, applies in HARD.items() if applies(case)}
    verdict = case.switched()
    assert {str(reason) for reason in verdict.reasons} == (expected or {"ALLOW"})
