"""The analytics, put together."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from libs.db.engine import INTERACTIVE_S
from libs.db.opening import open_database
from libs.http_app import frame
from libs.keys import KeyRing
from libs.model_client import open_model
from libs.probes import Check, Checks, database_checks
from libs.service_settings import ListenSettings
from libs.settings import load
from services.analytics import recent, shadow
from services.analytics.console.mount import open_console
from services.analytics.recent import AnalyticsState
from services.analytics.settings import AnalyticsSettings
from services.analytics.summary import Summaries


def create_app(state: AnalyticsState, *, keys: KeyRing, checks: Checks) -> FastAPI:
    """The app on a state that its caller opened, and closes after serving."""
    app = frame(title="Lexi Analytics", keys=keys, checks=checks)
    app.state.analytics = state
    app.include_router(recent.router)
    app.include_router(shadow.router)
    return app


@asynccontextmanager
async def open_app(listen: ListenSettings) -> AsyncGenerator[FastAPI, None]:
    """The app on a database that is new enough and a road to the model, both closed after the block."""
    settings = load(AnalyticsSettings)
    async with (
        open_database(application="analytics", command_timeout=INTERACTIVE_S) as engine,
        open_model(engine, role="analytics", state_dir=listen.local_state) as model,
    ):
        keys = KeyRing.load(listen.keys_path)
        summaries = Summaries(model.client, wait_s=settings.analytics_summary_wait_s)
        state = AnalyticsState(engine=engine, summaries=summaries)

        def checks() -> dict[str, Check]:
            return model.checks({**database_checks(engine), "keys": keys.check})

        app = create_app(state, keys=keys, checks=checks)
        try:
            async with open_console(app, engine, keys):
                yield app
        finally:
            await summaries.close()
