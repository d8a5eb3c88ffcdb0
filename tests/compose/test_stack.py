"""The main job, over what `docker compose up -d` brought: forecast, gate, order, panic, and Postgres going away."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from tests.acceptance.stack import eventually
from tests.compose.stack import PORTS, ComposeStack, at_the_broker, judged

pytestmark = pytest.mark.timeout(2400)

KEPT = ("forecasts", "llm_calls", "gate_verdicts", "orders", "switches", "halts")
_numbers = count()


def order(stack: ComposeStack) -> dict[str, Any]:
    """A new entry that follows a judged forecast."""
    found = eventually(judged(stack), what="a judged forecast with a side")
    said = found["llm"]["inputs"]["signal"]
    return {
        "ticker": found["ticker"],
        "side": said["side"],
        "qty": 1,
        "ref_price": round(said["last_price"], 2),
        "client_order_id": f"compose-{next(_numbers)}",
    }


def entry(stack: ComposeStack) -> dict[str, Any]:
    """Send entries until one meets a forecast that nothing speaks against."""

    def sent() -> dict[str, Any] | None:
        status, told = stack.get("API_PORT", "/strategist/orders", body=order(stack))
        return told if status == 200 else None

    return eventually(sent, what="an entry passes")


def test_everything_is_healthy_and_the_model_on_the_host_is_reached(stack: ComposeStack) -> None:
    states = [json.loads(line) for line in stack.compose("ps", "-a", "--format", "json").splitlines()]
    health = {each["Service"]: (each["State"], each["Health"]) for each in states}
    assert health.pop("setup") == health.pop("migrate") == ("exited", "")
    assert set(health) == {"postgres", "api", "forecast", "jobs", "analytics", "paper"}
    assert set(health.values()) == {("running", "healthy")}
    for port in PORTS:
        assert stack.get(port, "/health") == (200, {"status": "ok"})
    status, told = stack.get("API_PORT", "/llm/health")
    assert (status, told["ok"], told["model"]) == (200, True, "Lexi")


def test_a_forecast_has_rationale_and_policy_in_postgres_and_in_the_signals(stack: ComposeStack) -> None:
    found = eventually(judged(stack), what="a judged forecast")
    assert found["lower"] < found["mean"] < found["upper"]
    assert found["llm"]["rationale"]["text"] == "A steady drift on ordinary volume."
    assert found["llm"]["policy"]["decision"]["allow"] is True
    status, call = stack.get("API_PORT", f"/llm/admin/call/{found['llm']['policy']['call_id']}")
    assert (status, call["success"]) == (200, True)
    raws = stack.sql("select features->'llm'->'policy'->>'raw' from forecasts where judged_at is not null")
    assert any(raw.startswith("{") for raw in raws)
    assert any(stack.sql("select features->'llm'->'rationale'->>'text' from forecasts where judged_at is not null"))


def test_an_order_passes_the_gate_and_is_filled_at_the_paper_broker(stack: ComposeStack) -> None:
    told = entry(stack)
    assert (told["verdict"], told["mode"]) == ("allow", "shadow")

    def filled() -> bool | None:
        _, orders = stack.get("API_PORT", "/strategist/orders?limit=100")
        mine = [each for each in orders if each["verdict_id"] == told["verdict_id"]]
        return True if mine and mine[0]["status"] == "filled" else None

    eventually(filled, what="the order is filled, as reconciled")
    assert at_the_broker(stack)[0]
    assert stack.sql(f"select verdict from gate_verdicts where id = '{told['verdict_id']}'") == ["allow"]


def test_a_panic_exit_ends_flat_and_a_person_lets_entries_in_again(stack: ComposeStack) -> None:
    entry(stack)
    body = {"reason": "to try it", "ttl_minutes": 60}
    status, done = stack.get("API_PORT", "/strategist/panic-exit", body=body)
    assert (status, done["state"], done["failures"]) == (200, "FLAT", [])
    assert at_the_broker(stack) == ([], [])
    status, told = stack.get("API_PORT", "/strategist/orders", body=order(stack))
    assert (status, "HALTED" in told["reasons"]) == (409, True)
    stack.compose("restart", "api", "jobs")
    stack.until_ready()
    assert "HALTED" in stack.get("API_PORT", "/strategist/orders", body=order(stack))[1]["reasons"]
    person = {"operator": "ann", "reason": "tried", "confirm": "REARM"}
    assert stack.get("API_PORT", "/strategist/rearm", body=person)[0] == 409
    stack.sql("update halts set halted_until = now()")  # the hour has passed
    status, told = stack.get("API_PORT", "/strategist/rearm", body=person)
    assert status == 200, told
    entry(stack)


class Asking:
    """A strategy that asks for verdicts all the time and remembers each it was told."""

    def __init__(self, stack: ComposeStack) -> None:
        self.told: list[str] = []
        self.refused = 0
        self._stack, self._over = stack, threading.Event()
        self._body = order(stack)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop asking."""
        self._over.set()
        self._thread.join(90)

    def _run(self) -> None:
        while not self._over.is_set():
            body = self._body | {"client_order_id": f"asking-{uuid4()}"}
            told: Any = {}
            try:
                status, told = self._stack.get("API_PORT", "/strategist/gate", body=body, timeout_s=30)
            except OSError:
                status = 0
            if status == 200 and told.get("verdict_id"):
                self.told.append(told["verdict_id"])
            else:
                self.refused += 1
            time.sleep(0.05)


