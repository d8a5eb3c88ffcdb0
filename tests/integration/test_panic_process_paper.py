"""The real panic process against the real paper broker, with the faults that the paper broker makes on request."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from libs.trading.journal import Journal
from libs.trading.panic.report import JOURNAL_NAME, unfinished
from tests.integration.test_panic_process import KILLED, MODULE, ROOT, wait_for

SYMBOLS = ("AAPL", "MSFT", "NVDA")


@dataclass
class Paper:
    """The paper broker, and a state folder of its own for the exits of one test."""

    http: httpx.Client
    state: Path

    def fault(self, **fault: Any) -> None:
        """Make it misbehave."""
        self.http.post("/paper/faults", json=fault).raise_for_status()

    def trade(self, symbol: str, qty: int) -> None:
        """Get a position: long, or short where `qty` is negative."""
        side = "buy" if qty > 0 else "sell"
        order = {"symbol": symbol, "qty": str(abs(qty)), "side": side, "type": "market", "time_in_force": "day"}
        self.http.post("/v2/orders", json=order).raise_for_status()
        wait_for(lambda: self.http.get(f"/v2/positions/{symbol}").is_success)

    def rest(self, symbol: str, side: str, price: int) -> str:
        """Leave an order open; returns its id."""
        order = {"symbol": symbol, "qty": "1", "side": side, "type": "limit", "time_in_force": "day"}
        made = self.http.post("/v2/orders", json={**order, "limit_price": str(price)})
        return str(made.raise_for_status().json()["id"])

    def positions(self) -> dict[str, str]:
        """Quantities by symbol."""
        return {held["symbol"]: held["qty"] for held in self.http.get("/v2/positions").json()}

    def open_orders(self) -> list[dict[str, Any]]:
        """The open orders."""
        return self.http.get("/v2/orders", params={"status": "open", "limit": 500}).json()

    def flat(self) -> bool:
        """Whether there is neither a position nor an order."""
        return not self.positions() and not self.open_orders()

    def now(self) -> str:
        """The broker's time."""
        return str(self.http.get("/v2/clock").json()["timestamp"])

    def sold(self, symbol: str, since: str) -> float:
        """How much of a symbol was sold since a time."""
        query = {"page_size": 100, "after": since}
        fills = self.http.get("/v2/account/activities/FILL", params=query).raise_for_status().json()
        return sum(float(fill["qty"]) for fill in fills if fill["symbol"] == symbol and fill["side"] == "sell")

    def panic(
        self, *arguments: str, program: tuple[str, ...] = MODULE, limit_s: int = 120
    ) -> tuple[int, dict[str, Any]]:
        """Run the process: its exit code and its answer."""
        environment = {
            "PATH": os.environ["PATH"],
            "LOCAL_STATE": str(self.state),
            "PAPER_URL": str(self.http.base_url),
            "PYTHONPATH": str(ROOT),
            "PANIC_LIMIT_S": str(limit_s),
        }
        process = subprocess.run(
            [sys.executable, *program, *arguments],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=90,
        )
        return process.returncode, json.loads(process.stdout) if process.stdout else {}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "LOCAL_STATE": str(tmp_path_factory.mktemp("paper")),
        "PAPER_PORT": str(port),
    }
    process = subprocess.Popen([sys.executable, "-m", "services.paper"], cwd=ROOT, env=environment)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
        wait_for(lambda: _answers(http))
        http.put("/paper/marks", json=dict.fromkeys(SYMBOLS, "100")).raise_for_status()
        yield http
    process.terminate()
    process.wait(30)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/v2/clock").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def paper(broker: httpx.Client, tmp_path: Path) -> Iterator[Paper]:
    paper = Paper(broker, tmp_path)
    yield paper
    broker.delete("/paper/faults")
    broker.delete("/v2/orders")
    broker.delete("/v2/positions")
    wait_for(paper.flat)


def test_flat(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.trade("MSFT", -5)
    paper.rest("NVDA", "buy", 50)
    paper.rest("AAPL", "sell", 200)
    code, answer = paper.panic()
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])
    assert (answer["positions_closed"], answer["orders_cancelled"]) == (2, 2)
    assert paper.flat()


