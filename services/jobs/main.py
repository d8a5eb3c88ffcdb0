"""The jobs as a process. Any number of them may run, on any machines; Postgres hands out the work."""

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine

from libs.db.engine import DatabaseSettings, create_engine, require_schema
from libs.probes import database_checks, probe_app
from libs.process import serve
from libs.service_settings import ListenSettings
from libs.settings import load
from services.jobs.outcomes import settle_all
from services.jobs.queue import Periodic, Queue
from services.jobs.retention import RetentionSettings, clear_expired, drop_old, make_ahead


def periodic_jobs(engine: AsyncEngine, retention: RetentionSettings) -> dict[str, Periodic]:
    """Everything that comes round, by name."""

    async def partitions() -> None:
        await make_ahead(engine)
        await drop_old(engine, retention)

    return {
        "outcomes": Periodic("* * * * * */15", lambda: settle_all(engine)),
        "partitions": Periodic("7 * * * *", partitions),
        "expired": Periodic("*/10 * * * *", lambda: clear_expired(engine)),
    }


async def main(stop: asyncio.Event) -> None:
    """Work until told to stop. A schema that is too old stops the start; a database that is away is waited for."""
    listen, settings, retention = load(ListenSettings), load(DatabaseSettings), load(RetentionSettings)
    engine = create_engine(settings, application="jobs")
    queue = Queue(settings.database_url.get_secret_value(), periodic_jobs(engine, retention))
    app = probe_app({**database_checks(engine), "queue": queue.check})

    async def work() -> None:
        await queue.wait_for(lambda: require_schema(engine), stop)
        await queue.run(stop)

    try:
        async with asyncio.TaskGroup() as tasks:
            port, variable = listen.jobs_metrics_port, "JOBS_METRICS_PORT"
            tasks.create_task(serve(app, host=listen.api_host, port=port, stop=stop, variable=variable))
            tasks.create_task(work())
    finally:
        await engine.dispose()
