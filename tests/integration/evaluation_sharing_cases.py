"""Evaluations that are handed to workers, for the tests of sharing: plans, their cases, and what stands in Postgres."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.running.plan import Pinned, Plan
from libs.evaluation.running.row import Row
from libs.evaluation.sharing.collecting import Collected, Waits, collect
from libs.evaluation.sharing.store import hand_out
from libs.llm.registry import Registry
from tests.conftest import ROOT
from tests.unit.evaluation_running_cases import ManyCases, plan_of

CONFIGS = ROOT / "configs"
PROMPTS = Registry.load_quietly(CONFIGS / "llm_prompts.yaml", CONFIGS / "llm_prompts.lock")
RULES_SHA256 = hashlib.sha256((CONFIGS / "rules.yaml").read_bytes()).hexdigest()


def pinned(prompt: str = "policy", version: str = "1.0.0") -> Pinned:
    """A version as the prompts' file has it."""
    return Pinned(prompt, version, PROMPTS.version(prompt, version).sha256)


def shared_plan(cases: int, **changes: Any) -> Plan:
    """A plan that this checkout's workers can do: by default one version of the policy over two workers."""
    usual = {"versions": (pinned(),), "rules_sha256": RULES_SHA256, "workers": 2, "evaluation_id": uuid4()}
    return plan_of(cases, **usual | changes)


async def handed_out(engine: AsyncEngine, plan: Plan, *, known: Collection[int] = ()) -> bool:
    """Hand a plan to the workers."""
    async with engine.begin() as connection:
        return await hand_out(connection, plan, cases=ManyCases(plan.cases), known=known, asked_by="tester")


@dataclass(slots=True)
class Kept:
    """Stands for the file of rows: what came, in order."""

    rows: list[Row] = field(default_factory=list[Row])
    told: list[str] = field(default_factory=list[str])
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def items(self) -> list[int]:
        """The items that have a row, one entry for each row."""
        return sorted(row.item for row in self.rows)

    async def keep(self, row: Row) -> None:
        """Keep a row."""
        await asyncio.sleep(0)
        self.rows.append(row)

    async def collect(
        self,
        engine: AsyncEngine,
        plan: Plan,
        waits: Waits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> Collected:
        """Bring what is missing."""
        had = {row.item for row in self.rows}
        return await collect(
            engine,
            plan,
            left=plan.items - len(had),
            keep=self.keep,
            had=had,
            seen=lambda _: None,
            told=self.told.append,
            stop=self.stop,
            waits=waits,
            clock=clock,
        )


async def value(engine: AsyncEngine, statement: str, **values: object) -> Any:
    """One value of the database."""
    async with engine.connect() as connection:
        return await connection.scalar(text(statement), values)


async def stored(engine: AsyncEngine, evaluation_id: UUID) -> int:
    """How many rows of an evaluation wait in Postgres."""
    return await value(engine, "select count(*) from evaluation_rows where evaluation_id = :id", id=evaluation_id)


async def queued_shards(engine: AsyncEngine) -> list[str]:
    """The keys of the shards' jobs that wait or run."""
    async with engine.connect() as connection:
        found = await connection.scalars(
            text("select dedupe_key from pgqueuer where entrypoint = 'evaluation_shard' order by id")
        )
        return list(found)
