"""The paper broker as a process: it forgets nothing when killed, runs without Postgres, and breaks real sockets."""

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.paper import marks
from services.paper.main import main

ROOT = Path(__file__).parents[2]
FEEDS = """
    insert into feeds (feed, source, last_write_at) values
    ('replay:1', 'replay', now() - interval '1 day'), ('replay:2', 'replay', now()), ('replay:3', 'replay', null)
"""
NO_POSTGRES = "postgresql://nobody@127.0.0.1:9/none"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Paper:
    """The process and a client for it."""

    def __init__(self, state: Path, **settings: str) -> None:
        self.port = free_port()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAPER_", "DATABASE_URL"))}
        own = {"LOCAL_STATE": str(state), "PAPER_PORT": str(self.port), "PAPER_FILL_MS": "0", **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.paper"], cwd=ROOT, env=clean | own, stderr=subprocess.PIPE, text=True
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def ready(self) -> str:
        """What `/ready` says, once it answers."""
        while self.process.poll() is None:
            try:
                return self.http.get("/ready").text
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError(self.process.communicate()[1])

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something to become so; the test's own time limit ends a wait in vain."""
        while not holds():
            assert self.process.poll() is None
            time.sleep(0.02)

    def last_words(self) -> str:
        return self.process.communicate(timeout=60)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def paper(state: Path, **settings: str) -> Generator[Paper, None, None]:
    running = Paper(state, **settings)
    try:
        yield running
    finally:
        running.http.close()
        running.kill()


def order_body(number: int, **fields: Any) -> dict[str, Any]:
    common = {"symbol": "AAPL", "side": "buy", "qty": "1", "type": "market", "time_in_force": "gtc"}
    return {**common, "client_order_id": f"order-{number}", **fields}


def test_nothing_acknowledged_is_lost_when_it_is_killed(tmp_path: Path) -> None:
    with paper(tmp_path, PAPER_SLICES="2") as first:
        first.ready()
        first.http.put("/paper/marks", json={"AAPL": "100.25"})
        account = first.http.get("/v2/account").json()
        acknowledged: list[str] = []

        def place() -> None:
            for number in range(100_000):
                body = order_body(number, **({"type": "limit", "limit_price": "1"} if number % 2 else {}))
                try:
                    answer = first.http.post("/v2/orders", json=body)
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    acknowledged.append(body["client_order_id"])

        sender = threading.Thread(target=place)
        sender.start()
        first.until(lambda: len(acknowledged) >= 50)
        os.kill(first.process.pid, signal.SIGKILL)
        sender.join()
    with paper(tmp_path, PAPER_SLICES="2") as second:
        second.ready()
        assert second.http.get("/v2/account").json()["account_number"] == account["account_number"]
        assert second.http.get("/paper/marks").json() == {"AAPL": {"price": "100.25", "by_hand": True}}
        for client_id in acknowledged:
            path = f"/v2/orders:by_client_order_id?client_order_id={client_id}"
            assert second.http.get(path).json()["client_order_id"] == client_id
        again = second.http.post("/v2/orders", json=order_body(0))
        assert again.json()["message"] == "client_order_id must be unique"
        fills = [fill for page in pages(second) for fill in page]
        bought = sum(float(fill["qty"]) for fill in fills)
        [position] = second.http.get("/v2/positions").json()
        assert float(position["qty"]) == bought >= 20
        cash = second.http.get("/v2/account").json()["cash"]
        assert float(cash) == 1_000_000 - bought * 100.25


def pages(broker: Paper) -> Generator[list[dict[str, Any]], None, None]:
    query = {"direction": "asc"}
    while page := broker.http.get("/v2/account/activities/FILL", params=query).json():
        yield page
        query["page_token"] = page[-1]["id"]


def test_it_starts_without_postgres_and_ends_on_a_signal(tmp_path: Path) -> None:
    with paper(tmp_path) as broker:
        assert "yellow marks: DATABASE_URL is not set" in broker.ready()
        assert broker.http.get("/health").status_code == 200
        assert "lexi_http_requests_total" in broker.http.get("/metrics").text
        broker.process.send_signal(signal.SIGTERM)
        broker.last_words()
        assert broker.process.returncode == 0


BARS = "insert into bars values (:feed, :ticker, '2024-01-02T00:00:00Z', 1, 1, 1, 100, 1)"


async def test_it_knows_its_prices_before_it_listens(
    tmp_path: Path, database_url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(FEEDS))
        for number in range(500):
            await connection.execute(text(BARS), {"feed": "replay:2", "ticker": f"T{number}"})
    port = free_port()
    for name, value in {"LOCAL_STATE": tmp_path, "PAPER_PORT": port, "DATABASE_URL": database_url}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(marks, "FIRST_S", 60.0)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        running = tasks.create_task(main(stop))
        while True:
            try:
                answer = await http.post("/v2/orders", json=order_body(1, symbol="T499"))
                break
            except httpx.ConnectError:
                assert not running.done()
                await asyncio.sleep(0)
        assert (answer.status_code, answer.json()["status"]) == (200, "new")
        stop.set()


async def test_a_database_that_says_nothing_does_not_keep_it_from_starting(
    tmp_path: Path, database_url: str, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("lock table feeds"))
        with paper(tmp_path, DATABASE_URL=database_url) as broker:
            assert "yellow marks: the database does not answer within 1 s" in broker.ready()


async def test_it_goes_on_with_the_marks_it_kept(tmp_path: Path, database_url: str, engine: AsyncEngine) -> None:
    bars = "insert into bars values (:feed, :ticker, :as_of, 1, 1, 1, :close, 1)"
    async with engine.begin() as connection:
        await connection.execute(text(FEEDS))
        for feed, ticker, day, close in [
            ("replay:1", "AAPL", 9, 1.5),
            ("replay:2", "AAPL", 2, 101.25),
            ("replay:2", "AAPL", 3, 102.5),
            ("replay:2", "BTC/USD", 3, 64000.1),
            ("replay:2", "DUST", 3, 0.0),
            ("replay:3", "AAPL", 12, 7.5),
        ]:
            row = {"feed": feed, "ticker": ticker, "close": close}
            await connection.execute(text(bars.replace(":as_of", f"'2024-01-{day:02d}T00:00:00Z'")), row)
    known = {"AAPL": {"price": "102.5", "by_hand": False}, "BTC/USD": {"price": "64000.1", "by_hand": False}}
    with paper(tmp_path, DATABASE_URL=database_url) as first:
        first.ready()
        first.until(lambda: first.http.get("/paper/marks").json() == known)
        assert "green  marks" in first.ready()
        os.kill(first.process.pid, signal.SIGKILL)
    with paper(tmp_path, DATABASE_URL=NO_POSTGRES) as second:
        second.until(lambda: "yellow marks: the database does not answer" in second.ready())
        assert second.http.get("/paper/marks").json() == known
        second.http.post("/v2/orders", json=order_body(1, symbol="BTC/USD"))
        second.until(lambda: second.http.get("/v2/positions").json() != [])
        assert second.http.get("/v2/positions").json()[0]["avg_entry_price"] == "64000.1"


def test_real_connections_are_reset_or_fall_silent(tmp_path: Path) -> None:
    with paper(tmp_path) as broker:
        broker.ready()
        broker.http.put("/paper/marks", json={"AAPL": "100"})
        broker.http.post("/paper/faults", json={"kind": "reset", "route": "POST /v2/orders", "when": "after"})
        with pytest.raises(httpx.ReadError):
            broker.http.post("/v2/orders", json=order_body(1))
        broker.http.post("/paper/faults", json={"kind": "reset", "route": "POST /v2/orders"})
        with pytest.raises(httpx.ReadError):
            broker.http.post("/v2/orders", json=order_body(2))
        broker.http.post("/paper/faults", json={"kind": "silence", "route": "GET /v2/account", "times": 1})
        with pytest.raises(httpx.ReadTimeout):
            broker.http.get("/v2/account", timeout=0.3)
        known = [row["client_order_id"] for row in broker.http.get("/v2/orders?status=all").json()]
        assert known == ["order-1"]
        broker.process.send_signal(signal.SIGTERM)
        assert "Traceback" not in broker.last_words()


def test_a_stop_does_not_wait_for_a_silent_socket(tmp_path: Path) -> None:
    with paper(tmp_path) as broker:
        broker.ready()
        broker.http.post("/paper/faults", json={"kind": "silence", "route": "GET /v2/account"})
        with socket.create_connection(("127.0.0.1", broker.port)) as held:
            held.sendall(b"GET /v2/account HTTP/1.1\r\nHost: localhost\r\n\r\n")
            broker.until(lambda: broker.http.get("/paper/faults").json()[0]["acted"] == 1)
            broker.process.send_signal(signal.SIGTERM)
            broker.last_words()
        assert broker.process.returncode == 0


def test_on_an_open_address_it_wants_a_key(tmp_path: Path) -> None:
    with paper(tmp_path, API_HOST="0.0.0.0") as broker:
        line = broker.last_words().splitlines()[-1]
        assert broker.process.returncode == 2
        assert line.startswith("paper: API_HOST=0.0.0.0 is not loopback: set PAPER_KEY_ID")
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    keys = {"PAPER_KEY_ID": "desk", "PAPER_SECRET_KEY_FILE": str(secret)}
    with paper(tmp_path, API_HOST="0.0.0.0", **keys) as broker:
        broker.ready()
        assert broker.http.get("/v2/account").status_code == 401
        headers = {"APCA-API-KEY-ID": "desk", "APCA-API-SECRET-KEY": "hidden"}
        assert broker.http.get("/v2/account", headers=headers).status_code == 200
        broker.process.send_signal(signal.SIGTERM)
        assert "hidden" not in broker.last_words()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"PAPER_KEY_ID": "half"}, "PAPER_KEY_ID and PAPER_SECRET_KEY"),
        ({"PAPER_CALENDAR": "XLON"}, "PAPER_CALENDAR"),
        ({"PAPER_SLICES": "0"}, "PAPER_SLICES"),
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL"),
    ],
)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, settings: dict[str, str], named: str) -> None:
    with paper(tmp_path, **settings) as broker:
        assert named in broker.last_words()
        assert broker.process.returncode == 2


def test_a_file_in_use_stops_the_start(tmp_path: Path) -> None:
    with paper(tmp_path) as first:
        first.ready()
        with paper(tmp_path) as second:
            assert "another paper broker runs on it" in second.last_words()
            assert second.process.returncode == 2


def test_the_market_of_new_york_can_be_had(tmp_path: Path) -> None:
    with paper(tmp_path, PAPER_CALENDAR="XNYS") as broker:
        broker.ready()
        clock = broker.http.get("/v2/clock").json()
        assert clock["timestamp"] < min(clock["next_open"], clock["next_close"])


def test_the_file_may_be_read_by_others_once_it_is_free(tmp_path: Path) -> None:
    with paper(tmp_path) as broker:
        broker.ready()
        broker.http.put("/paper/marks", json={"AAPL": "100"})
        os.kill(broker.process.pid, signal.SIGKILL)
    connection = sqlite3.connect(tmp_path / "paper.sqlite")
    assert connection.execute("select symbol from marks").fetchall() == [("AAPL",)]
    connection.close()
