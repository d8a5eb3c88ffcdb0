"""The panic exit as a process: `python -m libs.trading.panic` against a broker on a real socket."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from libs.trading.halt import EntryLock, HaltFile
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


def test_killed_at_each_journal_step(tmp_path: Path) -> None:
    """Resumed after each one: flat, by the same exit, each position closed once and none turned around."""
    for steps in range(1, 100):
        fake = FakeBroker()
        fake.hold("AAPL", 10)
        fake.rest("NVDA", "buy", 2)
        house = House(tmp_path / str(steps), Server(fake))
        exit_id = str(uuid4())
        code, answer, said = house.run(str(steps), "--exit-id", exit_id, program=("-c", KILLED))
        if code == 0:
            assert answer["state"] == "FLAT"
            break
        assert code == -9, said
        assert str(unfinished(house.journal)) == exit_id
        code, answer, said = house.run("--resume")
        assert (code, answer["state"], answer["exit_id"]) == (0, "FLAT", exit_id), said
        assert (answer["positions_closed"], answer["failures"]) == (1, [])
        assert (fake.positions, fake.open(), fake.turned) == ({}, [], [])
        assert house.journal.first_broken() is None
        assert unfinished(house.journal) is None
    else:
        raise AssertionError("it never came to its end")
    assert steps > 9


def test_a_new_request_goes_on_with_an_interrupted_exit(house: House) -> None:
    first, second = str(uuid4()), str(uuid4())
    house.run("3", "--exit-id", first, program=("-c", KILLED))
    code, answer, _ = house.run("--exit-id", second)
    assert (code, answer["exit_id"], answer["state"]) == (0, first, "FLAT")
    assert {str(entry.subject) for entry in house.journal.entries() if entry.action == "joined"} == {second}


def test_a_second_request_joins_the_first(house: House) -> None:
    house.fake.fills = False
    first = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    second = house.start()
    wait_for(lambda: any(entry.action == "joined" for entry in house.journal.entries()))
    house.fake.fills = True
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
    assert answers[0] == answers[1]
    assert (answers[0]["state"], first.returncode, second.returncode) == ("FLAT", 0, 0)
    assert house.fake.calls.count("DELETE /v2/positions") == 1


def test_who_joined_takes_over_when_the_first_is_killed(house: House) -> None:
    house.fake.fills = False
    first = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    second = house.start()
    wait_for(lambda: any(entry.action == "joined" for entry in house.journal.entries()))
    begun = unfinished(house.journal)
    first.kill()
    first.communicate()
    house.fake.fills = True
    answer = json.loads(second.communicate(timeout=60)[0])
    assert (answer["exit_id"], answer["state"], answer["positions_closed"]) == (str(begun), "FLAT", 2)
    assert house.fake.turned == []


def test_a_lock_that_no_exit_holds_is_not_waited_for(house: House) -> None:
    """As while somebody re-arms, who may be stuck: here this process, and the halt is taken away under the exit."""
    first = house.run()[1]
    house.fake.hold("TSLA", 1)

    def re_arm(method: str, path: str, number: int) -> Answer | None:
        if method == "DELETE" and path == "/v2/positions":
            HaltFile(house.state).remove(UUID(first["exit_id"]))
        return None

    house.fake.script = re_arm
    with (house.state / "panic.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, second, _ = house.run()
    assert (code, second["state"], second["positions_closed"]) == (0, "FLAT", 1)
    assert "went on beside it" in second["failures"][0]
    halt = HaltFile(house.state).read()
    assert halt is not None
    assert str(halt.id) == second["exit_id"], "put back by the exit that runs"


def test_a_request_after_the_end_begins_anew(house: House) -> None:
    first = house.run()[1]
    house.fake.hold("TSLA", 1)
    second = house.run()[1]
    assert (second["state"], second["positions_closed"]) == ("FLAT", 1)
    assert second["exit_id"] != first["exit_id"]
    assert second["halted_until"] == first["halted_until"], "the halt that stands is the first one's"


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


def test_a_state_folder_where_nothing_can_be_written(house: House) -> None:
    code, answer, said = house.run("--state", "/proc/self")
    assert (code, answer["state"], answer["positions_closed"]) == (4, "PARTIAL", 2)
    assert any("halt file could not be written" in failure for failure in answer["failures"])
    assert "ENTRIES ARE NOT STOPPED" in said


def test_a_full_disk(house: House) -> None:
    """Files can be made, and nothing can be written into them."""
    process = house.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    answer = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)
    assert HaltFile(house.state).path.read_bytes() == b""
    assert any("the halt file was written without its content" in failure for failure in answer["failures"])
    assert any("the journal could not be written" in failure for failure in answer["failures"])


def test_a_disk_that_hangs(house: House) -> None:
    """Reading the journal never returns: here a pipe that nobody writes to."""
    os.mkfifo(house.journal.path)
    code, answer, _ = house.run()
    assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)
    assert HaltFile(house.state).reason() is not None
    assert any("the disk has not answered" in failure for failure in answer["failures"])
    assert any("the disk does not answer" in failure for failure in answer["failures"])


def test_a_journal_full_of_rubbish(house: House) -> None:
    exit_id = str(uuid4())
    line = {"subject": exit_id, "seq": 1, "at": "2026-01-05T15:00:00+00:00", "action": "joined", "hash": ""}
    rubbish: list[object] = [{**line, "result": {"exit_id": "nobody"}}, {**line, "result": 7}, [], "x"]
    house.journal.path.write_text("".join(json.dumps(row) + "\n" for row in rubbish))
    code, answer, _ = house.run("--exit-id", exit_id)
    assert (code, answer["state"], answer["positions_closed"]) == (0, "FLAT", 2)


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


def test_readers_that_went_away_stop_nothing(house: House) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = house.start(stdout=writing, stderr=writing)
    os.close(writing)
    assert process.wait(timeout=60) == 0
    assert house.fake.positions == {}


def test_entries_wait_no_longer_than_the_halt(house: House) -> None:
    with EntryLock(house.state).sending():
        process = house.start()
        wait_for(lambda: house.fake.calls.count("GET /v2/positions") > 4)
        assert process.poll() is None, "an entry is on its way, so it cannot say flat"
    assert process.wait(timeout=60) == 0


class _Webhook(BaseHTTPRequestHandler):
    said: list[dict[str, Any]]
    hangs: threading.Event | None = None

    def do_POST(self) -> None:
        if self.hangs is not None:
            self.hangs.wait(20)
        self.said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Says nothing."""


