"""How long a panic exit of 50 positions and 200 open orders takes, from the start of its process, on the paper broker.

The real processes: `services.paper` and `python -m libs.trading.panic`. Once while Postgres and the model answer, once
while nothing answers at either address. When the first order was cancelled, and when the last position was closed, is
what the broker's own records say; flat and verified is when the process has printed its answer.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from bench.database import migrated
from bench.embedded_model import embedded_server
from tools.local_stack.postgres import EmbeddedPostgres

POSITIONS = 50
ORDERS = 200
SYMBOLS = [f"S{number:02d}" for number in range(POSITIONS)]
PRICE = 100.0
FAR = 50.0
RUNS = 3
MOST_S = 5.0
MOST_TO_CANCEL_S = 1.0
READY_S = 20.0
NOBODY_DATABASE = "postgresql://nobody@127.0.0.1:9/nowhere"
NOBODY_MODEL = "http://127.0.0.1:9/v1"


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds from the start of the process: the halt, the first cancel, the last close, the answer."""

    halted_s: float
    cancelled_s: float
    closed_s: float
    answered_s: float


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def paper_broker(state: Path, database_url: str | None) -> Generator[httpx.Client]:
    """`services.paper` on a file of its own, with positions and open orders."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in {"API_HOST", "DATABASE_URL"}}
    environment |= {"PAPER_PORT": str(port), "LOCAL_STATE": str(state), "PAPER_CASH": "100000000"}
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    process = subprocess.Popen(
        [sys.executable, "-m", "services.paper"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            wait_until_healthy(client, process)
            fill(client)
            yield client
    finally:
        process.terminate()
        process.wait(10)


def wait_until_healthy(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    """Wait for the broker's first answer."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError("services.paper does not answer")


def fill(client: httpx.Client) -> None:
    """Positions, long and short by turns, and orders that rest far from the market."""
    client.put("/paper/marks", json=dict.fromkeys(SYMBOLS, PRICE)).raise_for_status()
    for number, symbol in enumerate(SYMBOLS):
        side = "buy" if number % 2 == 0 else "sell"
        order = {"symbol": symbol, "side": side, "qty": "10", "type": "market", "time_in_force": "day"}
        client.post("/v2/orders", json=order).raise_for_status()
    until = time.monotonic() + READY_S
    while len(client.get("/v2/positions").json()) < POSITIONS:
        if time.monotonic() > until:
            raise RuntimeError("the positions do not fill")
        time.sleep(0.05)
    for number in range(ORDERS):
        order = {"symbol": SYMBOLS[number % POSITIONS], "side": "buy", "qty": "1", "type": "limit"}
        priced = order | {"limit_price": str(FAR), "time_in_force": "gtc"}
        client.post("/v2/orders", json=priced).raise_for_status()


def panic(client: httpx.Client, state: Path, environment: dict[str, str]) -> Taken:
    """One exit, and what the broker says about it. Raises `RuntimeError` where it was not flat."""
    began_at, began = datetime.now(UTC), time.perf_counter()
    said = subprocess.run(
        [sys.executable, "-m", "libs.trading.panic", "--reason", "bench", "--ttl-minutes", "0", "--state", str(state)],
        env=os.environ | environment | {"BROKER": "paper", "PAPER_URL": str(client.base_url)},
        capture_output=True,
        text=True,
        check=False,
    )
    answered_s = time.perf_counter() - began
    answer: dict[str, Any] = json.loads(said.stdout or "{}")
    if said.returncode != 0 or answer.get("state") != "FLAT":
        raise RuntimeError(f"the exit ended with {said.returncode}: {answer}\n{said.stderr}")
    counted = (answer["positions_closed"], answer["orders_cancelled"])
    if counted != (POSITIONS, ORDERS) or client.get("/v2/positions").json() or client.get("/v2/orders").json():
        raise RuntimeError(f"called FLAT after {counted}, and the broker is not")
    closed = client.get("/v2/orders", params={"status": "closed", "limit": 500, "after": text_of(began_at)}).json()
    cancelled = client.get("/v2/orders", params={"status": "closed", "limit": 500}).json()
    halted = datetime.fromisoformat(json.loads((state / "halt").read_text())["at"])
    return Taken(
        halted_s=(halted - began_at).total_seconds(),
        cancelled_s=seconds(began_at, [order["canceled_at"] for order in cancelled], first=True),
        closed_s=seconds(began_at, [order["filled_at"] for order in closed], first=False),
        answered_s=answered_s,
    )


def text_of(moment: datetime) -> str:
    """A moment as the wire writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds(since: datetime, moments: Sequence[str | None], *, first: bool) -> float:
    """From a moment to the first, or the last, of others."""
    known = [datetime.fromisoformat(moment) for moment in moments if moment]
    return ((min if first else max)(known) - since).total_seconds()


def measure(folder: Path, *, database_url: str | None, environment: dict[str, str]) -> list[Taken]:
    """A few exits, each with a broker of its own."""
    taken: list[Taken] = []
    for number in range(RUNS):
        state = folder / str(number)
        state.mkdir(parents=True)
        with paper_broker(state, database_url) as client:
            taken.append(panic(client, state, environment))
    return taken


def show(name: str, taken: Sequence[Taken]) -> bool:
    """Print the slowest of each; whether all were quick enough."""
    cancelled, closed = max(each.cancelled_s for each in taken), max(each.closed_s for each in taken)
    answered = max(each.answered_s for each in taken)
    good = answered <= MOST_S and cancelled <= MOST_TO_CANCEL_S
    print(
        f"  {name}: halted after {max(each.halted_s for each in taken):.2f} s, first cancel after {cancelled:.2f} s, "
        f"last close after {closed:.2f} s, flat and verified after {answered:.2f} s{'' if good else '  MISSED'}",
        flush=True,
    )
    return good


def main() -> int:
    """Run with everything up and with everything down; 1 where a limit was missed."""
    print(f"panic: {POSITIONS} positions and {ORDERS} open orders, the slowest of {RUNS} exits")
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "pg", durable=False)
        server.start()
        try:
            url = migrated(server, "bench")
            with embedded_server() as (model, _process):
                up = measure(folder / "up", database_url=url, environment={"DATABASE_URL": url, "LLM_BASE_URL": model})
        finally:
            server.stop()
        nothing = {"DATABASE_URL": NOBODY_DATABASE, "LLM_BASE_URL": NOBODY_MODEL}
        down = measure(folder / "down", database_url=NOBODY_DATABASE, environment=nothing)
    shown = [show("Postgres and model up", up), show("both down", down)]
    print(f"  limits: first cancel {MOST_TO_CANCEL_S:g} s, flat and verified {MOST_S:g} s")
    return 0 if all(shown) else 1


if __name__ == "__main__":
    sys.exit(main())
