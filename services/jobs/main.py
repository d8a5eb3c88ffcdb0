"""The jobs as a process. Any number of them may run, on any machines; Postgres hands out the work."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from libs.alerts import AlertSettings, send_due
from libs.db.engine import DatabaseSettings, create_engine, require_schema
from libs.evaluation.sharing.store import ENTRYPOINT
from libs.evaluation.sharing.work import queue_orphans
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.prompts import PromptSource
from libs.llm.settings import LLMSettings
from libs.model_client import Model, open_model
from libs.probes import Checks, database_checks, probe_app
from libs.process import serve
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.trading.broker.client import Broker
from libs.trading.broker.settings import BrokerSettings
from libs.trading.halts import Position, copy_local
from services.jobs.chain import ChainCheck
from services.jobs.evaluations import PACE, Evaluations, evaluation_road
from services.jobs.guardrails import EVERY_S as GUARDRAILS_EVERY_S
from services.jobs.guardrails import Guardrails
from services.jobs.outcomes import settle_all
from services.jobs.queue import OnDemand, Periodic, Queue
from services.jobs.reconcile.reconciler import EVERY_S, Reconciler
from services.jobs.replays import LONG_STATEMENT_S, Replays, road_to
from services.jobs.reports import make_reports, reports
from services.jobs.retention import (
    RetentionSettings,
    clear_expired,
    drop_old,
    forget_evaluations,
    forget_replays,
    make_ahead,
)
from services.jobs.rounds import Rounds
from services.jobs.vitals import EVERY_S as VITALS_EVERY_S
from services.jobs.vitals import Vitals


def periodic_jobs(engine: AsyncEngine, retention: RetentionSettings, *, prompts: PromptSource) -> dict[str, Periodic]:
    """Everything that comes round through the queue, by name: in one process each time."""

    async def partitions() -> None:
        await make_ahead(engine)
        await drop_old(engine, retention)
        await forget_replays(engine, retention)
        await forget_evaluations(engine, retention)

    return {
        "outcomes": Periodic("* * * * * */15", lambda: settle_all(engine)),
        "partitions": Periodic("7 * * * *", partitions),
        "expired": Periodic("*/10 * * * *", lambda: clear_expired(engine)),
        "chain": Periodic("23 * * * *", ChainCheck(engine)),
        "evaluations": Periodic("* * * * * */15", lambda: queue_orphans(engine)),
        "reports": Periodic("* * * * *", lambda: make_reports(engine, reports(prompts.now))),
    }


def rounds(
    engine: AsyncEngine, reconciler: Reconciler, *, state: Path, alerts: Callable[[], Awaitable[object]]
) -> list[Rounds]:
    """What comes round in each process, whatever the queue does: it concerns this disk, or cannot wait."""
    position = Position()
    return [
        Rounds("reconcile", reconciler.step, seconds=EVERY_S),
        Rounds("alerts", alerts, seconds=1),
        Rounds("halts", lambda: copy_local(engine, state, position), seconds=1),
        Rounds("vitals", Vitals(engine, state).step, seconds=VITALS_EVERY_S),
    ]


def model_rounds(model: Model, replaying: AsyncEngine) -> list[Rounds]:
    """What comes round in each process and needs the prompts or the model; `replaying` is for batch replays alone."""
    road = road_to(model, Rules.load(RULES_FILE), load(LLMSettings))
    return [
        Rounds("replays", Replays(replaying, road).step, seconds=1),
    ]


async def main(stop: asyncio.Event) -> None:
    """Work until told to stop. A schema that is too old stops the start; a database that is away is waited for."""
    listen, settings, retention = load(ListenSettings), load(DatabaseSettings), load(RetentionSettings)
    webhook = load(AlertSettings).webhook
    engine = create_engine(settings, application="jobs")
    replaying = create_engine(settings, application="replays", pool_size=1, command_timeout=LONG_STATEMENT_S)
    url = settings.database_url.get_secret_value()
    try:
        async with (
            Broker(load(BrokerSettings).address()) as broker,
            httpx.AsyncClient() as client,
            open_model(engine, role="jobs", state_dir=listen.local_state) as model,
        ):
            reconciler = Reconciler(engine, broker)
            own = {"broker": reconciler.broker_check, "reconciled": reconciler.reconciled_check}
            alerts = partial(send_due, engine, webhook, client)
            coming_round = [
                *rounds(engine, reconciler, state=listen.local_state, alerts=alerts),
                *model_rounds(model, replaying),
                Rounds("guardrails", Guardrails(engine, model.prompts).step, seconds=GUARDRAILS_EVERY_S),
            ]

            evaluations = Evaluations(engine, evaluation_road(model, RULES_FILE, load(LLMSettings)), stop=stop)
            shards = Queue(url, {ENTRYPOINT: OnDemand(evaluations)}, pace=PACE)
            queue = Queue(url, periodic_jobs(engine, retention, prompts=model.prompts))

            async def work() -> None:
                await queue.wait_for(lambda: require_schema(engine), stop)
                async with asyncio.TaskGroup() as group:
                    for each in coming_round:
                        group.create_task(each.run(stop))
                    group.create_task(queue.run(stop))
                    group.create_task(shards.run(stop))

            checks = {**database_checks(engine), "queue": queue.check, "shards": shards.check, **own}
            await live(listen, lambda: model.checks(checks), work=work, stop=stop)
    finally:
        await replaying.dispose()
        await engine.dispose()


async def live(
    listen: ListenSettings,
    checks: Checks,
    *,
    work: Callable[[], Coroutine[Any, Any, None]],
    stop: asyncio.Event,
) -> None:
    """Serve the probes and do the work, side by side."""
    async with asyncio.TaskGroup() as tasks:
        port, variable = listen.jobs_metrics_port, "JOBS_METRICS_PORT"
        tasks.create_task(serve(probe_app(checks), host=listen.api_host, port=port, stop=stop, variable=variable))
        tasks.create_task(work())
