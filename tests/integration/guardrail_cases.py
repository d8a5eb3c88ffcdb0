"""Exposures of an experiment with three arms, for tests of guardrails on a real Postgres."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine
from libs.llm.activations import Activation, activate, history, latest
from libs.llm.in_force import InForce
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from tests.unit.llm_cases import write_prompts

PROMPTS = """
policy:
  version: "1.0.0"
  experiment: {arms: {"1.0.0": 60, "1.1.0": 20, "1.2.0": 20}, unit: ticker_day, guardrails: {p95_latency_ms: 1000}}
  versions:
    "1.0.0": &policy
      user_template: "May we enter {{ ticker }}?"
      inputs: {type: object, properties: {ticker: {type: string}}}
    "1.1.0": {<<: *policy, user_template: "{{ ticker }}: may we?"}
    "1.2.0": {<<: *policy, user_template: "{{ ticker }}: yes?"}
note:
  version: "1.0.0"
  versions:
    "1.0.0": *policy
"""

GIVE = text(
    """
    insert into exposures (key, forecast_id, phase, unit, arm, feed, ticker, horizon, as_of, side, judged_at, status,
      timed_out, cached, total_ms, tokens, allow, rules_allow, settled_at, realised_return)
    select 'policy', gen_random_uuid(), :phase, :arm || ':' || cast(:batch as text) || ':' || i, :arm, 'f', 'T', '1d',
      '2026-01-02', 'buy', case when cast(:status as text) is not null then now() end, :status,
      :timed_out, :cached, :ms, 100, :allow, true, case when :settled then now() end, 0.01
    from generate_series(1, :count) as i
    """
)


TENS = text(
    """
    update exposures set unit = arm || status || number / 10
    from (
      select forecast_id as id, row_number() over (partition by arm, status) - 1 as number from exposures
    ) as numbered where forecast_id = id
    """
)


@dataclass(frozen=True, slots=True)
class Came:
    """What comes of exposures."""

    status: str | None = "ok"
    timed_out: bool = False
    ms: float | None = 200.0
    allow: bool | None = False
    settled: bool = False
    cached: bool = False


@dataclass(slots=True)
class Source:
    """Prompts that change."""

    now: Prompts


GOOD = Came()
INVALID = Came("invalid", allow=None)
LATE = Came("unavailable", timed_out=True, ms=20_000.0, allow=None)
SLOW = Came(ms=4_000.0)
LETS = Came(allow=True)
AWAY = Came("unavailable", ms=0.0, allow=None)


@pytest.fixture
async def second(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The engine of another process."""
    made = create_engine(DatabaseSettings(database_url=SecretStr(database_url)), application="other")
    yield made
    await made.dispose()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    path = write_prompts(tmp_path, PROMPTS)
    return Registry.load(path, path.with_suffix(".lock"))


async def give(engine: AsyncEngine, arm: str, *, count: int, came: Came = GOOD, phase: str) -> None:
    values = {"arm": arm, "count": count, "phase": phase, "batch": str(uuid4()), "status": came.status, "ms": came.ms}
    values |= {"timed_out": came.timed_out, "allow": came.allow, "settled": came.settled, "cached": came.cached}
    async with engine.begin() as connection:
        await connection.execute(GIVE, values)


def phase_of(prompts: Prompts) -> str:
    experiment = prompts.in_force["policy"].experiment
    assert experiment is not None
    return experiment.phase


async def all_rows(engine: AsyncEngine) -> list[Activation]:
    async with engine.connect() as connection:
        return await history(connection, "policy")


async def read(engine: AsyncEngine, registry: Registry, buckets: str = "") -> Prompts:
    """What a process has in force once it has looked."""
    async with engine.connect() as connection:
        return Prompts.build(registry, buckets, activations=await latest(connection))


async def alerts(engine: AsyncEngine) -> list[tuple[str, str]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text("select kind, text from alerts order by id"))]


async def by_hand(engine: AsyncEngine, found: InForce, **changes: Any) -> Activation:
    """A person's word."""
    said: dict[str, Any] = {"version": "1.1.0", "arms": (), "who": "ann", "why": "I looked at it"} | changes
    async with engine.begin() as connection:
        made = await activate(connection, key="policy", ground=found.ground, **said)
    assert made is not None
    return made


async def planted(engine: AsyncEngine, prompts: Prompts, came: Came = INVALID, count: int = 40) -> None:
    """A bad 1.2.0 beside two versions that are well."""
    await give(engine, "1.0.0", count=3 * count, phase=phase_of(prompts))
    await give(engine, "1.1.0", count=count, phase=phase_of(prompts))
    await give(engine, "1.2.0", count=count, came=came, phase=phase_of(prompts))
