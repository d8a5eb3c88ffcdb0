"""Forecasts, orders, switches, panic exits, faults and deaths in random order, each seed its own story.

`SIM_SEEDS=500` tells how many seeds are played (50 where unset), `SIM_SEED=17` plays just one, `SIM_STEPS` how long.
"""

import asyncio
import os
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from tests.simulation.ending import end_well
from tests.simulation.invariants import Violation
from tests.simulation.steps import Steps
from tests.simulation.virtual_loop import VirtualLoop
from tests.simulation.world import open_world

ONE = os.environ.get("SIM_SEED", "")
SEEDS = [int(ONE)] if ONE else list(range(int(os.environ.get("SIM_SEEDS", "50"))))
STEPS = int(os.environ.get("SIM_STEPS", "30"))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_must_hold_holds_after_every_step(seed: int, database_url: str, tmp_path: Path) -> None:
    with capture_logs(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(play(seed, database_url, tmp_path))


async def play(seed: int, url: str, state: Path) -> None:
    """One seed's story, and its end: everything is well again, the account is flat, and the house trades."""
    random = Random(seed)
    world = await open_world(url, state, random)
    steps = Steps(world, random)
    try:
        for _ in range(STEPS):
            await steps.take()
            await world.settle()
            await world.watch.check(world.house.engine, world.clock.monotonic())
        await end_well(world, steps)
    except Violation as broken:
        raise AssertionError(f"SIM_SEED={seed}: {broken}\nafter {' '.join(world.trail)}") from broken
    finally:
        await world.house.close()
