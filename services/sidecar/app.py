"""The sidecar, put together."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from starlette.routing import Route

from libs.http_app import frame
from libs.keys import KeyRing
from libs.llm.calls import Recorder
from libs.llm.client import Client
from libs.llm.prompts import Prompts
from libs.llm.registry import Registry
from libs.llm.settings import LLMSettings
from libs.probes import Check, Checks, Degraded
from libs.service_settings import ListenSettings
from libs.settings import load
from libs.upstreams.pool import Upstreams
from libs.upstreams.settings import UpstreamSettings
from libs.upstreams.upstream import DEAD
from services.sidecar import routes
from services.sidecar.asking import Models
from services.sidecar.device import DeviceFinder
from services.sidecar.lookout import Lookout
from services.sidecar.places import NAMES, ModelName, Places
from services.sidecar.record import Record, open_record
from services.sidecar.routes import Crowd, SidecarState
from services.sidecar.settings import SidecarSettings


def create_app(state: SidecarState, *, keys: KeyRing, checks: Checks, open_to_all: bool) -> FastAPI:
    """The app on a state that its caller opened, and closes after serving."""
    app = frame(title="Lexi Sidecar", keys=keys, checks=checks)
    app.state.sidecar = state
    app.include_router(routes.router(open_to_all=open_to_all))
    # Old clients read more from /health than liveness; this one comes before the frame's.
    app.router.routes.insert(0, Route("/health", routes.health))
    return app


@asynccontextmanager
async def open_app(listen: ListenSettings, settings: SidecarSettings) -> AsyncGenerator[FastAPI, None]:
    """The app on its road to the models and its record, both closed after the block.

    Raises what says that a setting or a file cannot be used, each naming what is wrong.
    """
    prompts = Prompts.build(Registry.load(settings.sidecar_prompts_file))
    upstreams = Upstreams.load(load(UpstreamSettings), role="sidecar")
    keys = KeyRing.load(listen.keys_path)
    llm = load(LLMSettings)
    async with AsyncExitStack() as stack:
        record = await stack.enter_async_context(open_record())
        recorder = await _recorder(stack, record, listen.local_state)
        await upstreams.start()
        stack.push_async_callback(upstreams.close)
        places = Places(upstreams, settings.hermes_ctx)
        lookout = Lookout(places)
        stack.push_async_callback(lookout.close)
        state = SidecarState(
            models=Models(
                client=Client(engine=upstreams, prompts=prompts, cache=None, recorder=recorder, settings=llm),
                places=places,
                limits=replace(llm.limits(), total_s=settings.sidecar_deadline_s),
                noted=lookout.note,
            ),
            lookout=lookout,
            crowd=Crowd(settings.sidecar_max_requests),
            device=DeviceFinder().now,
            legacy_status=settings.sidecar_legacy_status,
            micro_model=settings.micro_llm_model_path,
        )
        own = dict(record.checks) if settings.sidecar_legacy_open else {**record.checks, "keys": keys.check}
        yield create_app(
            state,
            keys=keys,
            checks=lambda: {**own, **model_checks(places)},
            open_to_all=settings.sidecar_legacy_open,
        )


async def _recorder(stack: AsyncExitStack, record: Record, state_dir: Path) -> Recorder:
    recorder = Recorder(record.engine, service="sidecar", state_dir=state_dir, rest_s=record.retry_s)
    await recorder.start()
    stack.push_async_callback(recorder.close)
    return recorder


def model_checks(places: Places) -> Mapping[str, Check]:
    """A line of `/ready` for each model, and one for the file of upstreams. One model that is away is yellow; without
    both this process can do nothing, which is red.
    """
    away = {name: places.status_of(name).state in DEAD for name in NAMES}

    def check(name: ModelName) -> Check:
        async def checked() -> str | None:
            reasons = [f"there is no upstream {name}: lexi answers for it"] if places.stands_in(name) else []
            if away[name]:
                status = places.status_of(name)
                reasons.append(f"{status.state}: {status.reason}")
            elif places.entered(name) is None:
                reasons.append("the role sidecar has no share of it")
            said = "; ".join(reasons)
            return said if all(away.values()) else Degraded(said) if said else None

        return checked

    async def upstreams_file() -> str | None:
        trouble = places.upstreams.trouble
        return None if trouble is None else Degraded(trouble)

    return {**{name: check(name) for name in NAMES}, "upstreams_file": upstreams_file}
