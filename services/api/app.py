"""The control plane and the data plane, put together."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.db.engine import INTERACTIVE_S
from libs.db.opening import open_database
from libs.http_app import Edge, frame
from libs.judgement.rules import RULES_FILE, Rules
from libs.keys import KeyRing
from libs.model_client import open_model
from libs.probes import Check, Checks, database_checks
from libs.replay.one import Replayer
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.switches import SwitchSettings, record_environment
from services.api import admin, experiments, ingest, llm, prompt_changes, replay, replays, signals
from services.api.dataplane.accounting import Accounts
from services.api.dataplane.app import DataPlane
from services.api.dataplane.reply_cache import AnswerCache
from services.api.dataplane.settings import DataPlaneSettings
from services.api.deps import ApiState
from services.api.health import HealthProbe
from services.api.settings import ApiSettings
from services.api.strategist import account, entries, panic, switches
from services.api.strategist.state import Strategist, open_strategist


def create_app(state: ApiState, *, strategist: Strategist, keys: KeyRing, checks: Checks) -> FastAPI:
    """The app on a state that its caller opened, and closes after serving."""
    app = frame(title="Lexi Gateway", keys=keys, checks=checks)
    app.state.api = state
    app.state.strategist = strategist
    model = (llm, admin, prompt_changes, experiments, replay, replays)
    for part in (*model, signals, ingest, entries, account, switches, panic):
        app.include_router(part.router)
    return app


class Front:
    """Everything this process serves: `/v1` is the data plane's, all else the control plane's."""

    def __init__(self, *, control_plane: FastAPI, data_plane: DataPlane, max_body_bytes: int) -> None:
        self.control_plane = control_plane
        self.data_plane = data_plane
        self._edge: ASGIApp = Edge(control_plane, max_body_bytes=max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        of_data_plane = scope["type"] == "http" and f"{scope['path']}/".startswith("/v1/")
        await (self.data_plane if of_data_plane else self._edge)(scope, receive, send)


@asynccontextmanager
async def open_app(listen: ListenSettings, settings: ApiSettings) -> AsyncGenerator[Front, None]:
    """The app on a database that is new enough and a road to the model, both closed after the block.

    It is opened before anything listens, so that whatever is wrong stops the start with its own words.
    """
    limits = load(DataPlaneSettings)
    rules = Rules.load(RULES_FILE)
    async with (
        open_database(application="api", pool_size=10, command_timeout=INTERACTIVE_S) as engine,
        open_model(engine, role="api", state_dir=listen.local_state) as model,
        open_strategist(engine, state=listen.local_state, model=model.name) as strategist,
    ):
        await record_environment(engine, load(SwitchSettings), service="api")
        keys = KeyRing.load(listen.keys_path)
        health = HealthProbe(model.client, model=model.name, ttl_s=settings.llm_health_ttl_s)
        state = ApiState(
            engine=engine,
            client=model.client,
            prompts=model.prompts,
            rules=rules,
            replayer=Replayer(engine, model.client, rules, model.prompts, model.upstreams.model_of),
            health=health,
        )

        def checks() -> dict[str, Check]:
            return model.checks({**database_checks(engine), "keys": keys.check})

        answers = None if model.cache is None else AnswerCache(model.cache)
        data_plane = DataPlane(
            keys=keys,
            upstreams=model.upstreams,
            accounts=Accounts(model.recorder, models=model.upstreams.models),
            cache=answers,
            settings=limits,
        )
        try:
            yield Front(
                control_plane=create_app(state, strategist=strategist, keys=keys, checks=checks),
                data_plane=data_plane,
                max_body_bytes=settings.api_max_body_bytes,
            )
        finally:
            await health.close()
            if answers is not None:
                await answers.close()
