"""The whole stack while the model freezes, dies and returns, and while Postgres is killed under it."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stack import ModelServer, RunningStack, eventually, lost_calls, missing_forecasts, words_of

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(600)]

HEALTH_TTL_S = 2


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.send(signal.SIGKILL)


@pytest.fixture(scope="module")
def stack(model: ModelServer, state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(
        state_folder,
        LLM_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
        LLM_HEALTH_TTL_S=str(HEALTH_TTL_S),
        LLM_DEADLINE_S="4",
        LLM_FIRST_TOKEN_TIMEOUT_S="2",
        FORECAST_INTERVAL_S="1",
    )
    running.start()
    running.wait_until_up()
    yield running
    running.stop()


def health(stack: RunningStack) -> dict[str, Any]:
    asked = time.monotonic()
    status, answer = stack.get("API_PORT", "/llm/health", timeout_s=HEALTH_TTL_S + 8)
    assert status == 200
    assert time.monotonic() - asked < HEALTH_TTL_S + 8, "health hangs with the model"
    return answer


def wait_for_health(stack: RunningStack, *, ok: bool) -> None:
    eventually(lambda: True if health(stack)["ok"] is ok else None, what=f"/llm/health says ok: {ok}", within_s=60)


def forecasts(stack: RunningStack) -> int:
    return int(stack.sql("select count(*) from forecasts")[0])


def judged_ok(stack: RunningStack) -> int:
    status = "features->'llm'->'policy'->>'status'"
    return int(stack.sql(f"select count(*) from forecasts where {status} = 'ok'")[0])


def grows(stack: RunningStack, count: Any, *, what: str) -> None:
    before = count(stack)
    eventually(lambda: True if count(stack) > before + 4 else None, what=what, within_s=60)


def test_a_frozen_model_is_reported_and_forecasts_keep_arriving(stack: RunningStack, model: ModelServer) -> None:
    wait_for_health(stack, ok=True)
    grows(stack, judged_ok, what="judged forecasts")
    model.send(signal.SIGSTOP)
    wait_for_health(stack, ok=False)
    grows(stack, forecasts, what="forecasts while the model is frozen")
    newest = json.loads(
        stack.sql("select features->'llm' from forecasts order by judged_at desc nulls last limit 1")[0]
    )
    assert newest["v"] == 1
    model.send(signal.SIGCONT)
    wait_for_health(stack, ok=True)
    grows(stack, judged_ok, what="judged forecasts after the model thawed")


def test_a_killed_model_heals_without_a_restart_of_ours(stack: RunningStack, model: ModelServer) -> None:
    wait_for_health(stack, ok=True)
    ours = sorted(each.pid for each in stack.children() if "services." in " ".join(words_of(each)))
    model.send(signal.SIGKILL)
    wait_for_health(stack, ok=False)
    grows(stack, forecasts, what="forecasts without a model")
    unavailable = "features->'llm'->'policy'->>'status' = 'unavailable'"
    eventually(
        lambda: stack.sql(f"select 1 from forecasts where {unavailable} limit 1") or None,
        what="a forecast that says the model was unavailable",
    )
    model.start()
    wait_for_health(stack, ok=True)
    grows(stack, judged_ok, what="judged forecasts after the model is back")
    still = sorted(each.pid for each in stack.children() if "services." in " ".join(words_of(each)))
    assert ours == still, stack.output() + stack.log("forecast")


def test_killed_postgres_loses_no_forecast_and_no_call(stack: RunningStack) -> None:
    wait_for_health(stack, ok=True)
    grows(stack, judged_ok, what="judged forecasts")
    stack.child("pginstall").send_signal(signal.SIGKILL)
    eventually(lambda: answers(stack), what="Postgres is back", within_s=60)
    grows(stack, judged_ok, what="judged forecasts after Postgres is back")
    assert missing_forecasts(stack) == []
    eventually(
        lambda: True if not lost_calls(stack) else None,
        what="every call a forecast names is on record",
        within_s=60,
    )


def answers(stack: RunningStack) -> bool | None:
    status, _ = stack.get("API_PORT", "/signals/latest", timeout_s=15)
    return True if status == 200 else None
