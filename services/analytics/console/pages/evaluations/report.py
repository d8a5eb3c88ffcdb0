"""The stored report of an evaluation, served as it was written and shut into a sandbox: it quotes what models said."""

import asyncio
import gzip
from typing import Final
from uuid import UUID

from fastapi import APIRouter, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import PlainTextResponse, Response

from services.analytics.console.layout.frame import Console
from services.analytics.console.pages.evaluations.queries import report

POLICY: Final = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Content-Disposition": "inline",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Vary": "Accept-Encoding",
}


def evaluation_report(console: Console) -> APIRouter:
    """The route. The door of the console asks for a session before it."""
    router = APIRouter(include_in_schema=False)

    @router.get("/evaluations/{run_id}/report")
    async def serve(request: Request, run_id: UUID) -> Response:  # pyright: ignore[reportUnusedFunction]
        try:
            async with console.engine.connect() as connection:
                stored = await report(connection, run_id)
        except (SQLAlchemyError, OSError):
            return PlainTextResponse("Postgres does not answer: the report cannot be read now.", status_code=503)
        if stored is None:
            return PlainTextResponse("There is no report of this evaluation.", status_code=404)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers = {**HEADERS, "Content-Encoding": "gzip"}
            return Response(stored, media_type="text/html; charset=utf-8", headers=headers)
        page = await asyncio.to_thread(gzip.decompress, stored)
        return Response(page, media_type="text/html; charset=utf-8", headers=HEADERS)

    return router
