"""What every live page has: the navigation, who is signed in, and a refresh that ends with the session."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from nicegui import ui
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from services.analytics.console.door.guard import SIGN_IN
from services.analytics.console.door.sessions import Session, Sessions
from services.analytics.console.forms import NAVIGATION, session_of
from services.analytics.console.house import House
from services.analytics.console.live import Live

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Console:
    """What the pages stand on."""

    engine: AsyncEngine
    house: House
    sessions: Sessions
    live: Live


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page, and through which session."""

    session: Session
    cookie: str


def visitor_of(request: Request) -> Visitor:
    """Who asks for a page."""
    return Visitor(session_of(request), request.scope["console_cookie"])


@contextmanager
def page_frame(visitor: Visitor, *, title: str, here: str) -> Generator[None]:
    """Navigation and heading around the content that is made inside."""
    ui.page_title(f"{title} · Lexi")
    ui.add_head_html('<meta name="color-scheme" content="light dark">')
    with ui.header().classes("lexi-header items-center gap-x-5 gap-y-1"):
        ui.link("Skip to the content", "#main").classes("lexi-skip")
        with ui.element("nav").props('aria-label="Console"'):
            for name, path in NAVIGATION:
                link = ui.link(name, path).classes("lexi-link")
                if path == here:
                    link.props('aria-current="page"')
    with ui.element("div").classes("lexi-main").props('id="main" tabindex="-1"'):
        ui.label(title).classes("lexi-title").props('role="heading" aria-level="1"')
        yield
        with ui.row().classes("lexi-foot"):
            ui.label(f"Signed in as {visitor.session.name}")
            _sign_out(visitor.session)


def _sign_out(session: Session) -> None:
    """A form of its own, as on the plain pages: it signs out where one is."""
    with ui.element("form").props('method="post" action="/sign-out"'):
        ui.element("input").props(f'type="hidden" name="form_token" value="{session.form_token}"')
        with ui.element("button").classes("lexi-plain-button").props('type="submit"'):
            ui.label("Sign out")


def keep_fresh(console: Console, visitor: Visitor, look: Callable[[], Awaitable[None]], *, every_s: float) -> None:
    """Look now and then every few seconds while the page is open. Once the session has ended, the sign-in is shown."""
    failing = False

    async def again() -> None:
        nonlocal failing
        if console.sessions.find(visitor.cookie) is None:
            ui.navigate.to(SIGN_IN)
            return
        try:
            await look()
        except Exception as error:  # noqa: BLE001 - a look may fail in any way, and the next one must come
            if not failing:
                log.warning("console_look_failed", error=f"{type(error).__name__}: {error}".splitlines()[0])
            failing = True
        else:
            failing = False

    ui.timer(every_s, again, immediate=True)