def test_killed_at_each_journal_step(paper: Paper, tmp_path: Path) -> None:
    """Each time resumed to its end by the same exit: flat, and exactly what was held was sold."""
    steps = -1
    while True:
        steps += 1
        paper.state = tmp_path / str(steps)
        paper.trade("AAPL", 10)
        paper.rest("NVDA", "buy", 50)
        since = paper.now()
        exit_id = str(uuid4())
        code, answer = paper.panic(str(steps), "--exit-id", exit_id, program=("-c", KILLED))
        if code != 0:
            assert code == -9
            assert str(unfinished(Journal(paper.state / JOURNAL_NAME))) == exit_id
            code, answer = paper.panic("--resume")
        assert (code, answer["state"], answer["exit_id"], answer["failures"]) == (0, "FLAT", exit_id, [])
        assert paper.flat()
        assert paper.sold("AAPL", since) == 10
        assert (paper.state / "halt").exists()
        if steps >= len(Journal(paper.state / JOURNAL_NAME).entries()):
            break
    assert steps > 9


def test_every_close_of_the_list_failed(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.trade("MSFT", -5)
    paper.fault(kind="fail_close", where="bulk")
    code, answer = paper.panic()
    assert (code, answer["state"], answer["positions_closed"], answer["failures"]) == (0, "FLAT", 2, [])


def test_every_close_failed_for_ever(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.rest("NVDA", "buy", 50)
    paper.fault(kind="fail_close", where="both")
    code, answer = paper.panic(limit_s=2)
    assert (code, answer["state"], answer["ok"]) == (4, "PARTIAL", False)
    assert (answer["positions_closed"], answer["orders_cancelled"]) == (0, 1)
    assert "AAPL: 10 still held" in answer["failures"]
    assert paper.positions() == {"AAPL": "10"}


def test_every_cancel_of_the_list_failed(paper: Paper) -> None:
    paper.rest("NVDA", "buy", 50)
    paper.fault(kind="fail_cancel", where="bulk")
    code, answer = paper.panic()
    assert (code, answer["state"], answer["orders_cancelled"]) == (0, "FLAT", 1)


def test_a_slow_cancel_holds_the_quantity(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.rest("AAPL", "sell", 200)
    paper.fault(kind="slow_cancel", for_s=7)
    code, answer = paper.panic()
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])
    assert paper.flat()


def test_a_cancel_that_stays_pending(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    order = paper.rest("NVDA", "buy", 50)
    paper.fault(kind="slow_cancel")
    code, answer = paper.panic(limit_s=3)
    assert (code, answer["state"], answer["positions_closed"], answer["orders_cancelled"]) == (4, "PARTIAL", 1, 0)
    assert any(order in failure and "pending_cancel" in failure for failure in answer["failures"])


def test_positions_that_come_back(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.fault(kind="reappear", after_ms=0)
    code, answer = paper.panic()
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])
    assert paper.flat()


def test_a_closed_market(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.fault(kind="market", open=False)
    code, answer = paper.panic()
    assert (code, answer["state"], answer["ok"]) == (3, "PENDING_MARKET_OPEN", False)
    assert [(order["symbol"], order["side"], order["qty"]) for order in paper.open_orders()] == [("AAPL", "sell", "10")]
    paper.http.delete("/paper/faults")
    wait_for(paper.flat)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("route", ["DELETE /v2/orders", "DELETE /v2/positions", "GET /v2/orders", "GET /v2/positions"])
def test_connections_that_are_reset(paper: Paper, route: str, when: str) -> None:
    paper.trade("AAPL", 10)
    since = paper.now()
    paper.rest("NVDA", "buy", 50)
    paper.fault(kind="reset", route=route, when=when, times=2)
    code, answer = paper.panic()
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])
    assert paper.flat()
    assert paper.sold("AAPL", since) == 10


def test_a_socket_that_never_answers(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    paper.fault(kind="silence", route="DELETE /v2/positions", when="after", times=1)
    since = paper.now()
    code, answer = paper.panic()
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])
    assert paper.sold("AAPL", since) == 10


def test_slow_fills_are_waited_for(paper: Paper) -> None:
    paper.trade("AAPL", 10)
    since = paper.now()
    paper.fault(kind="hold_fills", for_s=2)
    code, answer = paper.panic()
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])
    assert paper.sold("AAPL", since) == 10


def test_it_flattens_what_strategies_go_on_sending(paper: Paper) -> None:
    """A stranger on the account, whom our halt does not stop, keeps it from saying flat while he trades."""
    until = time.monotonic() + 3

    def goes_on() -> bool:
        return time.monotonic() < until

    code, answer, sent = _against(paper, goes_on)
    assert sent > 0
    assert (code, answer["state"]) == (0, "FLAT")
    assert paper.flat()


def _against(paper: Paper, goes_on: Callable[[], bool]) -> tuple[int, dict[str, Any], int]:
    outcome: list[tuple[int, dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: outcome.append(paper.panic()))
    thread.start()
    sent = 0
    while goes_on():
        paper.rest("NVDA", "buy", 50)
        sent += 1
        time.sleep(0.02)
    thread.join()
    return *outcome[0], sent
