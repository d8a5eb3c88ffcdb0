"""What comes round in a process goes on whatever fails, and ends when told to."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from services.jobs.rounds import Rounds


class Step:
    """A step that fails as told, in turn, and then works."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.runs = 0
        self.worked = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        if self.failures:
            raise self.failures.pop(0)
        self.worked.set()


def counted(name: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("lexi_jobs_rounds_total", {"round": name, "outcome": outcome}) or 0.0


async def run_until_it_works(step: Step, name: str) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(Rounds(name, step, seconds=0.001).run(stop))
    await step.worked.wait()
    stop.set()
    await task


@pytest.mark.parametrize(
    ("failure", "outcome"), [(ConnectionError("away"), "away"), (TimeoutError(), "away"), (KeyError("bug"), "failed")]
)
async def test_a_failure_is_counted_and_the_next_round_comes(failure: Exception, outcome: str) -> None:
    name = f"failing-{outcome}-{type(failure).__name__}"
    step = Step(failure, failure)
    await run_until_it_works(step, name)
    assert counted(name, outcome) == 2
    assert counted(name, "done") >= 1


async def test_it_comes_round() -> None:
    stop = asyncio.Event()
    count = 0

    async def step() -> None:
        nonlocal count
        count += 1
        if count == 5:
            stop.set()

    await Rounds("turning", step, seconds=0.001).run(stop)
    assert count in {5, 6}, "a step that is due in the very moment of the stop may still begin"


async def test_a_step_under_way_is_cancelled_by_the_stop() -> None:
    stop, begun, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(Rounds("endless", step, seconds=0.001).run(stop))
    await begun.wait()
    stop.set()
    await task
    assert cancelled.is_set()


async def test_cancelling_the_rounds_cancels_the_step() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(Rounds("cancelled", step, seconds=0.001).run(asyncio.Event()))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert cancelled.is_set()
    assert task.cancelled()
