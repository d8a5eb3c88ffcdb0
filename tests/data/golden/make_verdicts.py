"""Makes the golden verdicts: `python -m tests.data.golden.make_verdicts FORECASTS OUT`.

Each forecast of a golden set, read as the desk reads it, stands before the gate with an order that fits it and with one
thing wrong after the other; what the gate says is written to OUT.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from libs.replay.cases import Case, read_cases
from libs.trading.gate import Situation, judge
from libs.trading.limits import Limits, Terms
from libs.trading.types import Book, Holding, LastPrice, Order, StoredDecision, SwitchState
from services.api.strategist.desk.reading import decision_of
from tools.replay_check import CASES, GateCase

HELD = Book({"IBM": Holding(qty=Decimal(100), price=Decimal(190))}, orders_last_minute=3)
SITUATIONS: tuple[dict[str, Any], ...] = (
    {"switches": SwitchState(shadow=False)},
    {"switches": SwitchState(shadow=True)},
    {"switches": SwitchState(gate_disabled=True, shadow=False)},
    {"switches": SwitchState(shadow=False), "halted": True},
    {"switches": SwitchState(shadow=False), "terms": Terms("Lexi", ttl_s=10)},
    {"switches": SwitchState(shadow=False), "terms": Terms("Lexi", allow_without=True)},
    {"switches": SwitchState(shadow=False), "book": replace(HELD, holdings=None, reconciled=False)},
    {"switches": SwitchState(shadow=False), "limits": Limits(max_order_qty=Decimal(1), price_collar_pct=Decimal(1))},
)


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


def gate_cases(number: int, case: Case) -> Iterator[GateCase]:
    """An order that fits the forecast and one that does not, before situations that change from case to case."""
    decision = decision_on(case)
    price = Decimal(repr(case.llm["inputs"]["signal"]["last_price"]))
    order = Order(
        ticker=case.ticker,
        side="sell" if decision.side == "sell" else "buy",
        qty=Decimal(10),
        ref_price=price * Decimal("1.02"),
        client_order_id=f"golden-{number}",
        key_name="desk",
    )
    other = replace(order, side="sell" if order.side == "buy" else "buy")
    usual = Situation(Limits(), Terms("Lexi"), HELD, SwitchState(shadow=False), LastPrice(price, 60.0))
    changed = [replace(usual, **SITUATIONS[(2 * number + step) % len(SITUATIONS)]) for step in (0, 1)]
    for given, situation in ((order, usual), (order, changed[0]), (other, changed[1])):
        yield GateCase(given, decision, situation, judge(given, decision, situation))


if __name__ == "__main__":
    source, out = (Path(word) for word in sys.argv[1:])
    made = [one for number, case in enumerate(read_cases(source)) for one in gate_cases(number, case)]
    out.write_text("".join(f"{CASES.dump_json(one).decode()}\n" for one in made), encoding="utf-8")
    sys.stdout.write(f"{out}: {len(made)} verdicts\n")
