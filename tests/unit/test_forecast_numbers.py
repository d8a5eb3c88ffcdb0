"""Forecasts from prices, in this process and in the worker process."""

import asyncio
import math
import os
import signal
import sys

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.forecast.model import Forecaster
from services.forecast.numbers import FALLBACK, THETA, random_walk


def walk(seed: int, length: int = 250) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.02, length)))


def test_the_fallback_follows_its_formula() -> None:
    prices = np.array([100.0, 110.0, 99.0, 108.9])
    returns = [math.log(1.1), math.log(0.9), math.log(1.1)]
    drift = sum(returns) / 3
    spread = math.sqrt(sum((one - drift) ** 2 for one in returns) / 2)
    numbers = random_walk(prices, 2)
    assert numbers.model == FALLBACK
    assert numbers.mean == pytest.approx(108.9 * math.exp(2 * drift))
    width = 1.2815515655446004 * spread * math.sqrt(2 * (1 + 2 / 3))
    assert numbers.upper == pytest.approx(numbers.mean * math.exp(width))
    assert numbers.lower == pytest.approx(numbers.mean * math.exp(-width))


@given(st.lists(st.floats(1e-6, 1e9), min_size=3, max_size=60), st.integers(1, 20))
def test_the_fallback_is_ordered_for_any_prices(prices: list[float], steps: int) -> None:
    numbers = random_walk(np.array(prices), steps)
    assert 0 < numbers.lower <= numbers.mean <= numbers.upper < math.inf


async def test_the_worker_forecasts_in_order_and_is_replaced_when_it_dies() -> None:
    forecaster = Forecaster()
    try:
        series = [walk(1), np.full(65, 5.0), walk(2)]
        numbers = await forecaster.forecast(series, 1)
        assert [one.model for one in numbers] == [THETA, FALLBACK, THETA]
        for one, prices in zip(numbers, series, strict=True):
            assert one.lower <= one.mean <= one.upper
            assert one.mean == pytest.approx(prices[-1], rel=0.05)
        later = await forecaster.forecast(series, 5)
        assert later[0].upper - later[0].lower > numbers[0].upper - numbers[0].lower

        first = forecaster.worker_pid
        assert first is not None
        assert first != os.getpid()
        os.kill(first, signal.SIGKILL)
        assert await forecaster.forecast(series, 1) == numbers
        assert forecaster.worker_pid not in {None, first}
    finally:
        await forecaster.close()
    assert await forecaster.forecast([], 1) == []


async def test_a_worker_that_hangs_is_killed_and_the_batch_is_answered() -> None:
    forecaster = Forecaster(timeout_s=30)
    try:
        await forecaster.start()
        pid = forecaster.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        forecaster._timeout_s = 0.3
        numbers = await forecaster.forecast([walk(3)], 1)
        assert [one.model for one in numbers] == [FALLBACK]
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    finally:
        await forecaster.close()


CHILD = """
import asyncio, sys
from services.forecast.model import Forecaster

async def main():
    forecaster = Forecaster()
    await forecaster.start()
    heavy = [name for name in ("pandas", "statsforecast") if name in sys.modules]
    print(forecaster.worker_pid, heavy, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_the_worker_dies_with_its_parent_and_the_parent_stays_light(tmp_path: "os.PathLike[str]") -> None:
    script = os.path.join(tmp_path, "parent.py")  # noqa: PTH118
    with open(script, "w", encoding="utf-8") as file:  # noqa: PTH123, ASYNC230
        file.write(CHILD)
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},  # noqa: PTH109
    )
    assert parent.stdout is not None
    pid, heavy = (await parent.stdout.readline()).decode().split(maxsplit=1)
    assert heavy.strip() == "[]"
    worker = psutil.Process(int(pid))
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(20):
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110 - another process's end
            await asyncio.sleep(0.05)
