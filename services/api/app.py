"""The control plane, put together."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from libs.db.engine import INTERACTIVE_S
from libs.db.opening import open_database
from libs.http_app import frame
from libs.keys import KeyRing
from libs.model_client import open_model
from libs.probes import Check, database_checks
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.switches import SwitchSettings, record_environment
from services.api import admin, ingest, llm, signals
from services.api.deps import ApiState
from services.api.health import HealthProbe
from services.api.settings import ApiSettings


def create_app(state: ApiState, *, keys: KeyRing, checks: Mapping[str, Check]) -> FastAPI:
    """The app on a state that its caller opened, and closes after serving."""
    app = frame(title="Lexi Gateway", keys=keys, checks=checks)
    app.state.api = state
    for part in (llm, admin, signals, ingest):
        app.include_router(part.router)
    return app


@asynccontextmanager
async def open_app(listen: ListenSettings, settings: ApiSettings) -> AsyncGenerator[FastAPI, None]:
    """The app on a database that is new enough and a road to the model, both closed after the block.

    It is opened before anything listens, so that whatever is wrong stops the start with its own words.
    """
    async with (
        open_database(application="api", pool_size=10, command_timeout=INTERACTIVE_S) as engine,
        open_model(engine, role="api", state_dir=listen.local_state) as model,
    ):
        await record_environment(engine, load(SwitchSettings))
        keys = KeyRing.load(listen.keys_path)
        health = HealthProbe(model.client, model=model.name, ttl_s=settings.llm_health_ttl_s)
        state = ApiState(
            engine=engine,
            client=model.client,
            registry=model.registry,
            experiments=model.experiments,
            health=health,
        )
        try:
            yield create_app(state, keys=keys, checks={**database_checks(engine), "keys": keys.check, **model.checks()})
        finally:
            await health.close()
