"""The stack as a new user meets it: one command, the bundled prices, the embedded model, a real Postgres."""

import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import ROOT, RunningStack, eventually, free_ports, gone

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(600)]

# Two tickers and long limits: the embedded model must get there also beside other tests on a busy machine.
PATIENT = {"FORECAST_TICKERS": "AAPL,MSFT", "LLM_DEADLINE_S": "180", "LLM_FIRST_TOKEN_TIMEOUT_S": "150"}


@pytest.fixture(scope="module")
def stack(state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(state_folder, **PATIENT)
    running.start()
    running.wait_until_up()
    yield running
    running.stop()


def judged(stack: RunningStack) -> dict[str, Any] | None:
    _, signals = stack.get("API_PORT", "/signals/latest")
    found = [each for each in signals if each["llm"]["policy"]["status"] == "ok"]
    return found[0] if found else None


def test_a_real_forecast_carries_a_rationale_and_a_validated_policy(stack: RunningStack) -> None:
    signal_ = eventually(lambda: judged(stack), what="a forecast with a valid policy")
    rationale, policy = signal_["llm"]["rationale"], signal_["llm"]["policy"]
    assert signal_["lower"] < signal_["mean"] < signal_["upper"]
    assert rationale["text"]
    assert isinstance(policy["decision"]["allow"], bool)
    assert policy["raw"]
    assert len(policy["prompt_hash"]) == 64
    assert policy["model"] == "Lexi"
    status, call = stack.get("API_PORT", f"/llm/admin/call/{policy['call_id']}")
    assert status == 200
    assert call["success"] is True


def test_the_same_is_in_postgres_where_the_runbook_says(stack: RunningStack) -> None:
    eventually(lambda: judged(stack), what="a forecast with a valid policy")
    raws = stack.sql("select features->'llm'->'policy'->>'raw' from forecasts where judged_at is not null")
    assert any(raw.startswith("{") for raw in raws)


def test_the_curl_lines_work_as_printed(stack: RunningStack) -> None:
    lines = [line.strip() for line in stack.output().splitlines() if line.strip().startswith("curl ")]
    assert len(lines) == 8
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line.replace("curl -s", "curl -s --fail-with-body -m 60")],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{shlex.quote(line)}: {done.stdout}"
        assert done.stdout.startswith(("{", "["))


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    taken = RunningStack(tmp_path / "state")
    with socket.create_server(("127.0.0.1", int(taken.ports["API_PORT"]))):
        taken.start()
        assert taken.process is not None
        assert taken.process.wait(60) == 2
    assert f"port {taken.ports['API_PORT']} for api is taken" in taken.output()
    assert f"cannot start: port {taken.ports['API_PORT']} for api is taken" in taken.log("stack")
    assert "API_PORT" in taken.output()


def test_an_unreadable_setting_stops_the_start_and_is_named(tmp_path: Path) -> None:
    wrong = RunningStack(tmp_path / "state", API_PORT="eight")
    wrong.start()
    assert wrong.process is not None
    assert wrong.process.wait(60) == 2
    assert "API_PORT='eight'" in wrong.output()


def test_a_named_database_and_model_are_used_and_none_is_embedded(tmp_path: Path, database_url: str) -> None:
    model = free_ports(("model",))["model"]
    named = RunningStack(
        tmp_path / "state",
        DATABASE_URL=database_url,
        LLM_BASE_URL=f"http://127.0.0.1:{model}/v1",
        FORECAST_INTERVAL_S="1",
    )
    named.start()
    try:
        named.wait_until_up()
        commands = [" ".join(each.cmdline()) for each in named.children()]
        assert not [command for command in commands if "local_stack.lexi" in command or "pginstall" in command]
        assert not (named.state / "postgres").exists()
        assert "starting paper, api, forecast, jobs, analytics …" in named.log("stack")
        assert (named.state / "operator.key").read_text().strip() not in named.log("stack")
        signals = eventually(lambda: named.get("API_PORT", "/signals/latest")[1] or None, what="a forecast")
        assert {each["ticker"] for each in signals} == {"AAPL", "FB", "GOOG", "IBM", "MSFT"}
    finally:
        named.stop()


def test_an_arm_that_does_not_exist_stops_the_start_and_is_named(tmp_path: Path, database_url: str) -> None:
    wrong = RunningStack(tmp_path / "state", DATABASE_URL=database_url, LLM_AB_BUCKETS="policy:1.0.0,9.9.9")
    wrong.start()
    assert wrong.process is not None
    assert wrong.process.wait(120) == 2
    assert "LLM_AB_BUCKETS" in wrong.output()
    assert "9.9.9" in wrong.output()


def test_a_second_stack_on_the_same_state_is_refused(stack: RunningStack) -> None:
    second = RunningStack(stack.state)
    second._log = stack.state.parent / "second.out"
    second.start()
    assert second.process is not None
    assert second.process.wait(60) == 2
    assert "another `make run` holds" in second.output()


def test_kill_9_leaves_no_orphan_and_the_next_start_goes_on(stack: RunningStack) -> None:
    eventually(lambda: judged(stack), what="a forecast with a valid policy")
    before = stack.sql("select feed, max(as_of) from forecasts group by 1")
    started = stack.children()
    assert len(started) >= 6
    stack.send(signal.SIGKILL)
    eventually(lambda: gone(started), what="every child is gone", within_s=30)
    stack.start()
    stack.wait_until_up()

    def further() -> list[str] | None:
        now = stack.sql("select feed, max(as_of) from forecasts group by 1")
        return now if now > before else None

    after = eventually(further, what="the feed goes on")
    assert [row.split("|")[0] for row in after] == [row.split("|")[0] for row in before] == ["replay:1"]
    started = stack.children()
    assert stack.send(signal.SIGTERM) == 0
    assert gone(started), f"SIGTERM left {started}"
    assert "everything is stopped" in stack.output()
    assert "everything is stopped" in stack.log("stack")
