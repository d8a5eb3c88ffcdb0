"""The console on the app of the analytics: its door, its forms, and the live pages beside the routes that are there."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import structlog
from fastapi import FastAPI
from nicegui import app as live_pages
from nicegui import ui
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.staticfiles import StaticFiles

from libs.keys import KeyRing
from libs.settings import load
from services.analytics.console.door.guard import ASSETS, SignedIn
from services.analytics.console.door.sessions import Sessions
from services.analytics.console.door.signing_in import signing_in
from services.analytics.console.house import House, HouseSettings
from services.analytics.console.layout.frame import Console
from services.analytics.console.live import Live
from services.analytics.console.pages.calls import page as calls
from services.analytics.console.pages.decision import page as decision
from services.analytics.console.pages.evaluations import page as evaluations
from services.analytics.console.pages.forecasts import page as forecasts
from services.analytics.console.pages.gate import page as gate
from services.analytics.console.pages.now import page as now
from services.analytics.console.pages.panic.page import panic
from services.analytics.console.pages.prompts import page as prompts

HEAD = f"""<link rel="stylesheet" href="{ASSETS}/console.css"><script src="{ASSETS}/console.js"></script>"""
RECONNECT_S = 10.0
"""How long a page that lost its websocket may come back to what it showed."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_console(app: FastAPI, engine: AsyncEngine, keys: KeyRing) -> AsyncGenerator[None, None]:
    """The console on `app`, with a road to the api, until the end of the block. Raises `SettingsError`."""
    async with httpx.AsyncClient() as client:
        house = House(client, api_url=load(HouseSettings).api_url)
        console = Console(engine=engine, house=house, sessions=Sessions(keys), live=Live(engine, house))
        async with mounted(app, console):
            yield


@asynccontextmanager
async def mounted(app: FastAPI, console: Console) -> AsyncGenerator[None, None]:
    """Serve the console from `app` until the end of the block. One at a time: the live pages belong to the process.

    Our server sends no lifespan events, so the library's start and end are played here.
    """
    app.include_router(signing_in(console.sessions))
    app.include_router(panic(console))
    for page in (now, calls, gate, forecasts, decision, prompts, evaluations):
        page.add(console)
    app.mount(ASSETS, StaticFiles(directory=Path(__file__).with_name("assets")), name="console-assets")
    ui.add_head_html(HEAD, shared=True)
    ui.run_with(  # pyright: ignore[reportUnknownMemberType] - its types are not whole
        app, title="Lexi", dark=None, language="en-US", show_welcome_message=False, reconnect_timeout=RECONNECT_S
    )
    app.add_middleware(SignedIn, sessions=console.sessions)
    live_pages.on_exception(_tell_failure)  # pyright: ignore[reportUnknownMemberType] - as above
    async with app.router.lifespan_context(app):
        await console.live.start()
        try:
            yield
        finally:
            await console.live.close()
            # What the first request built would refuse the middlewares of the next console in this process.
            live_pages.middleware_stack = None
            live_pages.user_middleware.clear()


def _tell_failure(error: Exception) -> None:
    """Log a page's failure without its words, which may quote a prompt."""
    log.error("console_page_failed", error=type(error).__name__)
