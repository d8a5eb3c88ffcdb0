"""Batch replays: each is worked on by one process at a time, which asks with its own share of the model's slots.

A process takes the oldest batch that nobody holds, and stays with it to the end. One that dies, or loses Postgres,
frees its batch, and the next process that looks goes on with it.
"""

from uuid import UUID

import structlog
from prometheus_client import Gauge
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from libs.judgement.rules import Rules
from libs.llm.settings import LLMSettings
from libs.model_client import LEXI, Model
from libs.replay.batch.ask import BatchFailed, Road, patient
from libs.replay.batch.figures import figures
from libs.replay.batch.held import Held
from libs.replay.batch.report import report, shortcoming
from libs.replay.batch.rows import Batch, end, still_open
from libs.replay.batch.run import BatchRun
from libs.upstreams.types import UpstreamStatus
from services.jobs.queue import CONNECTION_FAILURES

LONG_STATEMENT_S = 300.0
"""How long gathering a period's decisions, or the sums of a report, may take."""

OUR_OWN = {"22", "23", "42"}
"""The SQLSTATE classes of our own mistakes: impossible values, broken constraints, wrong statements."""

RUNNING = Gauge("lexi_replay_batch_running", "1 while this process works on a batch replay")

log = structlog.get_logger(__name__)


def road_to(model: Model, rules: Rules, settings: LLMSettings) -> Road:
    """How this process asks for a batch: with its whole share, since nothing else here asks the model."""

    def lexi() -> UpstreamStatus:
        return next(status for status in model.upstreams.status() if status.name == LEXI)

    return Road(
        client=model.client,
        prompts=model.prompts,
        rules=rules,
        limits=patient(settings.limits()),
        places=lambda: lexi().slots,
        model=lambda: lexi().model,
    )


class Replays:
    """Works on batches, one after the other. `engine` is its own: a batch keeps one connection to the end."""

    def __init__(self, engine: AsyncEngine, road: Road) -> None:
        self._engine = engine
        self._road = road

    async def step(self) -> bool:
        """Take a batch and bring it to its end; False where there is none to take."""
        async with self._engine.connect() as connection:
            waiting = await still_open(connection)
        for batch_id in waiting:
            if await self._work_on(batch_id):
                return True
        return False

    async def _work_on(self, batch_id: UUID) -> bool:
        async with self._engine.connect() as connection:
            others = False
            try:
                held = await Held.take(connection, batch_id)
                others = held is None
                if held is None:
                    return False
                RUNNING.set(1)
                await self._to_the_end(held, connection)
                return True
            finally:
                RUNNING.set(0)
                if not others:  # the lock lasts as long as the connection does
                    await connection.invalidate()

    async def _to_the_end(self, held: Held, connection: AsyncConnection) -> None:
        batch = held.batch
        log.info("replay_batch_taken", batch=str(batch.id), prompt=batch.prompt_key, version=batch.prompt_version)
        try:
            if not await BatchRun(held, self._road).run():
                log.info("replay_batch_was_ended", batch=str(batch.id))
                return
            async with connection.begin():
                await _conclude(connection, batch)
        except BatchFailed as error:
            reason = str(error)
        except Exception as error:
            if may_pass(error):
                raise
            cause = error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig is not None else None
            reason = f"internal: {type(cause or error).__name__}"  # no more: it may quote a prompt
        else:
            return
        log.warning("replay_batch_failed", batch=str(batch.id), reason=reason)
        async with connection.begin():
            await end(connection, batch.id, "failed", error=reason)


async def _conclude(connection: AsyncConnection, batch: Batch) -> None:
    """Store the report. What shows too little must not look like a trial that was passed."""
    found = await figures(connection, batch.id)
    made = report(found, key=batch.prompt_key, version=batch.prompt_version)
    problem = shortcoming(made, reason=found.reason)
    await end(connection, batch.id, "failed" if problem else "done", error=problem, report=made)
    log.info("replay_batch_all_asked", batch=str(batch.id), counts=made["counts"])


def may_pass(error: Exception) -> bool:
    """Whether it is worth beginning a batch again after this: Postgres was away, or not able to.

    What Postgres finds wrong with the statement or its values comes again each time, and holds up all later batches.
    """
    if isinstance(error, DBAPIError):
        return str(getattr(error.orig, "sqlstate", None) or "")[:2] not in OUR_OWN
    return isinstance(error, CONNECTION_FAILURES)
