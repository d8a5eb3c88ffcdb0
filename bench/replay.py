"""Does a batch replay use its share of the slots, and hold none beyond it, while live work wants the same engine?

A fake engine with 16 slots and 250 ms per call counts who holds how many. The jobs' role works on a batch with its
share of 4; the role of the forecast loop asks with the priority of a policy: not at all, 12 calls at once (the engine
just holds both), and 16 at once (somebody waits all the time, and the engine gives live calls the next slot). Printed:
the share of its slots that the batch used, from taking it to its stored report, the most it ever held, and what a live
call took.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.database import migrated
from libs import telemetry
from libs.db.engine import DatabaseSettings, create_engine
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.settings import LLMSettings
from libs.model_client import Model, open_model
from libs.settings import load
from libs.upstreams.types import Priority
from services.jobs.replays import Replays, road_to
from tests.fakes.engine import FakeEngine
from tests.fakes.engine_replies import by_constraint
from tests.integration.replay_batch_cases import Past, asked, now_of, remember
from tools.local_stack.postgres import EmbeddedPostgres

SLOTS = 16
SHARE = 4
DELAY_S = 0.25
DECISIONS = 160
TARGET = 0.9
UPSTREAMS = f"""
upstreams:
  - name: lexi
    dialect: vllm
    slots: {SLOTS}
    shares: {{forecast: {SLOTS}, jobs: {SHARE}}}
"""


class CountingEngine(FakeEngine):
    """Counts the slots that each priority holds, the most it held, and for how long in all."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.held: Counter[int] = Counter()
        self.most: Counter[int] = Counter()
        self.seconds: dict[int, float] = {}

    @asynccontextmanager
    async def _slot(self, priority: int) -> AsyncGenerator[None]:
        async with super()._slot(priority):
            self.held[priority] += 1
            self.most[priority] = max(self.most[priority], self.held[priority])
            begun = time.monotonic()
            try:
                yield
            finally:
                self.held[priority] -= 1
                self.seconds[priority] = self.seconds.get(priority, 0.0) + time.monotonic() - begun


@dataclass(frozen=True, slots=True)
class Run:
    """One batch beside so many live calls at once: its share of its slots, its most, and live latency in ms."""

    live: int
    share: float
    most: int
    live_ms: float | None


async def live_calls(model: Model, at_once: int, until: asyncio.Event) -> list[float]:
    """Ask policies without a pause, so many at once; how long each took, milliseconds."""
    took: list[float] = []

    async def asker() -> None:
        while not until.is_set():
            answer = await model.client.ask("health", {}, priority=Priority.POLICY, use_cache=False)
            took.append(answer.total_ms)

    await asyncio.gather(*(asker() for _ in range(at_once)))
    return took


async def measure(engine: AsyncEngine, fake: CountingEngine, replays: Replays, *, live: int, model: Model) -> Run:
    """One batch, beside `live` calls at once."""
    batch = await asked(engine)
    fake.most.clear()
    fake.seconds.clear()
    ended = asyncio.Event()
    beside = asyncio.create_task(live_calls(model, live, ended))
    await asyncio.sleep(2 * DELAY_S)
    begun = time.monotonic()
    await replays.step()
    seconds = time.monotonic() - begun
    ended.set()
    took = await beside
    done = await now_of(engine, batch)
    assert done.state == "done", done.error
    low = int(Priority.BATCH)
    return Run(live, fake.seconds[low] / SHARE / seconds, fake.most[low], statistics.median(took) if took else None)


async def main_runs(url: str, home: Path) -> list[Run]:
    """Alone, with room for both, and with an engine that live work fills."""
    database = DatabaseSettings(database_url=SecretStr(url))
    engine, own = (
        create_engine(database, application="bench"),
        create_engine(database, application="bench", pool_size=1),
    )
    try:
        await remember(engine, [Past(f"T{number:03d}") for number in range(DECISIONS)], calls=False)
        async with CountingEngine(reply=by_constraint("fine"), slots=SLOTS, delay_s=DELAY_S) as fake:
            os.environ["LLM_BASE_URL"] = fake.base_url
            async with (
                open_model(engine, role="jobs", state_dir=home / "jobs") as model,
                open_model(engine, role="forecast", state_dir=home / "forecast") as other,
            ):
                replays = Replays(own, road_to(model, Rules.load(RULES_FILE), load(LLMSettings)))
                return [
                    await measure(engine, fake, replays, live=live, model=other) for live in (0, SLOTS - SHARE, SLOTS)
                ]
    finally:
        await own.dispose()
        await engine.dispose()


def main() -> int:
    """Run on a Postgres of its own; 1 where a target is missed."""
    telemetry.configure("bench", level="ERROR")
    with tempfile.TemporaryDirectory(prefix="lexi-bench-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        (home / "upstreams.yaml").write_text(UPSTREAMS, encoding="utf-8")
        os.environ["UPSTREAMS_FILE"] = str(home / "upstreams.yaml")
        server = EmbeddedPostgres(home / "postgres", report=lambda _: None)
        server.start()
        try:
            url = migrated(server, "replay")
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runs = runner.run(main_runs(url, home))
        finally:
            server.stop()
    for run in runs:
        paid = "" if run.live_ms is None else f", a live call took {run.live_ms:.0f} ms"
        print(
            f"replay  {DECISIONS} decisions beside {run.live:2d} live calls at once: {run.share:.1%} of its "
            f"{SHARE} slots used, at most {run.most} held{paid}"
        )
    enough = all(run.share >= TARGET for run in runs if run.live + SHARE <= SLOTS)
    return 0 if enough and all(run.most <= SHARE for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
