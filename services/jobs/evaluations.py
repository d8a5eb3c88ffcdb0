"""Shards of evaluations: taken from the queue, asked as a run on one machine asks them, their rows kept in Postgres.

A process works on two shards at a time with its one share of the model's slots, so that the end of one leaves no slot
idle. A shard it cannot finish goes back into the queue; one whose process died is taken by another when its lease runs
out. Either way what is stored is not asked again.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import random
from typing import Any
from uuid import UUID

import orjson
import structlog
from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.evaluation.cases.case import CaseError
from libs.evaluation.running.asking import Asking, VersionChanged
from libs.evaluation.running.plan import Plan, PlanError, plan_from
from libs.evaluation.running.presence import is_there
from libs.evaluation.sharing.shards import Cut, ShardError
from libs.evaluation.sharing.work import ShardLost, Taken, finish, had, say, take
from libs.judgement.rules import Rules
from libs.llm.errors import UnknownPrompt
from libs.llm.prompts import PromptSource
from libs.llm.settings import LLMSettings
from libs.model_client import LEXI, Model
from libs.replay.batch.ask import patient
from libs.upstreams.types import UpstreamStatus
from services.jobs.queue import CONNECTION_FAILURES, GiveBack, Pace
from services.jobs.shard_work import ShardWork

PACE = Pace(batch=1, most=2, lease_s=10.0, look_s=2.0, hurry_s=1.0)
AGAIN_S, LONGEST_S, OFTEN = 2.0, 300.0, 12
"""After how long somebody may try a shard again that this process cannot do; longer and longer once that was often. Not
always the same: this process, which looks when the time is over, would take it again before any other does.
"""
HASH_SHOWN = 12

RUNNING = Gauge("lexi_evaluation_shards_running", "Shards of evaluations that this process works on.")

log = structlog.get_logger(__name__)


class Refused(Exception):
    """This process must not ask a shard: what it would ask with is not what was planned. The message says what."""


@dataclass(frozen=True, slots=True)
class EvaluationRoad:
    """How this process asks. `places` is its share of Lexi's slots as it is now, `model` the name of the model whose
    answers count, `there` whether its server is alive, `rules_sha256` the hash of the rules' file.
    """

    asking: Asking
    prompts: PromptSource
    places: Callable[[], int]
    model: Callable[[], str]
    there: Callable[[], bool]
    rules_sha256: str


def evaluation_road(model: Model, rules_file: Path, settings: LLMSettings) -> EvaluationRoad:
    """The road of shards: the client of this process, with the limits of work that waits behind everybody."""

    def lexi() -> UpstreamStatus:
        return next(status for status in model.upstreams.status() if status.name == LEXI)

    def name() -> str:
        return lexi().model

    asking = Asking(
        client=model.client,
        rules=Rules.load(rules_file),
        limits=patient(settings.limits()),
        use_cache=False,
        model=name,
    )
    sha256 = hashlib.sha256(rules_file.read_bytes()).hexdigest()
    return EvaluationRoad(
        asking,
        model.prompts,
        places=lambda: lexi().slots,
        model=name,
        there=lambda: is_there(lexi()),
        rules_sha256=sha256,
    )


class Evaluations:
    """Works on shards; each call is one of them. When `stop` is set, it gives back what it has."""

    def __init__(self, engine: AsyncEngine, road: EvaluationRoad, *, stop: asyncio.Event) -> None:
        self._engine = engine
        self._road = road
        self._stop = stop
        self._working = 0

    async def __call__(self, payload: bytes) -> None:
        """Bring a shard to its end. Raises `GiveBack` where it is not there yet."""
        order: dict[str, Any] = orjson.loads(payload)
        try:
            taken = await take(self._engine, UUID(order["evaluation"]), order["shard"], worker=self._road.asking.worker)
            if taken is None:
                return
            await self._with(taken)
        except GiveBack:
            raise
        except ShardLost:
            log.info("evaluation_shard_lost", evaluation=order["evaluation"], shard=order["shard"])
        except CONNECTION_FAILURES as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("evaluation_shard_broke_off", shard=order["shard"], error=reason)
            raise _later(1.0, "Postgres was away") from None

    async def _with(self, taken: Taken) -> None:
        """Work on a shard; what is wrong with it, or here, is said to who asked."""
        self._working += 1
        RUNNING.set(self._working)
        try:
            await self._work_on(taken)
        except (Refused, PlanError, CaseError, ShardError, VersionChanged) as error:
            await self._leave(taken, str(error))
        except (GiveBack, ShardLost, *CONNECTION_FAILURES):
            raise
        except Exception as error:  # noqa: BLE001 - said to who asked, and tried again: the next worker may be newer
            log.error("evaluation_shard_failed", shard=taken.shard, error=type(error).__name__)  # noqa: TRY400 - it may quote a prompt
            await self._leave(taken, f"internal: {type(error).__name__}")
        finally:
            self._working -= 1
            RUNNING.set(self._working)

    async def _leave(self, taken: Taken, reason: str) -> None:
        """Say why, and leave the shard to whoever is next. Raises `GiveBack`."""
        log.warning("evaluation_shard_given_back", evaluation=str(taken.evaluation_id), shard=taken.shard)
        await say(self._engine, taken, reason)
        delay_s = min(LONGEST_S, AGAIN_S * 2.0 ** min(max(0, taken.taken - OFTEN), 10))
        delay_s *= 0.5 + random()  # noqa: S311 - spreads tries, hides nothing
        raise _later(delay_s, "it cannot be done here now") from None

    async def _work_on(self, taken: Taken) -> None:
        plan = plan_from(taken.plan)
        self._check(plan)
        cut = Cut(plan, taken.shard, taken.step)
        skip = await had(self._engine, taken, cut.items)
        log.info("evaluation_shard_taken", evaluation=str(taken.evaluation_id), shard=cut.shard, had=len(skip))
        work = ShardWork(self._engine, taken, stop=self._stop)
        ask = replace(self._road.asking, use_cache=plan.cache)
        ended = await work.run(cut, skip=skip, ask=ask, places=lambda: self._places(plan), there=self._road.there)
        if ended.away is not None:
            await self._leave(taken, f"the model gives no answers here: {ended.away}")
        if ended.stopped:
            raise _later(0.0, "this process ends")
        await finish(self._engine, taken)
        log.info("evaluation_shard_done", evaluation=str(taken.evaluation_id), shard=cut.shard, rows=ended.done)

    def _places(self, plan: Plan) -> int:
        """What falls to one shard of this process's slots now."""
        share = self._road.places()
        mine = share if plan.concurrency is None else min(share, plan.concurrency)
        return max(1, -(-mine // max(1, self._working)))

    def _check(self, plan: Plan) -> None:
        """Ask only with what was planned. Raises `Refused`."""
        registry = self._road.prompts.now.registry
        for pinned in plan.versions:
            try:
                sha256 = registry.version(pinned.prompt, pinned.version).sha256
            except UnknownPrompt:
                raise Refused(
                    f"{pinned} is not in the prompts' file there; bring the file of that machine up to date"
                ) from None
            if sha256 != pinned.hash:
                raise Refused(
                    f"{pinned} says something else there ({sha256[:HASH_SHOWN]}, planned is "
                    f"{pinned.hash[:HASH_SHOWN]}); bring the prompts' file of that machine up to date"
                )
        if self._road.rules_sha256 != plan.rules_sha256:
            raise Refused("the rules' file there is another one; bring that machine up to date")
        planned, here = plan.stamp.get("model", {}).get("name"), self._road.model()
        if planned is not None and planned != here:
            raise Refused(f"the model there is {here}, planned is {planned}; set LLM_MODEL and LLM_BASE_URL there")


def _later(delay_s: float, reason: str) -> GiveBack:
    return GiveBack(timedelta(seconds=delay_s), reason)
