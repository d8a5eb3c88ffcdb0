"""The broker as an ASGI app, on sockets or in memory, on the wall's clock or any other."""

import asyncio
import hmac
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Protocol

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from libs.probes import Checks, probe_routes
from services.paper import requests, routes
from services.paper.asked import Ask
from services.paper.cuts import ResetAnswer, SilentAnswer
from services.paper.exchange import Exchange
from services.paper.faults import Failure, Latency, Reset, Silence, When, WireFault
from services.paper.routes import Answer, Call
from services.paper.types import Account, Changes, Refusal

UNAUTHORISED = Refusal(401, 40110000, "request is not authorized")
OUR_FAULT = Refusal(500, 50010000, "internal server error occurred")

log = structlog.get_logger(__name__)


class Store(Protocol):
    """Where changes go before anybody is told of them."""

    def save(self, changes: Changes, account: Account) -> None:
        """Store them, all or none. Raises `sqlite3.Error`."""
        ...


@dataclass(frozen=True, slots=True)
class PaperKeys:
    """The one key that may trade."""

    key_id: str
    secret: str

    def fit(self, request: Request) -> bool:
        """Whether a request shows it."""
        given = request.headers.get("apca-api-key-id", ""), request.headers.get("apca-api-secret-key", "")
        id_fits = hmac.compare_digest(given[0].encode(), self.key_id.encode())
        secret_fits = hmac.compare_digest(given[1].encode(), self.secret.encode())
        return id_fits and secret_fits


class Desk:
    """The exchange behind its counter: time passes, the work is done, it is stored, then it is told."""

    def __init__(
        self,
        exchange: Exchange,
        store: Store | None,
        *,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        keys: PaperKeys | None,
    ) -> None:
        self.exchange = exchange
        self.sleep = sleep
        self.keys = keys
        self._store = store
        self._clock = clock

    def settle(self) -> None:
        """Let time pass and store what changed. Raises `sqlite3.Error`: then it is stored with what comes next."""
        self.exchange.advance(self._clock())
        self._save()

    def serve(self, call: Call, ask: Ask) -> Answer:
        """Do one call's work. Nothing else happens in between: it never waits."""
        self.exchange.advance(self._clock())
        try:
            answer = call(self.exchange, ask)
        except Refusal as refusal:
            answer = refused(refusal)
        self._save()
        return answer

    def _save(self) -> None:
        changes = self.exchange.changes
        if changes and self._store is not None:
            self._store.save(changes, self.exchange.ledger.account)
        changes.clear()


def refused(refusal: Refusal) -> Answer:
    """A refusal as an answer."""
    return Answer(refusal.body, refusal.status)


def rendered(answer: Answer) -> Response:
    """An answer as it goes out."""
    return (
        Response(status_code=answer.status) if answer.content is None else JSONResponse(answer.content, answer.status)
    )


def struck(faults: Sequence[WireFault], when: When) -> Response | None:
    """What is sent instead of an answer, None where no fault says so."""
    for fault in faults:
        if isinstance(fault, Latency) or fault.when != when:
            continue
        match fault:
            case Reset():
                return ResetAnswer()
            case Silence():
                return SilentAnswer()
            case Failure():
                return rendered(refused(Refusal(fault.status, fault.code, fault.message)))
    return None


def endpoint(desk: Desk, name: str, call: Call) -> Callable[[Request], Awaitable[Response]]:
    """A call as Starlette serves it: key, faults, the work, faults."""

    async def serve(request: Request) -> Response:
        if desk.keys is not None and not desk.keys.fit(request):
            return rendered(refused(UNAUTHORISED))
        ask = Ask(path=request.path_params, query=request.query_params, body=await request.body())
        faults = desk.exchange.faults.on_call(name) if name in routes.CALLS else []
        for fault in faults:
            if isinstance(fault, Latency):
                await desk.sleep(fault.ms / 1000)
        early = struck(faults, "before")
        if early is not None:
            return early
        try:
            answer = desk.serve(call, ask)
        except sqlite3.Error:
            log.exception("not_stored", call=name)
            answer = refused(OUR_FAULT)
        return struck(faults, "after") or rendered(answer)

    return serve


def wire_routes(desk: Desk) -> list[BaseRoute]:
    """All calls. A symbol may hold a slash."""
    made: list[BaseRoute] = []
    for name, call in {**routes.CALLS, **requests.CALLS}.items():
        method, path = name.split(" ")
        template = path.replace("{symbol}", "{symbol:path}")
        made.append(Route(template, endpoint(desk, name, call), methods=[method]))
    return made


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Unknown routes and methods, in the form of every other error."""
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    return rendered(refused(Refusal(status, status * 100_000, HTTPStatus(status).phrase.lower())))


def wall_clock() -> datetime:
    """Now."""
    return datetime.now(UTC)


def create_app(
    exchange: Exchange,
    store: Store | None = None,
    *,
    clock: Callable[[], datetime] = wall_clock,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    keys: PaperKeys | None = None,
    checks: Checks | None = None,
) -> Starlette:
    """The app. In memory it needs no store; `clock` and `sleep` may be those of a simulation.

    `app.state.desk` is the desk: call `settle()` now and then, so that orders fill while nobody asks.
    """
    desk = Desk(exchange, store, clock=clock, sleep=sleep, keys=keys)
    handlers: dict[Any, Any] = {HTTPException: on_http_exception}
    app = Starlette(
        routes=[*probe_routes({} if checks is None else checks), *wire_routes(desk)], exception_handlers=handlers
    )
    app.state.desk = desk
    return app