def restart(stack: ComposeStack) -> None:
    """As an upgrade of the host does it."""
    subprocess.run(["docker", "restart", stack.container("postgres")], check=True, capture_output=True)


def kill(stack: ComposeStack) -> None:
    """As the kernel does it when memory runs out; Docker starts it again by itself."""
    before = stack.inspect("postgres")
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    eventually(
        lambda: stack.inspect("postgres")["RestartCount"] > before["RestartCount"] or None,
        what="Docker starts postgres again",
    )


@pytest.mark.parametrize("end", [restart, kill])
def test_postgres_ends_in_the_middle_and_nothing_is_lost(stack: ComposeStack, end: Callable[[Any], None]) -> None:
    entry(stack)
    with Asking(stack) as asking:
        eventually(lambda: len(asking.told) > 5 or None, what="verdicts before")
        before = {table: int(stack.sql(f"select count(*) from {table}")[0]) for table in KEPT}
        end(stack)
        stack.until_ready()
        told = len(asking.told)
        eventually(lambda: len(asking.told) > told + 5 or None, what="verdicts after")
    after = {table: int(stack.sql(f"select count(*) from {table}")[0]) for table in KEPT}
    assert all(after[table] >= before[table] for table in KEPT), (before, after)
    stored = set(stack.sql("select id from gate_verdicts"))
    assert set(asking.told) <= stored, "a verdict was told and is not stored"
    newest = max(found["as_of"] for found in eventually(lambda: _signals(stack), what="signals"))
    eventually(
        lambda: max(each["as_of"] for each in _signals(stack) or [{"as_of": newest}]) > newest or None,
        what="forecasts go on by themselves",
    )
    chain = stack.run("docker", "compose", "run", "--rm", "-T", "tools", "python", "-m", "libs.trading.audit", "verify")
    assert chain.returncode == 0, chain.stderr
    assert "rows hold" in chain.stderr


def _signals(stack: ComposeStack) -> list[dict[str, Any]] | None:
    status, found = stack.get("API_PORT", "/signals/latest")
    return found if status == 200 and found else None


def test_without_postgres_everybody_is_red_and_green_again_when_it_is_back(stack: ComposeStack) -> None:
    stack.compose("stop", "postgres")
    for port in ("API_PORT", "ANALYTICS_PORT", "FORECAST_METRICS_PORT", "JOBS_METRICS_PORT"):
        eventually(
            lambda port=port: "red    database" in stack.ready(port)[1] or None,
            what=f"{port} is red",
        )
        assert stack.get(port, "/health")[0] == 200
    status, told = stack.get("API_PORT", "/llm/health")
    assert (status, told["ok"]) == (200, True)
    stack.compose("start", "postgres")
    stack.until_ready()
    eventually(judged(stack), what="a judged forecast")