@pytest.fixture
def webhook() -> Iterator[tuple[str, type[_Webhook]]]:
    handler = type("Handler", (_Webhook,), {"said": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/secret", handler
    server.shutdown()
    server.server_close()


def test_the_webhook_is_told(house: House, webhook: tuple[str, type[_Webhook]]) -> None:
    house.extra["ALERT_WEBHOOK_URL"], handler = webhook
    _, answer, _ = house.run("--reason", "fire")
    keys = [message["key"] for message in handler.said]
    assert keys == [f"panic:{answer['exit_id']}:begun", f"panic:{answer['exit_id']}:ended"]
    assert "FLAT" in handler.said[1]["text"]
    last = house.journal.entries()[-1]
    assert (last.action, last.result) == ("alerted", {"told": keys, "failed": []})
    assert unfinished(house.journal) is None


def test_a_webhook_that_hangs_delays_nothing(house: House, webhook: tuple[str, type[_Webhook]]) -> None:
    house.extra["ALERT_WEBHOOK_URL"], handler = webhook
    handler.hangs = threading.Event()
    process = house.start()
    assert process.stdout is not None
    answer = json.loads(process.stdout.readline())
    assert answer["state"] == "FLAT"
    assert handler.said == [], "the answer came while the webhook hung"
    handler.hangs.set()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_an_interrupt_leaves_it_to_be_resumed(house: House) -> None:
    house.fake.fills = False
    process = house.start()
    wait_for(lambda: "DELETE /v2/positions" in house.fake.calls)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in said
    assert "Traceback" not in said
    house.fake.fills = True
    assert house.run("--resume")[1]["state"] == "FLAT"
