"""Errors over HTTP as RFC 9457 problems: `{type, title, status, detail, …}` as `application/problem+json`."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from libs.db.engine import CONNECT_S, INTERACTIVE_S

MEDIA_TYPE = "application/problem+json"
FIELDS_SHOWN = 20

# Classes of SQLSTATE: data exceptions; broken constraints, syntax and access rules.
CANNOT_TAKE = "22"
OUR_FAULTS = ("23", "42")

DATABASE_AWAY = "the database cannot be reached at the moment"
UNKNOWN_PARAMETER = "this route has no such parameter"

log = structlog.get_logger(__name__)


class Problem(Exception):
    """An answer that is an error. Subclasses fix the status; `detail` is a sentence for whoever called.

    `extra` members stand beside `detail` in the body, `headers` go out with it.
    """

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(
        self, detail: str, *, extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})


class BadRequest(Problem):
    """The request cannot be understood."""

    status = HTTPStatus.BAD_REQUEST


class Unauthorized(Problem):
    """No key, or a wrong one."""

    status = HTTPStatus.UNAUTHORIZED

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    """The key is known and may not do this."""

    status = HTTPStatus.FORBIDDEN


class NotFound(Problem):
    """There is no such thing."""

    status = HTTPStatus.NOT_FOUND


class Conflict(Problem):
    """What is there does not allow this now."""

    status = HTTPStatus.CONFLICT


class Unprocessable(Problem):
    """The request is well formed and its content is not acceptable."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


class BadGateway(Problem):
    """Something behind us answered badly."""

    status = HTTPStatus.BAD_GATEWAY


class Unavailable(Problem):
    """Something behind us cannot be reached, or is busy."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class GatewayTimeout(Problem):
    """Something behind us took too long."""

    status = HTTPStatus.GATEWAY_TIMEOUT


def response(
    status: int, detail: str, *, extra: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """A problem as a response."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": int(status), "detail": detail}
    return JSONResponse({**body, **(extra or {})}, status_code=status, headers=headers, media_type=MEDIA_TYPE)


async def _on_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - narrows the type; registered for this class alone
    return response(error.status, error.detail, extra=error.extra, headers=error.headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - narrows the type; registered for this class alone
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is no route {request.url.path}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.url.path} does not answer {request.method}"
    return response(error.status_code, detail, headers=error.headers)


async def _on_invalid(_request: Request, error: Exception) -> Response:
    """Name the fields at fault. What was sent is not repeated: it may be secret, huge, or no JSON at all."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - narrows the type; registered for this class alone
    found: list[dict[str, str]] = []
    for item in list(error.errors())[:FIELDS_SHOWN]:
        if item["type"] == "json_invalid":
            return response(
                HTTPStatus.BAD_REQUEST, f"the body is not JSON: {item['ctx']['error']} at position {item['loc'][-1]}"
            )
        place, *path = (str(part) for part in item["loc"])
        unknown = item["type"] == "extra_forbidden" and place == "query"
        message = UNKNOWN_PARAMETER if unknown else str(item["msg"])
        found.append({"in": place, "field": ".".join(path) or place, "message": message})
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in found[:3])
    return response(HTTPStatus.UNPROCESSABLE_ENTITY, detail, extra={"errors": found})


async def _on_database(_request: Request, error: Exception) -> Response:
    """A value Postgres cannot take is the caller's fault, a broken statement ours; all else means it is away."""
    state: str = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    if state.startswith(CANNOT_TAKE):
        return response(HTTPStatus.UNPROCESSABLE_ENTITY, "a value holds what the database cannot take, such as NUL")
    if state.startswith(OUR_FAULTS) or isinstance(error, IntegrityError | ProgrammingError):
        raise error
    detail = _why_away(error)
    log.warning("database_unreachable", error=type(error).__name__, detail=detail)
    return response(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "2"})


def _why_away(error: Exception) -> str:
    """Which limit ended it, where one did. Connecting and a statement are bounded alike where somebody waits."""
    if isinstance(error, PoolTimeout):
        return f"no connection to the database came free within {CONNECT_S:g} s"
    return (
        f"the database did not answer within {INTERACTIVE_S:g} s" if isinstance(error, TimeoutError) else DATABASE_AWAY
    )


async def _on_bug(_request: Request, _error: Exception) -> Response:
    detail = "an error on our side; the log has it under the X-Request-Id of this answer"
    return response(HTTPStatus.INTERNAL_SERVER_ERROR, detail)


def install(app: FastAPI) -> None:
    """Make every error of an app a problem: ours, validation, unknown routes and methods, the database away, bugs.

    Bugs are raised on after their answer, for the edge (`libs.http_app`) to log.
    """
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for away in (DBAPIError, PoolTimeout, ConnectionError, TimeoutError, asyncpg.PostgresConnectionError):
        app.add_exception_handler(away, _on_database)
    app.add_exception_handler(Exception, _on_bug)
