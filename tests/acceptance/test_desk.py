"""The desk as its people meet it: a model that denies everything, shadow, enforce, the kill switch, panic, re-arm."""

import signal
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import ModelServer, RunningStack, eventually

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(600)]

DENIES = '{"allow": false, "reasons": ["COVERAGE"], "flags": []}'
_numbers = count()


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    server = ModelServer(reply=DENIES)
    server.start()
    yield server
    server.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(model: ModelServer, state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(
        state_folder,
        LLM_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
        FORECAST_INTERVAL_S="2",
        MAX_ORDERS_PER_MIN="600",
    )
    running.start()
    running.wait_until_up()
    eventually(lambda: running.find("follow_signal"), what="the example runs")
    yield running
    running.stop()


def entry(stack: RunningStack) -> tuple[int, dict[str, Any]]:
    """Send a new entry that only the policy speaks against, by a forecast that was judged."""

    def judged() -> dict[str, Any] | None:
        _, signals = stack.get("API_PORT", "/signals/latest")
        ready = [each for each in signals if each["llm"]["policy"]["status"] == "ok"]
        return next((each for each in ready if each["llm"]["inputs"]["signal"]["side"] != "none"), None)

    def sent() -> tuple[int, dict[str, Any]] | None:
        found = eventually(judged, what="a judged forecast with a side")
        said = found["llm"]["inputs"]["signal"]
        order = {
            "ticker": found["ticker"],
            "side": said["side"],
            "qty": 1,
            "ref_price": round(said["last_price"], 2),
            "client_order_id": f"desk-{next(_numbers)}",
        }
        status, told = stack.get("API_PORT", "/strategist/orders", body=order)
        # The next bar may have come in between, and its forecast not been judged yet or point the other way; and in
        # the first second the paper broker has not heard of the ticker.
        passing = {"NO_DECISION", "MISMATCH", "RECONCILING"}.intersection(told["reasons"])
        return None if passing or status == 502 else (status, told)

    return eventually(sent, what="an order on a judged forecast")


def turn(stack: RunningStack, name: str, value: bool) -> dict[str, Any]:
    body = {"name": name, "value": value, "operator": "ann", "reason": "to try it"}
    status, told = stack.get("API_PORT", "/strategist/switches", body=body)
    assert status == 200, told
    return told


def at_the_broker(stack: RunningStack) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Positions and open orders as the broker itself has them."""
    return stack.get("PAPER_PORT", "/v2/positions")[1], stack.get("PAPER_PORT", "/v2/orders")[1]


def test_in_shadow_an_order_the_policy_denies_is_recorded_and_passes(stack: RunningStack) -> None:
    status, told = entry(stack)
    assert status == 200, told
    assert (told["verdict"], told["would_have"], told["mode"]) == ("allow", "deny", "shadow")
    assert "POLICY_DENY" in told["reasons"]
    _, recent = stack.get("API_PORT", "/strategist/recent?limit=100")
    row = next(each for each in recent if each["verdict_id"] == told["verdict_id"])
    assert (row["key_name"], row["reasons"]) == ("operator", told["reasons"])

    def filled() -> bool | None:
        _, orders = stack.get("API_PORT", "/strategist/orders?limit=100")
        mine = [each for each in orders if each["verdict_id"] == told["verdict_id"]]
        return True if mine and mine[0]["status"] == "filled" else None

    eventually(filled, what="the order is filled, as reconciled")


def test_the_example_trades_and_shadow_is_reported(stack: RunningStack) -> None:
    log = stack.state / "logs" / "follow-signal.log"
    eventually(lambda: "enters" in log.read_text() or None, what="the example enters")
    eventually(lambda: "leaves" in log.read_text() or None, what="the example leaves")
    assert "enforce would deny" in log.read_text()

    def settled() -> dict[str, Any] | None:
        _, report = stack.get("ANALYTICS_PORT", "/analytics/shadow")
        return report if report["blocked"]["settled"] else None

    report = eventually(settled, what="an outcome of a blocked entry")
    assert report["allowed"]["entries"] == 0
    assert "POLICY_DENY" in {each["reason"] for each in report["reasons"]}
    assert report["summary"].startswith("not enough data yet")


def test_in_enforce_it_is_refused_and_the_kill_switch_changes_the_very_next_verdict(stack: RunningStack) -> None:
    turn(stack, "LLM_SHADOW_MODE", value=False)
    status, told = entry(stack)
    assert (status, told["verdict"], told["mode"]) == (409, "deny", "enforce")
    assert "POLICY_DENY" in told["reasons"]
    stand = turn(stack, "ORDER_GATE_DISABLED", value=True)
    assert stand["expires_at"] is not None
    status, told = entry(stack)
    assert (status, told["verdict"], told["would_have"], told["mode"]) == (200, "allow", "deny", "disabled")
    assert "KILL_SWITCH" in told["reasons"]
    stack.sql("update switches set expires_at = now() where expires_at is not null")  # its time has come
    status, told = entry(stack)
    assert (status, told["mode"]) == (409, "enforce")
    turn(stack, "LLM_SHADOW_MODE", value=True)
    assert entry(stack)[0] == 200


def test_a_panic_exit_leaves_the_account_flat_and_only_a_person_lets_entries_in_again(stack: RunningStack) -> None:
    assert stack.get("API_PORT", "/strategist/panic-exit", body={})[0] == 403
    (stack.state / "panic.enabled").touch()
    eventually(lambda: at_the_broker(stack)[0] or None, what="there is something to close")
    status, rehearsed = stack.get("API_PORT", "/strategist/panic-exit", body={"dry_run": True})
    assert (status, rehearsed["state"]) == (200, "DRY_RUN")
    assert entry(stack)[0] == 200  # a dry run halts nothing
    status, done = stack.get("API_PORT", "/strategist/panic-exit", body={"reason": "to try it", "ttl_minutes": 60})
    assert (status, done["state"], done["ok"], done["failures"]) == (200, "FLAT", True, [])
    assert at_the_broker(stack) == ([], [])
    status, told = entry(stack)
    assert (status, told["verdict"]) == (409, "deny")
    assert "HALTED" in told["reasons"]
    _, record = stack.get("API_PORT", f"/strategist/panic-exit/{done['exit_id']}")
    assert record["steps"][0]["action"] == "begun"
    assert record["steps"][-1]["action"] == "ended"

    stack.send(signal.SIGKILL)
    stack.start()
    stack.wait_until_up()
    _, halt = stack.get("API_PORT", "/strategist/halt")
    assert halt["halted"] is True
    assert datetime.fromisoformat(halt["halted_until"]) == datetime.fromisoformat(done["halted_until"])
    assert "HALTED" in entry(stack)[1]["reasons"]
    assert at_the_broker(stack) == ([], [])

    person = {"operator": "ann", "reason": "tried", "confirm": "REARM"}
    status, refused = stack.get("API_PORT", "/strategist/rearm", body=person)
    assert status == 409, refused
    assert "re-arm after that" in refused["detail"]
    stack.sql("update halts set halted_until = now()")  # the hour has passed
    assert stack.get("API_PORT", "/strategist/rearm", body={**person, "confirm": "yes"})[0] == 422
    status, rearmed = stack.get("API_PORT", "/strategist/rearm", body=person)
    assert status == 200, rearmed
    assert not (stack.state / "halt").exists()
    assert stack.get("API_PORT", "/strategist/halt")[1]["halted"] is False
    assert entry(stack)[0] == 200


def test_the_chain_of_everything_above_holds(stack: RunningStack) -> None:
    seqs = [int(row) for row in stack.sql("select seq from gate_verdicts order by seq")]
    assert seqs == list(range(1, len(seqs) + 1))
    done = stack.make("chain")
    assert done.returncode == 0, done.stderr
    assert "rows hold" in done.stderr
