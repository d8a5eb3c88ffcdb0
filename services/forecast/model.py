"""The worker process that computes forecasts, kept away from the event loop: one call is one batch of series."""

import asyncio
import ctypes
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter

from services.forecast.numbers import FALLBACK, Numbers, forecast_batch, random_walk

PR_SET_PDEATHSIG = 1
NICENESS = 5
BATCH_TIMEOUT_S = 60.0
ATTEMPTS = 2

REPLACED = Counter("lexi_forecast_worker_replaced_total", "Worker processes that crashed or hung and were replaced")
FALLBACKS = Counter("lexi_forecast_fallback_total", "Forecasts made by the fallback instead of the model")

log = structlog.get_logger(__name__)


def die_with_parent(parent: int) -> None:
    """Make the kernel end this process with its parent, leave Ctrl-C to the parent, and give way to it. Linux only.

    Numbers come much faster than they can be judged, so on a busy machine the event loop goes first.
    """
    os.nice(NICENESS)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def own_pid() -> int:
    """The worker's process id."""
    return os.getpid()


class Forecaster:
    """Forecasts batches of series in one worker process.

    A worker that crashes or takes longer than `timeout_s` is replaced and the batch tried once more; if it fails
    again, the batch is answered by the fallback, computed here, which cannot fail.
    """

    def __init__(self, *, timeout_s: float = BATCH_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._pool: ProcessPoolExecutor | None = None
        self._pid: int | None = None
        self._lock = asyncio.Lock()

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None before the first batch."""
        return self._pid

    async def start(self) -> None:
        """Start the worker and let it import what it needs, so that the first batch is quick."""
        walk = np.exp(np.sin(np.arange(60, dtype=np.float64)))
        await self.forecast([walk], 1)

    async def forecast(self, series: Sequence[NDArray[np.float64]], steps: int) -> list[Numbers]:
        """Forecast each series of closing prices (oldest first, at least three) `steps` bars ahead."""
        if not series:
            return []
        numbers = await self._in_worker(series, steps)
        if numbers is None:
            numbers = [random_walk(prices, steps) for prices in series]
        FALLBACKS.inc(sum(one.model == FALLBACK for one in numbers))
        return numbers

    async def _in_worker(self, series: Sequence[NDArray[np.float64]], steps: int) -> list[Numbers] | None:
        async with self._lock:
            for attempt in range(ATTEMPTS):
                try:
                    future = await self._submit(series, steps)
                    async with asyncio.timeout(self._timeout_s):
                        return await asyncio.wrap_future(future)
                except (BrokenProcessPool, TimeoutError) as error:
                    log.warning("forecast_worker_replaced", attempt=attempt, error=repr(error), pid=self._pid)
                    REPLACED.inc()
                    self._discard()
        return None

    async def _submit(self, series: Sequence[NDArray[np.float64]], steps: int) -> Future[list[Numbers]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=die_with_parent, initargs=(os.getpid(),)
            )
            async with asyncio.timeout(self._timeout_s):
                self._pid = await asyncio.wrap_future(self._pool.submit(own_pid))
        return self._pool.submit(forecast_batch, series, steps)

    def _discard(self) -> None:
        """Let go of the pool; a hanging worker is killed, since it would never read the order to end."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if self._pid is not None:
            try:
                os.kill(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                self._pid = None
        pool.shutdown(wait=False, cancel_futures=True)
        self._pid = None

    async def close(self) -> None:
        """End the worker."""
        self._discard()
