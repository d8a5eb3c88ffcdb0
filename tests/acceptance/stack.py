"""Runs the whole stack the way `make run` does, on ports and state of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tools.local_stack.postgres import EmbeddedPostgres

ROOT = Path(__file__).parents[2]
PORTS = ("API_PORT", "ANALYTICS_PORT", "FORECAST_METRICS_PORT", "JOBS_METRICS_PORT", "LEXI_PORT", "PAPER_PORT")
FOREIGN = ("LLM_", "DATABASE_", "PYTEST", "BROKER", "PAPER_", "ALPACA_", "ORDER_GATE_", "ENABLE_PANIC", "ALERT_")
"""Settings of the shell that a stack under test must not see."""
PATIENCE_S = 240.0

T = TypeVar("T")


def free_ports(names: tuple[str, ...]) -> dict[str, str]:
    """A free port for each name; all are held until all are chosen, so that none comes twice."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    try:
        return {name: str(each.getsockname()[1]) for name, each in zip(names, held, strict=True)}
    finally:
        for each in held:
            each.close()


def eventually(look: Callable[[], T | None], *, what: str, within_s: float = PATIENCE_S) -> T:
    """Ask again and again until there is an answer other than None; fail naming what was waited for."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(f"never happened within {within_s:.0f} s: {what}")


class RunningStack:
    """One `python -m tools.local_stack` and what a person would do with it."""

    def __init__(self, state: Path, **settings: str) -> None:
        self.state = state
        self.ports = free_ports(PORTS)
        self.settings = settings
        self.process: subprocess.Popen[str] | None = None
        self._log = state.parent / f"{state.name}.out"

    def start(self) -> None:
        """Start it; returns at once."""
        with self._log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tools.local_stack"],
                cwd=ROOT,
                env=self._environment(),
                stdout=out,
                stderr=out,
                text=True,
            )

    def _environment(self) -> dict[str, str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return known | self.ports | {"LOCAL_STATE": str(self.state)} | self.settings

    def output(self) -> str:
        """Everything it printed so far."""
        return self._log.read_text()

    def log(self, service: str, *, lines: int = 20) -> str:
        """The end of a service's log."""
        return "\n".join((self.state / "logs" / f"{service}.log").read_text().splitlines()[-lines:])

    def wait_until_up(self) -> None:
        """Wait for the overview that ends the start."""

        def up() -> bool | None:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"the stack ended with {self.process.returncode}:\n{self.output()}")
            return True if "Lexi Gateway is up" in self.output() else None

        eventually(up, what="the stack is up")

    def children(self) -> list[psutil.Process]:
        """Every process the stack started, and theirs."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, part_of_command: str) -> psutil.Process | None:
        """The direct child whose command line holds a text, None while there is none."""
        assert self.process is not None
        direct = psutil.Process(self.process.pid).children()
        return next((each for each in direct if any(part_of_command in word for word in words_of(each))), None)

    def child(self, part_of_command: str) -> psutil.Process:
        """The same, which must be there."""
        found = self.find(part_of_command)
        assert found is not None, f"no process of {part_of_command}:\n{self.output()}"
        return found

    def send(self, number: signal.Signals) -> int:
        """Signal the stack alone and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def stop(self) -> None:
        """End it if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGTERM)

    def get(self, port: str, path: str, *, body: object = None, timeout_s: float = 60) -> tuple[int, Any]:
        """Status and JSON (or text) of a route, asked with the operator's key; a POST where there is a body."""
        key = (self.state / "operator.key").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[port]}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        text = raw.decode()
        return status, json.loads(text) if text.startswith(("{", "[")) else text

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        """What a person types beside the running stack."""
        return subprocess.run(["make", *words], cwd=ROOT, env=self._environment(), capture_output=True, text=True)

    def sql(self, statement: str) -> list[str]:
        """Rows of a query on the stack's own database, columns joined by `|`."""
        answer = EmbeddedPostgres(self.state / "postgres").query(statement, database="lexi")
        return answer.splitlines()


class ModelServer:
    """A fake engine in a process of its own, so that it can be frozen and killed.

    It answers within the constraint asked for, which permits every entry, or with `reply`, whatever it was asked.
    """

    def __init__(self, *, reply: str | None = None) -> None:
        self.port = free_ports(("model",))["model"]
        self.process: subprocess.Popen[bytes] | None = None
        self._reply = reply

    def start(self) -> None:
        """Start it on its port."""
        options = ["--dialect", "vllm", "--slots", "16", "--delay-ms", "50"]
        options += ["--reply", self._reply or "A steady drift on ordinary volume."]
        options += [] if self._reply else ["--reply-by-constraint"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.engine", "--port", self.port, *options],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait(10)


def missing_forecasts(stack: RunningStack) -> list[str]:
    """Ticks and tickers whose bar was stored without a forecast; the newest tick may still be on its way."""
    return stack.sql("""
        select b.feed, b.as_of, b.ticker from bars b
        where b.as_of < (select max(as_of) from bars newest where newest.feed = b.feed)
          and not exists (
            select 1 from forecasts f where f.feed = b.feed and f.as_of = b.as_of and f.ticker = b.ticker)""")


def lost_calls(stack: RunningStack) -> list[str]:
    """Calls that a forecast judged more than ten seconds ago names, and that are not on record."""
    named = "(features->'llm'->'policy'->>'call_id')::uuid"
    return stack.sql(f"""
        select {named} from forecasts f where {named} is not null and f.judged_at < now() - interval '10 seconds'
          and not exists (select 1 from llm_calls c where c.id = {named})""")


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; empty for one that has just ended, as Postgres' workers do all the time."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process]) -> bool | None:
    """True once none of these processes is left."""
    return None if any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes) else True
