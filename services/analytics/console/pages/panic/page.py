"""Panic and re-arm: plain forms, so that they work without scripts and without the websocket.

The exit itself runs in a process of its own, started by the api. A press is answered at once; the page then looks again
every second until the exit has said how it ended.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from services.analytics.console.door.sessions import Session
from services.analytics.console.door.signing_in import right_form
from services.analytics.console.forms import form_page, session_of
from services.analytics.console.house import Told
from services.analytics.console.layout.frame import Console
from services.analytics.console.pages.panic.queries import told_of
from services.analytics.console.pages.panic.words import Known, begun_of, moment, state_of, steps_of
from services.analytics.console.presses import outcome_of, record

PATH = "/panic"
WORD = "PANIC"
EXIT_LIMIT_S = 60.0
"""Longer than the api waits for an exit before it answers RUNNING."""

Words = Annotated[str, Form(max_length=200)]


@dataclass(slots=True)
class Underway:
    """The presses of this process that the api has not answered yet, and what it said to the last one."""

    tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    said: str = ""
    """Empty where it did what was asked."""

    def begin(self, console: Console, session: Session, reason: str, minutes: int) -> None:
        """Press. Nobody waits here: the exit must not depend on whether a browser stays."""
        self.said = ""
        task = asyncio.create_task(self._press(console, session, reason, minutes))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _press(self, console: Console, session: Session, reason: str, minutes: int) -> None:
        at, wanted = datetime.now(UTC), {"reason": reason, "ttl_minutes": minutes}
        told = await console.house.post("/strategist/panic-exit", session, wanted, limit_s=EXIT_LIMIT_S)
        pressed = f"The panic exit that {session.name} pressed at {at:%H:%M:%S} UTC"
        self.said = "" if told.good else f"{pressed}: {unanswered(told)}"
        outcome = str(told.content["state"]) if told.good else outcome_of(told)
        await record(console.engine, session, action="panic exit", reason=reason, outcome=outcome)


def unanswered(told: Told) -> str:
    """What came of a press that was not answered well. What keeps the api from answering stands on the page."""
    if told.status == 0:
        return "no answer came, so it is not known whether anything was done."
    return f"nothing was done: {told.problem}."


def panic(console: Console) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix=PATH, include_in_schema=False)
    underway = Underway()

    @router.get("")
    async def show(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return await _page(console, session_of(request), underway)

    @router.post("/dry-run")
    async def dry_run(request: Request, form_token: Words) -> Response:  # pyright: ignore[reportUnusedFunction]
        session = session_of(request)
        if not right_form(request, form_token):
            return await _page(console, session, underway, problem="This form is out of date: press again.")
        asked = {"dry_run": True, "reason": "dry run from the console"}
        told = await console.house.post("/strategist/panic-exit", session, asked, limit_s=EXIT_LIMIT_S)
        await record(console.engine, session, action="panic dry run", outcome=outcome_of(told))
        problem = "" if told.good else f"The list of what would be closed: {unanswered(told)}"
        return await _page(console, session, underway, problem=problem, would=told.content if told.good else None)

    @router.post("")
    async def press(  # pyright: ignore[reportUnusedFunction]
        request: Request,
        form_token: Words,
        confirm: Words = "",
        reason: Words = "",
        minutes: Annotated[int, Form(ge=0, le=525_600)] = 60,
    ) -> Response:
        session = session_of(request)
        if not right_form(request, form_token):
            return await _page(console, session, underway, problem="This form is out of date: press again.")
        if confirm.strip() != WORD:
            return await _page(console, session, underway, problem=f"Nothing was done: type {WORD} to confirm.")
        underway.begin(console, session, reason.strip() or "panic exit from the console", minutes)
        return RedirectResponse(PATH, status_code=HTTPStatus.SEE_OTHER)

    @router.post("/rearm")
    async def rearm(request: Request, form_token: Words, confirm: Words = "", reason: Words = "") -> Response:  # pyright: ignore[reportUnusedFunction]
        session = session_of(request)
        if not right_form(request, form_token):
            return await _page(console, session, underway, problem="This form is out of date: press again.")
        if confirm.strip() != "REARM" or not reason.strip():
            words = "Nothing was done: a re-arm needs a reason, and the word REARM."
            return await _page(console, session, underway, problem=words)
        asked = {"operator": session.name, "reason": reason.strip(), "confirm": "REARM"}
        told = await console.house.post("/strategist/rearm", session, asked)
        await record(console.engine, session, action="re-arm", reason=reason, outcome=outcome_of(told))
        done = "Entries are let in again." if told.good else ""
        problem = "" if told.good else f"The re-arm: {unanswered(told)}"
        return await _page(console, session, underway, problem=problem, done=done)

    return router


async def _page(
    console: Console,
    session: Session,
    underway: Underway,
    *,
    problem: str = "",
    done: str = "",
    would: Any = None,
) -> Response:
    """The page as it is now. What a press was answered with stands on top of it."""
    halt = await console.house.get("/strategist/halt", session)
    exit_id = halt.content["latest_exit"] if halt.good else None
    told = await console.house.get(f"/strategist/panic-exit/{exit_id}", session) if exit_id else Told(0, None)
    latest = told.content if exit_id and told.good else None
    known = Known() if latest is None else await told_of(console.engine, UUID(str(exit_id)), begun_of(latest))
    running = bool(underway.tasks) or (latest is not None and latest["state"] == "RUNNING")
    shown = {
        "halt": halt,
        "rearm_from": moment(halt.content["halted_until"]) if halt.good and halt.content["halted_until"] else "",
        "latest": latest,
        "state": None if latest is None else state_of(latest, known, halted=bool(halt.content["halted"])),
        "steps": [] if latest is None else steps_of(latest),
        "would": would,
        "armed": halt.good and bool(halt.content["panic_enabled"]),
        "pressed": bool(underway.tasks),
        "problem": problem or underway.said,
        "done": done,
        "word": WORD,
        "may": {scope: session.may(scope) for scope in ("panic", "rearm")},
    }
    refresh_s = 1 if running and not (problem or done or would) else 0
    return form_page("panic.html", title="Panic", here=PATH, session=session, refresh_s=refresh_s, shown=shown)
