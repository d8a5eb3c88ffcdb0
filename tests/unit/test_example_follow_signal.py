"""The example trades each forecast once, leaves when its horizon has passed, and outlives what the house refuses."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.follow_signal import Follower, House

ROOT = Path(__file__).parents[2]
DAY0 = datetime(2012, 8, 23, 20, tzinfo=UTC)
ALLOWED: dict[str, Any] = {"verdict": "allow", "would_have": "allow", "mode": "shadow", "reasons": ["ALLOW"]}
DENIED: dict[str, Any] = {"verdict": "deny", "would_have": "deny", "mode": "enforce", "reasons": ["POLICY_DENY"]}


def signal(
    day: int = 0, *, side: str = "buy", horizon: str = "1d", error: str | None = None, price: float = 80.0
) -> dict[str, Any]:
    said = {"side": side, "last_price": price}
    llm = {"policy": {"error": error}, "inputs": {"signal": said}}
    as_of = (DAY0 + timedelta(days=day)).isoformat()
    return {"feed": "replay:1", "as_of": as_of, "ticker": "AAPL", "horizon": horizon, "model": "theta", "llm": llm}


class Desk:
    """The house at the wire: it keeps what it is asked, and fills allowed orders when told to reconcile."""

    def __init__(self) -> None:
        self.signals = [signal()]
        self.positions: dict[str, float] = {}
        self.orders: list[dict[str, Any]] = []
        self.answer = ALLOWED
        self.status: int | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.status is not None:
            return httpx.Response(self.status, json={"status": self.status, "detail": "not now"})
        if request.method == "POST":
            self.orders.append(json.loads(request.content))
            if self.answer["verdict"] == "deny":
                return httpx.Response(409, json={"status": 409, "detail": "denied", **self.answer})
            return httpx.Response(200, json={**self.answer, "order": {"status": "accepted"}})
        if request.url.path == "/signals/latest":
            return httpx.Response(200, json=self.signals)
        held = [{"ticker": ticker, "qty": qty} for ticker, qty in self.positions.items() if qty]
        return httpx.Response(200, json=held)

    def reconcile(self) -> None:
        """Fill the last order."""
        order = self.orders[-1]
        signed = order["qty"] if order["side"] == "buy" else -order["qty"]
        self.positions[order["ticker"]] = self.positions.get(order["ticker"], 0) + signed


@pytest.fixture
def desk() -> Desk:
    return Desk()


def following(desk: Desk, *, notional: float = 1000) -> Follower:
    client = httpx.Client(transport=httpx.MockTransport(desk), base_url="http://api")
    return Follower(House(client), notional=notional)


def test_it_enters_once_per_forecast(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    follower = following(desk)
    for _ in range(3):
        follower.look()
    assert len(desk.orders) == 1
    order = desk.orders[0]
    assert (order["ticker"], order["side"], order["qty"], order["ref_price"]) == ("AAPL", "buy", 12, 80)
    assert (order["reduce_only"], order["horizon"], order["strategy"]) == (False, "1d", "follow-signal")
    assert len(order["client_order_id"]) <= 48
    assert capsys.readouterr().out.count("enters AAPL: buy 12 at about 80.00: allow, ALLOW; accepted") == 1


def test_it_leaves_when_the_horizon_has_passed_and_may_enter_again(desk: Desk) -> None:
    follower = following(desk)
    follower.look()
    desk.reconcile()
    follower.look()
    assert len(desk.orders) == 1
    desk.signals = [signal(1)]
    follower.look()
    follower.look()
    leaving = desk.orders[1:]
    assert [(each["side"], each["qty"], each["reduce_only"]) for each in leaving] == [("sell", 12, True)]
    desk.reconcile()
    follower.look()
    assert [each["reduce_only"] for each in desk.orders] == [False, True, False]
    assert len({each["client_order_id"] for each in desk.orders}) == 3


def test_a_short_position_is_bought_back_and_longer_horizons_are_waited_for(desk: Desk) -> None:
    desk.signals = [signal(side="sell", horizon="2d")]
    follower = following(desk)
    follower.look()
    desk.reconcile()
    assert desk.positions == {"AAPL": -12}
    for day in (1, 2):
        assert len(desk.orders) == 1
        desk.signals = [signal(day, side="sell", horizon="2d")]
        follower.look()
    assert (desk.orders[1]["side"], desk.orders[1]["reduce_only"]) == ("buy", True)


def test_what_an_exit_left_over_is_closed_at_the_next_bar(desk: Desk) -> None:
    follower = following(desk)
    desk.positions = {"AAPL": 10}
    for day in range(3):
        desk.signals = [signal(day, side="none")]
        follower.look()
        desk.positions = {"AAPL": 10 - 4 * day}
    assert [each["qty"] for each in desk.orders] == [10, 6]
    assert len({each["client_order_id"] for each in desk.orders}) == 2


def test_a_restart_sends_the_same_order_under_the_same_id(desk: Desk) -> None:
    following(desk).look()
    following(desk).look()
    assert desk.orders[0] == desk.orders[1]


@pytest.mark.parametrize("one", [signal(side="none"), signal(error="pending")])
def test_without_a_side_or_a_judgement_nothing_is_sent(desk: Desk, one: dict[str, Any]) -> None:
    desk.signals = [one]
    following(desk).look()
    assert desk.orders == []


def test_the_newest_forecast_of_a_ticker_counts(desk: Desk) -> None:
    desk.signals = [signal(5, horizon="1d"), signal(0, horizon="5d", side="sell")]
    follower = following(desk)
    follower.look()
    follower.look()
    assert [(each["side"], each["horizon"]) for each in desk.orders] == [("buy", "1d")]


def test_a_denied_entry_is_told_and_not_tried_again(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.answer = DENIED
    follower = following(desk)
    follower.look()
    follower.look()
    assert len(desk.orders) == 1
    assert capsys.readouterr().out.endswith("deny, POLICY_DENY; no order\n")


def test_shadow_tells_what_enforcing_would_do(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.answer = {**ALLOWED, "would_have": "deny", "reasons": ["POLICY_DENY"]}
    following(desk).look()
    assert "allow (enforce would deny), POLICY_DENY; accepted" in capsys.readouterr().out


@pytest.mark.parametrize("status", [401, 409, 500, 503])
def test_trouble_is_told_once_and_tried_again(desk: Desk, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    follower = following(desk)
    desk.status = status
    follower.look()
    follower.look()
    assert capsys.readouterr().out.count(f"GET /signals/latest: {status} not now\n") == 1
    desk.status = None
    follower.look()
    assert len(desk.orders) == 1


def test_a_price_goes_out_with_the_decimals_that_an_order_may_have(desk: Desk) -> None:
    desk.signals = [signal(price=85.520740768528)]
    following(desk).look()
    assert desk.orders[0]["ref_price"] == 85.520740769


def test_an_answer_that_is_no_json_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    page = httpx.Response(502, text="<html>")
    client = httpx.Client(transport=httpx.MockTransport(lambda _: page), base_url="http://api")
    Follower(House(client), notional=1000).look()
    assert capsys.readouterr().out == "GET /signals/latest: 502 Bad Gateway\n"


def test_what_costs_more_than_the_money_is_bought_in_parts(desk: Desk) -> None:
    following(desk, notional=20).look()
    assert desk.orders[0]["qty"] == 0.25


def test_without_a_key_it_says_how_to_get_one() -> None:
    env = {name: value for name, value in os.environ.items() if name != "STRATEGY_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "examples.follow_signal"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "make key NAME=mine SCOPES=read,trade" in done.stdout
