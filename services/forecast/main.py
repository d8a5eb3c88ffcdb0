"""The forecast loop as a process: everything it stands on, built from the environment, and its probes beside it."""

import asyncio
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.calendar import open_calendar
from libs.db.engine import DatabaseSettings, create_engine, require_schema
from libs.judgement.rules import RULES_FILE, Rules
from libs.llm.experiments import Assignment, Unit
from libs.llm.prompts import LivePrompts
from libs.model_client import LEXI, Model, open_model
from libs.probes import database_checks, probe_app
from libs.process import serve
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.switches import SwitchSettings, record_environment
from services.forecast.assessor import Assessor
from services.forecast.cases import Plan
from services.forecast.feed.choice import choose_feed
from services.forecast.feed.types import Feed
from services.forecast.judging import JudgementWriter, Judges
from services.forecast.model import Forecaster
from services.forecast.patience import Patience, StopError
from services.forecast.repository import Repository
from services.forecast.settings import DecisionSettings, ForecastSettings
from services.forecast.worker import Worker


@dataclass(frozen=True, slots=True)
class Ground:
    """What everything here stands on: the database, the waiting for it, and the order to stop."""

    engine: AsyncEngine
    patience: Patience
    stop: asyncio.Event


def make_plan(settings: ForecastSettings) -> Plan:
    """What the settings ask the loop to do. Opens the calendar, which may take a second."""
    return Plan(
        interval_s=settings.interval_s,
        horizon_name=settings.horizon,
        horizon=settings.parsed_horizon,
        decision_ttl_s=load(DecisionSettings).llm_decision_ttl_s,
        calendar=open_calendar(settings.calendar),
        rules=Rules.load(RULES_FILE),
    )


def slots_of(model: Model) -> int:
    """This process's share of Lexi's slots, as it is now: an engine may turn out to have fewer than configured."""
    return next(status.slots for status in model.upstreams.status() if status.name == LEXI)


def make_worker(feed: Feed, plan: Plan, *, model: Model, forecaster: Forecaster, ground: Ground) -> Worker:
    """The loop with its parts put together."""
    repository = Repository(ground.engine, horizon=plan.horizon_name)
    writer = JudgementWriter(repository, Patience(ground.stop), recorded=model.recorder.flush)
    assessor = Assessor(client=model.client, rules=plan.rules, decision_ttl_s=plan.decision_ttl_s)

    def assign(key: str, unit: Unit) -> Assignment | None:
        return model.experiments.assign(key, unit)

    return Worker(
        feed=feed,
        plan=plan,
        forecaster=forecaster,
        repository=repository,
        assessor=assessor,
        judges=Judges(assessor.judge, writer, places=lambda: slots_of(model), superseded=assessor.superseded),
        writer=writer,
        patience=ground.patience,
        assign=assign,
    )


async def main(stop: asyncio.Event) -> None:
    """Forecast until told to stop. Waits for a database that is away; refuses one whose schema is too old."""
    listen, settings = load(ListenSettings), load(ForecastSettings)
    plan, feed = make_plan(settings), choose_feed(settings)
    engine = create_engine(load(DatabaseSettings), application="forecast")
    ground = Ground(engine, Patience(stop), stop)
    forecaster = Forecaster()
    try:
        async with open_model(engine, role="forecast", state_dir=listen.local_state) as model:
            worker = make_worker(feed, plan, model=model, forecaster=forecaster, ground=ground)
            own = {"feed": worker.feed_check, "progress": worker.waiting_check}
            app = probe_app(lambda: model.checks({**database_checks(engine), **own}))
            address = {"host": listen.api_host, "variable": "FORECAST_METRICS_PORT"}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(serve(app, port=listen.forecast_metrics_port, stop=stop, **address))
                tasks.create_task(forecaster.start())
                tasks.create_task(work(worker, ground, model.prompts))
    finally:
        await forecaster.close()
        await engine.dispose()


async def work(worker: Worker, ground: Ground, prompts: LivePrompts) -> None:
    """Wait until Postgres answers, check its schema, let the environment's switches speak, learn what was activated,
    then run the loop: a version that was taken back must not judge once more because a process started.

    Raises `DatabaseError` for a schema that is too old.
    """
    switches = load(SwitchSettings)
    try:
        await ground.patience.until_done(lambda: require_schema(ground.engine), "check the schema")
        await ground.patience.until_done(
            lambda: record_environment(ground.engine, switches, service="forecast"), "record the switches"
        )
        await ground.patience.until_done(prompts.refresh, "read what prompts are in force")
    except StopError:
        return
    await worker.run(ground.stop)
