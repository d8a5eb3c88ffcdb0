"""The panic exit as a process: `python -m libs.trading.panic` against a broker on a real socket."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from libs.trading.halt import HaltFile
from libs.trading.journal import Journal
from libs.trading.panic.report import JOURNAL_NAME, result_of, unfinished
from tests.fakes.broker import Answer, FakeBroker, Reset, Server

ROOT = Path(__file__).parents[2]
MODULE = ("-m", "libs.trading.panic")

# The real process, which kills itself with signal 9 before it writes one more entry than it may.
KILLED = """
import os, runpy, signal, sys
import libs.trading.journal as journal
left, append = int(sys.argv.pop(1)), journal.Journal.append
def killing(self, *what):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return append(self, *what)
journal.Journal.append = killing
runpy.run_module("libs.trading.panic", run_name="__main__", alter_sys=True)
"""

# The real process, which says whether the halt stood when httpx was first asked for.
WATCHING = """
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("httpx", "asyncio"):
            print(name, os.path.exists(os.environ["LOCAL_STATE"] + "/halt"), file=sys.stderr)
sys.meta_path.insert(0, Watch())
runpy.run_module("libs.trading.panic", run_name="__main__", alter_sys=True)
"""


@dataclass
class House:
    """A state folder, a broker on a socket, and processes to run there."""

    state: Path
    server: Server
    extra: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def fake(self) -> FakeBroker:
        return self.server.fake

    @property
    def journal(self) -> Journal:
        return Journal(self.state / JOURNAL_NAME)

    def start(self, *arguments: str, program: tuple[str, ...] = MODULE, **options: Any) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "LOCAL_STATE": str(self.state),
            "PAPER_URL": self.server.url,
            "PYTHONPATH": str(ROOT),
            **self.extra,
        }
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([sys.executable, *program, *arguments], env=environment, text=True, cwd=ROOT, **pipes)

    def run(self, *arguments: str, program: tuple[str, ...] = MODULE) -> tuple[int, dict[str, Any], str]:
        """Exit code, answer and what was said; the answer is empty where none was given."""
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=60)
        return process.returncode, json.loads(out) if out else {}, err


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    fake = FakeBroker()
    fake.hold("AAPL", 10)
    fake.hold("MSFT", -5)
    fake.rest("AAPL", "sell", 4)
    fake.rest("NVDA", "buy", 2)
    server = Server(fake)
    yield House(tmp_path, server)
    server.shutdown()
    server.server_close()


def wait_for(happened: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not happened():
        if time.monotonic() > until:
            raise AssertionError("it did not happen within 30 s")
        time.sleep(0.01)


def test_flat(house: House) -> None:
    exit_id = str(uuid4())
    code, answer, said = house.run("--reason", "fire", "--ttl-minutes", "5", "--exit-id", exit_id)
    assert (code, answer["state"], answer["ok"], answer["exit_id"]) == (0, "FLAT", True, exit_id)
    assert (answer["positions_closed"], answer["orders_cancelled"], answer["failures"]) == (2, 2, [])
    assert "FLAT: 2 positions closed, 2 orders cancelled" in said
    assert house.fake.positions == {}
    halt = HaltFile(house.state).read()
    assert halt is not None
    assert (str(halt.id), halt.reason, halt.ttl_minutes) == (exit_id, "fire", 5)
    assert answer["halted_until"] == halt.halted_until.isoformat()
    assert result_of(house.journal.entries(halt.id)) == answer


def test_the_halt_stands_before_httpx_is_loaded(house: House) -> None:
    _, _, said = house.run(program=("-c", WATCHING))
    assert "httpx True" in said
    assert "asyncio True" in said
    assert "False" not in said


def test_a_broker_that_resets_connections(house: House) -> None:
    def reset(method: str, path: str, number: int) -> Answer | None:
        if number in {1, 3}:
            raise Reset(after=number == 3)
        return None

    house.fake.script = reset
    code, answer, _ = house.run()
    assert (code, answer["state"], answer["failures"], house.fake.turned) == (0, "FLAT", [], [])


def test_nobody_listens(house: House) -> None:
    house.extra |= {"PANIC_LIMIT_S": "1", "PAPER_URL": "http://127.0.0.1:1"}
    code, answer, _ = house.run()
    assert (code, answer["state"], answer["ok"]) == (5, "FAILED", False)
    assert HaltFile(house.state).reason() is not None
    assert unfinished(house.journal) is None


def test_a_half_open_socket(house: House) -> None:
    house.server.silent = 1
    code, answer, said = house.run()
    assert "DELETE /v2/orders: no answer within 5 s" in said
    assert (code, answer["state"], answer["failures"]) == (0, "FLAT", [])


def test_partial(house: House) -> None:
    house.extra["PANIC_LIMIT_S"] = "1"
    house.fake.refuse_close["AAPL"] = 10**6
    code, answer, said = house.run()
    assert (code, answer["state"], answer["positions_closed"]) == (4, "PARTIAL", 1)
    assert "AAPL: 10 still held" in answer["failures"]
    assert "AAPL: 10 still held" in said


def test_a_closed_market(house: House) -> None:
    house.fake.market_open = False
    code, answer, _ = house.run()
    assert (code, answer["state"]) == (3, "PENDING_MARKET_OPEN")


def test_a_dry_run_only_reads(house: House) -> None:
    code, answer, _ = house.run("--dry-run")
    assert (code, answer["state"], answer["ok"]) == (0, "DRY_RUN", True)
    assert [(item["symbol"], item["side"], item["qty"]) for item in answer["would_cancel"]] == [
        ("AAPL", "sell", "4"),
        ("NVDA", "buy", "2"),
    ]
    assert [(item["symbol"], item["side"], item["qty"]) for item in answer["would_close"]] == [
        ("AAPL", "sell", "10"),
        ("MSFT", "buy", "5"),
    ]
    assert all(call.startswith("GET ") for call in house.fake.calls)
    assert list(house.state.iterdir()) == []


def test_a_dry_run_without_a_broker(house: House) -> None:
    house.extra["PAPER_URL"] = "http://127.0.0.1:1"
    code, answer, _ = house.run("--dry-run")
    assert (code, answer["state"], answer["ok"]) == (5, "FAILED", False)


def test_a_broker_that_is_not_configured_is_halted_all_the_same(house: House) -> None:
    house.extra["BROKER"] = "alpaca"
    code, answer, _ = house.run()
    assert (code, answer["state"]) == (5, "FAILED")
    assert "ALPACA_KEY_ID" in answer["failures"][0]
    assert HaltFile(house.state).reason() is not None
    assert unfinished(house.journal) is None


def test_a_limit_that_cannot_be_read_stops_nothing(house: House) -> None:
    house.extra["PANIC_LIMIT_S"] = "soon"
    code, answer, _ = house.run()
    assert (code, answer["state"]) == (0, "FLAT")
    assert answer["failures"] == ["PANIC_LIMIT_S='soon' is not a number of seconds; the default held"]


@pytest.mark.parametrize("arguments", ["--ttl-minutes soon", "--ttl-minutes -1", "--exit-id x", "--no-such-option"])
def test_bad_usage(house: House, arguments: str) -> None:
    assert house.run(*arguments.split())[0] == 2
    assert HaltFile(house.state).reason() is None


def test_nothing_to_resume(house: House) -> None:
    code, answer, said = house.run("--resume")
    assert (code, answer) == (2, {})
    assert "no unfinished panic exit" in said
    assert HaltFile(house.state).reason() is None
    assert house.fake.calls == []


def test_a_proxy_that_cannot_be_used_still_answers(house: House) -> None:
    house.extra |= {"BROKER": "alpaca", "ALPACA_BASE_URL": "http://broker.invalid", "PANIC_LIMIT_S": "1"}
    house.extra |= {"ALPACA_KEY_ID": "k", "ALPACA_SECRET_KEY": "s", "ALL_PROXY": "socks4://user:word@127.0.0.1:1080"}
    house.extra["ALERT_WEBHOOK_URL"] = "http://127.0.0.1:1/"
    code, answer, said = house.run()
    assert (code, answer["state"], answer["ok"]) == (5, "FAILED", False)
    assert answer["failures"]
    assert "word@" not in said + json.dumps(answer)
    assert "Traceback" not in said
    assert unfinished(house.journal) is None


def test_a_socket_that_never_answers_at_all_is_not_waited_for_much_longer(house: House) -> None:
    """The first round tries everything once; after that the time that is up is looked at before each step."""
    house.server.silent, house.extra["PANIC_LIMIT_S"] = 10**6, "1"
    code, answer, said = house.run()
    assert (code, answer["state"]) == (5, "FAILED")
    assert said.partition("FAILED:")[0].count("no answer within 5 s") <= 4
    assert "round 2" not in said
