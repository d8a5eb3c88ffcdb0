"""Makes the golden verdicts: `python -m tests.data.golden.make_verdicts FORECASTS OUT`.

One forecast of each kind in a golden set, read as the desk reads it, stands before the gate in every mode. Then one
that nothing speaks against, with one thing wrong after the other: policy reasons in enforce, where they deny, hard ones
in shadow, where they deny as well. What the gate says is written to OUT. The id of an order says what is wrong with it.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from libs.replay.cases import Case, read_cases
from libs.trading.gate import PENDING, Situation, judge
from libs.trading.limits import Limits, Terms
from libs.trading.reasons import UNKNOWN_PREFIX, Reason
from libs.trading.types import Book, Holding, LastPrice, Order, StoredDecision, SwitchState
from services.api.strategist.desk.reading import decision_of
from tools.replay_check import CASES, GateCase

ENFORCE, SHADOW = SwitchState(shadow=False), SwitchState(shadow=True)
MODES = {"enforce": ENFORCE, "shadow": SHADOW, "disabled": SwitchState(gate_disabled=True, shadow=False)}
QTY = Decimal(10)


@dataclass(frozen=True, slots=True)
class Wrong:
    """What is changed of an order, its decision and the situation, which were well. `decision` None: no forecast.

    `situation` may name fields of `Situation`, `Limits`, `Terms` and `Book`.
    """

    name: str
    order: Mapping[str, Any] = field(default_factory=dict[str, Any])
    decision: Mapping[str, Any] | None = field(default_factory=dict[str, Any])
    situation: Mapping[str, Any] = field(default_factory=dict[str, Any])


def policy_wrong() -> Iterator[Wrong]:
    """What speaks against a decision, and what looks like it and does not."""
    yield Wrong("nothing")
    yield Wrong("no-forecast", decision=None)
    yield Wrong("pending", decision={"status": "skipped", "error": PENDING, "allow": None})
    yield Wrong("never-judged", decision={"age_s": None})
    yield Wrong("just-young-enough", decision={"age_s": 900.0})
    yield Wrong("too-old", decision={"age_s": 900.001})
    yield Wrong("from-the-future", decision={"age_s": -1.0})
    yield Wrong("past-due", decision={"past_due": True})
    yield Wrong("shorter-ttl", situation={"ttl_s": 10.0})
    yield Wrong("allows-and-says-why-not", decision={"reasons": ("COVERAGE",)})
    yield Wrong("ok-without-a-word", decision={"allow": None})
    yield Wrong("not-asked", decision={"status": "skipped", "error": "UnknownPrompt: policy", "allow": None})
    yield Wrong("another-model", decision={"answered_by": "Other"})
    yield Wrong("another-side", order={"side": "sell"})
    yield Wrong("another-horizon", order={"horizon": "5d"})
    yield Wrong("its-own-horizon", order={"horizon": "1d"})
    yield Wrong("another-ticker", order={"ticker": "XYZ"})
    yield Wrong("used", decision={"used_by": "golden-another"})
    yield Wrong("used-by-itself", decision={"used_by": "golden-used-by-itself"})
    unknown = tuple(reason.value for reason in Reason if reason.startswith(UNKNOWN_PREFIX))
    yield Wrong("rules-know-nothing", decision={"rules_allow": False, "rules_reasons": unknown})
    yield Wrong("rules-deny-without-a-word", decision={"rules_allow": False})
    yield Wrong("rules-allow-and-say-why-not", decision={"rules_reasons": ("LIQUIDITY",)})
    for name, decision in {"no-forecast": None, "too-old": {"age_s": 901.0}, "denied": {"allow": False}}.items():
        yield Wrong(f"without-{name}", decision=decision, situation={"allow_without": True})


def hard_wrong(order: Order, price: Decimal) -> Iterator[Wrong]:
    """What denies in every mode; of each limit also the last value that it allows."""
    worth, collar, cent = order.qty * order.ref_price, Limits().price_collar_pct / 100, Decimal("0.01")
    other = {"XYZ": Holding(qty=Decimal(-7), price=Decimal(100))}
    yield Wrong("duplicate", situation={"duplicate": True})
    yield Wrong("halted", situation={"halted": True})
    yield Wrong("account-not-read", situation={"reconciled": False})
    yield Wrong("account-unknown", situation={"holdings": None})
    yield Wrong("restricted", situation={"restricted_tickers": frozenset({order.ticker})})
    yield Wrong("another-restricted", situation={"restricted_tickers": frozenset({"XYZ"})})
    yield Wrong("rate", situation={"orders_last_minute": 30})
    yield Wrong("rate-allowed", situation={"orders_last_minute": 29})
    yield Wrong("lost", situation={"lost_today": Decimal(5000)})
    yield Wrong("lost-allowed", situation={"lost_today": Decimal("4999.99")})
    yield Wrong("no-price", situation={"price": None})
    yield Wrong("price-old", situation={"price": LastPrice(price, 172_800.5)})
    yield Wrong("price-zero", situation={"price": LastPrice(Decimal(0), 60.0)})
    yield Wrong("collar-above", order={"ref_price": price * (1 + collar) + cent})
    yield Wrong("collar-below", order={"ref_price": price * (1 - collar) - cent})
    yield Wrong("collar-allowed", order={"ref_price": price * (1 - collar)})
    yield Wrong("qty", situation={"max_order_qty": order.qty - cent})
    yield Wrong("qty-allowed", situation={"max_order_qty": order.qty})
    yield Wrong("qty-none", order={"qty": Decimal(0)})
    yield Wrong("notional", situation={"max_order_notional": worth - cent})
    yield Wrong("notional-allowed", situation={"max_order_notional": worth})
    yield Wrong("position", situation={"max_position_notional": worth - cent})
    yield Wrong("position-allowed", situation={"max_position_notional": worth})
    yield Wrong("gross", situation={"holdings": other, "max_gross_notional": worth + 700 - cent})
    yield Wrong("gross-allowed", situation={"holdings": other, "max_gross_notional": worth + 700})
    yield Wrong("all-at-once", decision=None, situation={"halted": True, "duplicate": True, "reconciled": False})


def exits(order: Order) -> Iterator[Wrong]:
    """Orders that only reduce: they pass whatever else is wrong, unless the claim cannot be true."""
    sell: dict[str, Any] = {"side": "sell", "reduce_only": True}
    held = {order.ticker: Holding(qty=QTY, price=order.ref_price)}
    short = {order.ticker: Holding(qty=-QTY, price=order.ref_price)}
    yield Wrong("exit", order=sell, situation={"holdings": held})
    yield Wrong("exit-whatever", order=sell, decision=None, situation={"holdings": held, "halted": True, "price": None})
    yield Wrong("exit-disabled", order=sell, situation={"holdings": held, "switches": MODES["disabled"]})
    yield Wrong("exit-too-large", order={**sell, "qty": QTY + 1}, situation={"holdings": held})
    yield Wrong("exit-enlarges", order={**sell, "side": "buy"}, situation={"holdings": held})
    yield Wrong("exit-of-nothing", order=sell)
    yield Wrong("exit-of-a-short", order={**sell, "side": "buy"}, situation={"holdings": short})
    yield Wrong("exit-duplicate", order=sell, situation={"holdings": held, "duplicate": True})
    yield Wrong("exit-account-unknown", order=sell, situation={"holdings": None})


def decision_on(case: Case) -> StoredDecision:
    """The stored decision as the desk reads it, judged half a minute ago."""
    row = {
        "forecast_id": case.forecast_id,
        "feed": case.feed,
        "forecast_ticker": case.ticker,
        "forecast_horizon": "1d",
        "model": "theta",
        "as_of": case.as_of,
        "side": case.llm["inputs"]["signal"]["side"],
        "policy": json.dumps(case.llm["policy"]),
        "age_s": 30.0,
        "past_due": False,
        "used_by": None,
    }
    found = decision_of(row)
    assert found is not None
    return found


def price_of(case: Case) -> Decimal:
    """The last price of a forecast."""
    return Decimal(repr(case.llm["inputs"]["signal"]["last_price"]))


def order_on(case: Case, name: str) -> Order:
    """An order that fits a forecast; where that has no side, nothing fits."""
    side = case.llm["inputs"]["signal"]["side"]
    return Order(
        ticker=case.ticker,
        side="sell" if side == "sell" else "buy",
        qty=QTY,
        ref_price=price_of(case) * Decimal("1.02"),
        client_order_id=f"golden-{name}",
        key_name="desk",
    )


def usual(case: Case, switches: SwitchState) -> Situation:
    """Nothing held, a price of a minute ago."""
    return Situation(Limits(), Terms("Lexi"), Book(), switches, LastPrice(price_of(case), 60.0))


def kind_of(case: Case) -> tuple[Any, ...]:
    """What makes two forecasts the same to the gate."""
    policy = case.llm["policy"]
    allow = None if policy["decision"] is None else policy["decision"]["allow"]
    return (case.llm["inputs"]["signal"]["side"], policy["status"], allow, policy["rules"]["allow"])


def judged(order: Order, decision: StoredDecision | None, situation: Situation) -> GateCase:
    """A case with what the gate says of it."""
    return GateCase(order, decision, situation, judge(order, decision, situation))


def wrong_case(case: Case, wrong: Wrong, switches: SwitchState) -> GateCase:
    """The forecast with one thing wrong."""
    order = replace(order_on(case, wrong.name), **wrong.order)
    decision = None if wrong.decision is None else replace(decision_on(case), **wrong.decision)
    situation, left = usual(case, switches), dict(wrong.situation)
    for name in ("limits", "terms", "book"):
        part = getattr(situation, name)
        own = {field: left.pop(field) for field in tuple(left) if field in part.__slots__}
        situation = replace(situation, **{name: replace(part, **own)})
    return judged(order, decision, replace(situation, **left))


def gate_cases(cases: list[Case]) -> Iterator[GateCase]:
    """All cases that are made of a golden set's forecasts."""
    for number, case in enumerate({kind_of(case): case for case in reversed(cases)}.values()):
        for mode, switches in MODES.items():
            yield judged(order_on(case, f"kind-{number}-{mode}"), decision_on(case), usual(case, switches))
    well = next(case for case in cases if kind_of(case) == ("buy", "ok", True, True))
    order = order_on(well, "")
    for wrong in (*policy_wrong(), *exits(order)):
        yield wrong_case(well, wrong, ENFORCE)
    for wrong in hard_wrong(order, price_of(well)):
        yield wrong_case(well, wrong, SHADOW)


if __name__ == "__main__":
    source, out = (Path(word) for word in sys.argv[1:])
    made = list(gate_cases(list(read_cases(source))))
    out.write_text("".join(f"{CASES.dump_json(one).decode()}\n" for one in made), encoding="utf-8")
    sys.stdout.write(f"{out}: {len(made)} verdicts\n")
