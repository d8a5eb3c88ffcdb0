"""A night in which everything breaks at random: `make proof`. SOAK_S sets its length in seconds, SOAK_SEED its luck."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.stack import ModelServer, RunningStack, eventually, lost_calls, missing_forecasts

LENGTH_S = float(os.environ.get("SOAK_S", "300"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
GROWTH_LIMIT = 1.3

pytestmark = pytest.mark.timeout(LENGTH_S + 600)


@pytest.fixture
def model() -> Iterator[ModelServer]:
    server = ModelServer()
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.send(signal.SIGKILL)


@pytest.fixture
def stack(model: ModelServer, state_folder: Path) -> Iterator[RunningStack]:
    running = RunningStack(
        state_folder,
        LLM_BASE_URL=f"http://127.0.0.1:{model.port}/v1",
        LLM_HEALTH_TTL_S="2",
        LLM_DEADLINE_S="3",
        LLM_FIRST_TOKEN_TIMEOUT_S="1",
        FORECAST_INTERVAL_S="0.25",
    )
    running.start()
    running.wait_until_up()
    yield running
    running.stop()


def memory_mb(stack: RunningStack) -> dict[str, float]:
    """Resident memory of our services, MB."""
    services = ("api", "forecast", "jobs", "analytics")
    return {name: stack.child(f"services.{name}").memory_info().rss / 1e6 for name in services}


def break_something(stack: RunningStack, model: ModelServer, dice: random.Random) -> str:
    """One fault, and its end."""
    pause = dice.uniform(1, 6)
    match dice.choice(("freeze", "kill model", "kill postgres", "kill forecast", "quiet")):
        case "freeze":
            model.send(signal.SIGSTOP)
            time.sleep(pause)
            model.send(signal.SIGCONT)
            return "model frozen"
        case "kill model":
            model.send(signal.SIGKILL)
            time.sleep(pause)
            model.start()
            return "model killed"
        case "kill postgres":
            return kill(stack, "pginstall", pause)
        case "kill forecast":
            return kill(stack, "services.forecast", pause)
        case _:
            time.sleep(pause)
            return "nothing"


def kill(stack: RunningStack, what: str, pause: float) -> str:
    """End a process the hard way, unless the last fault has it down still."""
    victim = stack.find(what)
    if victim is not None:
        victim.send_signal(signal.SIGKILL)
    time.sleep(pause)
    return f"{what} killed" if victim is not None else f"{what} still down"


def test_a_night_of_faults_loses_nothing_and_grows_nothing(stack: RunningStack, model: ModelServer) -> None:
    dice = random.Random(SEED)
    time.sleep(min(30.0, LENGTH_S / 5))
    before = memory_mb(stack)
    ends = time.monotonic() + LENGTH_S
    happened: dict[str, int] = {}
    while time.monotonic() < ends:
        what = break_something(stack, model, dice)
        happened[what] = happened.get(what, 0) + 1
        time.sleep(dice.uniform(1, 8))
    eventually(lambda: True if healthy(stack) else None, what="everything is well again", within_s=120)
    after = memory_mb(stack)
    counts = stack.sql("select count(*), count(judged_at), count(distinct feed) from forecasts")[0]
    print(f"\n{LENGTH_S:.0f} s, seed {SEED}: {happened}; forecasts|judged|runs {counts}; MB {before} -> {after}")
    assert missing_forecasts(stack) == []
    eventually(lambda: True if not lost_calls(stack) else None, what="every call named is on record", within_s=60)
    for name, size in after.items():
        assert size < before[name] * GROWTH_LIMIT + 20, f"{name} grew from {before[name]:.0f} to {size:.0f} MB"


def healthy(stack: RunningStack) -> bool:
    """Whether the model is well and every service is ready."""
    try:
        model_ok = stack.get("API_PORT", "/llm/health")[1]["ok"]
        ports = ("API_PORT", "ANALYTICS_PORT", "FORECAST_METRICS_PORT", "JOBS_METRICS_PORT")
        return bool(model_ok) and all(stack.get(port, "/ready")[0] == 200 for port in ports)
    except (OSError, KeyError, psutil.NoSuchProcess):
        return False
