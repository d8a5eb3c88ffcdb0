"""Pages of the console that are plain HTML: they need neither scripts nor the websocket."""

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from services.analytics.console.door.sessions import Session

NAVIGATION: Final = (
    ("Now", "/"),
    ("Forecasts", "/forecasts"),
    ("Gate", "/gate"),
    ("Prompts", "/prompts"),
    ("Evaluations", "/evaluations"),
    ("Calls", "/calls"),
    ("Panic", "/panic"),
)
POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@cache
def _templates() -> Environment:
    return Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)


def form_page(
    template: str,
    *,
    title: str,
    here: str,
    session: Session | None,
    status: int = HTTPStatus.OK,
    refresh_s: int = 0,
    shown: Mapping[str, Any],
) -> HTMLResponse:
    """A page from its template. `shown` is what the template asks for; everything in it is escaped."""
    text = _templates().get_template(template).render(
        title=title, here=here, session=session, refresh_s=refresh_s, navigation=NAVIGATION, **shown
    )  # fmt: skip
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store", "X-Frame-Options": "DENY"}
    return HTMLResponse(text, status_code=status, headers=headers)


def session_of(request: Request) -> Session:
    """The session that the door found."""
    return request.scope["console_session"]
