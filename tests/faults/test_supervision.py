"""How the local stack starts, says what is wrong, and ends its processes."""

import os
import sys
from pathlib import Path

import pytest

from tests.acceptance.stack import eventually, free_ports
from tools.local_stack.plan import Service
from tools.local_stack.psql import connection_variables
from tools.local_stack.supervise import StackError, Supervised, claim, stop_all

COUNTS_SIGNALS = """
import signal, sys, time
signals = []
signal.signal(signal.SIGTERM, lambda *_: (signals.append(1), print("asked", flush=True)))
print("running", flush=True)
while not signals:
    time.sleep(0.01)
time.sleep(0.5)
"""


class Script(Service):
    """A service that is a few lines of Python."""

    @property
    def command(self) -> tuple[str, ...]:
        return sys.executable, "-c", self.module


def supervised(script: str, logs: Path) -> Supervised:
    port = int(free_ports(("port",))["port"])
    service = Script("example", script, "127.0.0.1", port, "EXAMPLE_PORT")
    return Supervised(service, env=os.environ, logs=logs, report=print)


def test_a_process_is_asked_to_stop_once(tmp_path: Path) -> None:
    process = supervised(COUNTS_SIGNALS, tmp_path)
    process.start()
    eventually(lambda: "running" in process.log_path.read_text() or None, what="it runs", within_s=20)
    stop_all([process], grace_s=20)
    assert process.child is not None
    assert process.child.returncode == 0
    assert process.log_path.read_text().split() == ["running", "asked"]


def test_a_failed_start_shows_what_was_said_since_and_nothing_older(tmp_path: Path) -> None:
    process = supervised("print('{\"event\": \"x\"}'); print('the new reason')", tmp_path)
    process.log_path.write_text("an older reason\n")
    process.start()
    with pytest.raises(StackError, match="example ended at its start:\nthe new reason\n") as raised:
        process.wait_until_ready()
    assert "older" not in str(raised.value)
    assert str(process.log_path) in str(raised.value)


def test_a_state_folder_has_one_stack_at_a_time(tmp_path: Path) -> None:
    held = claim(tmp_path)
    with pytest.raises(StackError, match="another `make run` holds"):
        claim(tmp_path)
    del held
    assert claim(tmp_path)


def test_psql_gets_the_place_without_a_password_on_its_command_line() -> None:
    assert connection_variables("postgresql://ann:p%40ss@db:6543/lexi") == {
        "PGHOST": "db",
        "PGPORT": "6543",
        "PGUSER": "ann",
        "PGPASSWORD": "p@ss",
        "PGDATABASE": "lexi",
    }
    assert connection_variables("postgresql://postgres@/lexi?host=%2Fsrv%2Fx") == {
        "PGHOST": "/srv/x",
        "PGUSER": "postgres",
        "PGDATABASE": "lexi",
    }
