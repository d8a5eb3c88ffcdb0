"""Signing in and out."""

import hmac
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from services.analytics.console.door.guard import COOKIE, SIGN_IN, place_after
from services.analytics.console.door.sessions import LONGEST_S, Sessions
from services.analytics.console.forms import form_page, session_of

WRONG = "This key is not known here, or it lacks the scope read."


def right_form(request: Request, form_token: str) -> bool:
    """Whether a form came from a page of this very session."""
    return hmac.compare_digest(session_of(request).form_token.encode(), form_token.encode())


def came_by_tls(request: Request) -> bool:
    """Whether the browser spoke TLS, to us or to a proxy in front: the page whose form it sends says so."""
    return request.url.scheme == "https" or request.headers.get("origin", "").lower().startswith("https://")


def signing_in(sessions: Sessions) -> APIRouter:
    """The routes."""
    router = APIRouter(include_in_schema=False)

    @router.get(SIGN_IN)
    async def show(next: str = "/") -> Response:  # noqa: A002  # pyright: ignore[reportUnusedFunction] - a name of the query
        return form_page("sign_in.html", title="Sign in", here=SIGN_IN, session=None, shown=_asked(next))

    @router.post(SIGN_IN)
    async def sign_in(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        key: Annotated[str, Form(max_length=512)],
        next: Annotated[str, Form(max_length=2048)] = "/",  # noqa: A002
    ) -> Response:
        found = sessions.sign_in(key.strip())
        if found is None:
            shown = _asked(next, problem=WRONG)
            status = HTTPStatus.UNAUTHORIZED
            return form_page("sign_in.html", title="Sign in", here=SIGN_IN, session=None, status=status, shown=shown)
        answer = RedirectResponse(place_after(next), status_code=HTTPStatus.SEE_OTHER)
        secure = came_by_tls(request)
        answer.set_cookie(COOKIE, found[0], max_age=int(LONGEST_S), httponly=True, samesite="strict", secure=secure)
        return answer

    @router.get("/signed-in")
    async def signed_in() -> Response:  # pyright: ignore[reportUnusedFunction]
        """Nothing, for a page that asks whether its session lasts: the door sends who has none to the sign-in."""
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @router.post("/sign-out")
    async def sign_out(request: Request, form_token: Annotated[str, Form()]) -> Response:  # pyright: ignore[reportUnusedFunction]
        if right_form(request, form_token):
            sessions.sign_out(request.scope["console_cookie"])
        answer = RedirectResponse(SIGN_IN, status_code=HTTPStatus.SEE_OTHER)
        answer.delete_cookie(COOKIE)
        return answer

    return router


def _asked(wanted: str, *, problem: str = "") -> dict[str, str]:
    return {"next": place_after(wanted), "problem": problem}
