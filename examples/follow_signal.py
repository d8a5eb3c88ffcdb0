"""A small strategy: trade what the forecasts say, and let go when their horizon has passed.

It has a key of its own (scopes read and trade), knows nothing of the house but its HTTP interface, and takes the whole
account for its own. `make run` runs it on the paper broker, so that the gate has something to judge. Its forecasts are
no better than the prices they come from: it shows how orders are sent, not how money is made.

    STRATEGY_KEY=$(make -s key NAME=mine SCOPES=read,trade) .venv/bin/python -m examples.follow_signal --notional 500
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import httpx

STRATEGY = "follow-signal"
TIMEOUT = httpx.Timeout(10, connect=2)
DENIED = 409


class Unheard(Exception):
    """The house did not answer, or not as hoped; the message says what it said."""


class House:
    """The routes a strategy needs."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def signals(self) -> list[dict[str, Any]]:
        """The latest forecast of each ticker and horizon."""
        return self._send("GET", "/signals/latest").json()

    def positions(self) -> dict[str, float]:
        """What the account holds, by ticker; short positions are negative."""
        held = self._send("GET", "/strategist/positions").json()
        return {each["ticker"]: float(each["qty"]) for each in held}

    def order(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send an order through the gate; the verdict, with `order` where it went on to the broker."""
        return self._send("POST", "/strategist/orders", body=body).json()

    def _send(self, method: str, path: str, *, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Unheard(f"{method} {path}: {type(error).__name__}") from error
        if answer.is_success:
            return answer
        said = problem(answer)
        if answer.status_code != DENIED or "verdict" not in said:
            raise Unheard(f"{method} {path}: {answer.status_code} {said['detail']}")
        return answer


def problem(answer: httpx.Response) -> dict[str, Any]:
    """What an answer that is an error says; whatever stands between us and the house may answer something else."""
    try:
        said: dict[str, Any] = answer.json()
    except ValueError:
        said = {}
    return {"detail": answer.reason_phrase, **said}


class Follower:
    """Enters once per judged forecast with a side, one position per ticker, and leaves when its horizon has passed."""

    def __init__(self, house: House, *, notional: float) -> None:
        self._house = house
        self._notional = notional
        self._seen: dict[str, str] = {}
        self._bars_held: dict[str, int] = {}
        self._answered: dict[str, str] = {}
        self._trouble: dict[str, str] = {}

    def look(self) -> None:
        """One look at forecasts and positions, and what follows from them. Trouble is told once and tried again."""
        try:
            signals, held = newest(self._house.signals()), self._house.positions()
        except Unheard as error:
            self._complain("", str(error))
            return
        self._complain("", "")
        for signal in signals:
            try:
                self._follow(signal, held.get(signal["ticker"], 0.0))
            except Unheard as error:
                self._complain(signal["ticker"], str(error))
            else:
                self._complain(signal["ticker"], "")

    def _follow(self, signal: Mapping[str, Any], qty: float) -> None:
        self._count_bars(signal, qty)
        if qty and self._bars_held[signal["ticker"]] >= bars_of(signal["horizon"]):
            self._send(signal, side="sell" if qty > 0 else "buy", qty=abs(qty), reduce_only=True)
        elif not qty and judged(signal) and side_of(signal) != "none":
            self._send(signal, side=side_of(signal), qty=self._size(signal), reduce_only=False)

    def _complain(self, about: str, trouble: str) -> None:
        if trouble and trouble != self._trouble.get(about):
            say(trouble)
        self._trouble[about] = trouble

    def _count_bars(self, signal: Mapping[str, Any], qty: float) -> None:
        """How many bars came since a position was first seen; 0 without one."""
        ticker, is_new = signal["ticker"], self._seen.get(signal["ticker"]) != signal["as_of"]
        self._seen[ticker] = signal["as_of"]
        before = self._bars_held.get(ticker)
        self._bars_held[ticker] = 0
        if qty and before is not None:
            self._bars_held[ticker] = before + is_new

    def _size(self, signal: Mapping[str, Any]) -> float:
        """As many as the money buys: whole ones, or a fraction of what costs more than that."""
        price = last_price(signal)
        return self._notional // price or round(self._notional / price, 6)

    def _send(self, signal: Mapping[str, Any], *, side: str, qty: float, reduce_only: bool) -> None:
        """Send an order, once: its id follows from the forecast, so that a restart sends the same one."""
        key = order_id(signal, reduce_only=reduce_only)
        if self._answered.get(signal["ticker"]) == key:
            return
        body = {
            "ticker": signal["ticker"],
            "side": side,
            "qty": qty,
            "ref_price": last_price(signal),
            "client_order_id": key,
            "reduce_only": reduce_only,
            "horizon": signal["horizon"],
            "strategy": STRATEGY,
        }
        told = self._house.order(body)
        self._answered[signal["ticker"]] = key
        say(in_words(signal, body, told=told))


def newest(signals: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The newest forecast of each ticker; those of a horizon that is no longer made stay in the list for ever."""
    latest: dict[str, Mapping[str, Any]] = {}
    for signal in sorted(signals, key=lambda each: datetime.fromisoformat(each["as_of"])):
        latest[signal["ticker"]] = signal
    return list(latest.values())


def judged(signal: Mapping[str, Any]) -> bool:
    """Whether the model and the rules have had their say; before that the gate would answer NO_DECISION."""
    return bool(signal["llm"]) and signal["llm"]["policy"]["error"] != "pending"


def side_of(signal: Mapping[str, Any]) -> str:
    """What the forecast says to do: buy, sell or none."""
    return signal["llm"]["inputs"]["signal"]["side"]


def last_price(signal: Mapping[str, Any]) -> float:
    """The price the forecast started from, to the nine decimals that an order may have."""
    return round(signal["llm"]["inputs"]["signal"]["last_price"], 9)


def bars_of(horizon: str) -> int:
    """How many bars a horizon such as `1d` or `5d` is long."""
    return int(horizon.rstrip("abcdefghijklmnopqrstuvwxyz"))


def order_id(signal: Mapping[str, Any], *, reduce_only: bool) -> str:
    """An id that says which forecast the order is about, and which way it goes."""
    identity = [signal[name] for name in ("feed", "ticker", "horizon", "model", "as_of")]
    return f"follow-{uuid5(NAMESPACE_URL, '|'.join([*identity, 'exit' if reduce_only else 'entry'])).hex}"


def in_words(signal: Mapping[str, Any], body: Mapping[str, Any], *, told: Mapping[str, Any]) -> str:
    """One line for one order."""
    what = "leaves" if body["reduce_only"] else "enters"
    thought = "" if told["would_have"] == told["verdict"] else f" (enforce would {told['would_have']})"
    order: dict[str, Any] = told.get("order") or {"status": "no order"}
    return (
        f"{signal['as_of']} {what} {body['ticker']}: {body['side']} {body['qty']:g} at about {body['ref_price']:.2f}: "
        f"{told['verdict']}{thought}, {', '.join(told['reasons'])}; {order['status']}"
    )


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201 - it is a program for a terminal


def main() -> int:
    """Look again and again until told to stop."""
    parser = argparse.ArgumentParser(description="Trade what the forecasts say.")
    parser.add_argument("--notional", type=float, default=1000, help="money per entry (default: 1000)")
    parser.add_argument("--every", type=float, default=2, help="seconds between looks (default: 2)")
    options = parser.parse_args()
    key = os.environ.get("STRATEGY_KEY")
    if not key:
        say("set STRATEGY_KEY to a key with the scopes read and trade: make key NAME=mine SCOPES=read,trade")
        return 2
    address = os.environ.get("API_URL") or "http://127.0.0.1:8001"
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers, timeout=TIMEOUT) as client:
        follower = Follower(House(client), notional=options.notional)
        say(f"following the signals of {address} with {options.notional:g} per entry")
        while True:
            follower.look()
            time.sleep(options.every)


if __name__ == "__main__":
    sys.exit(main())
