"""Liveness, readiness and metrics: the same three routes on every process.

`/health` says that the event loop turns. `/ready` has one line per dependency: green, yellow with what is amiss (this
process still does its work), or red with why not (then the status is 503). `/metrics` speaks Prometheus.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from libs.db.engine import DatabaseError, require_schema

CHECK_TIMEOUT_S = 2.0
PATHS = ("/health", "/ready", "/metrics")

log = structlog.get_logger(__name__)


class Degraded(str):
    """A reason that does not stop this process from doing its work: `/ready` shows it in yellow and stays 200."""

    __slots__ = ()


Check: TypeAlias = Callable[[], Awaitable[str | None]]
"""None when all is well, else the reason; a `Degraded` reason is yellow, any other is red."""


Checks: TypeAlias = Mapping[str, Check] | Callable[[], Mapping[str, Check]]
"""The lines of `/ready` by name, or what gives them each time it is asked for, where they come and go."""


def database_checks(engine: AsyncEngine) -> dict[str, Check]:
    """The checks of a process that lives on Postgres: it answers, and its schema is new enough."""

    async def database() -> str | None:
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
        return None

    async def schema() -> str | None:
        try:
            await require_schema(engine)
        except DatabaseError as error:
            return str(error)
        return None

    return {"database": database, "schema": schema}


async def _outcome(name: str, check: Check) -> tuple[bool, str]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            reason = await check()
    except TimeoutError:
        reason = f"no answer within {CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001 - a check may fail in any way; that is its result, shown and logged
        log.warning("readiness_check_failed", check=name, error=repr(error))
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason is None:
        return True, f"green  {name}"
    if isinstance(reason, Degraded):
        return True, f"yellow {name}: {reason}"
    return False, f"red    {name}: {reason}"


def probe_routes(checks: Checks) -> list[BaseRoute]:
    """The routes `/health`, `/ready` and `/metrics`. Checks run side by side, each bounded in time."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        now = checks() if callable(checks) else checks
        outcomes = await asyncio.gather(*(_outcome(name, check) for name, check in now.items()))
        lines = "".join(f"{line}\n" for _, line in outcomes)
        return PlainTextResponse(lines, status_code=200 if all(good for good, _ in outcomes) else 503)

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route(path, endpoint) for path, endpoint in zip(PATHS, (health, ready, metrics), strict=True)]


def probe_app(checks: Checks) -> Starlette:
    """An app with the three routes alone, for a process without an API."""
    return Starlette(routes=probe_routes(checks))
