"""`/health`, `/ready` and `/metrics` on asyncio alone: the frame of the other services would double the memory."""

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.watchdog.vitals import Vitals

MOST_HEAD_BYTES = 8192
MOST_CALLERS = 16
CALLER_S = 5.0
TEXT = "text/plain; charset=utf-8"


class PortTakenError(Exception):
    """Another program listens on the port of the metrics."""


class Page:
    """Answers each connection once and closes it."""

    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals
        self._callers = 0

    async def open(self, host: str, port: int) -> asyncio.Server:
        """Listen. Raises `PortTakenError`."""
        try:
            return await asyncio.start_server(self._serve, host, port, limit=MOST_HEAD_BYTES)
        except OSError as error:
            raise PortTakenError(
                f"cannot listen on {host}:{port} ({error.strerror}): stop what listens there "
                f"(`ss -ltnp 'sport = :{port}'` shows it), or set WATCHDOG_METRICS_PORT to a free port"
            ) from error

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._callers += 1
        try:
            # A caller that goes, dawdles or sends no head is let go of; nothing is owed to it.
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(CALLER_S):
                    await self._answer(reader, writer)
        finally:
            self._callers -= 1
            writer.close()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self._callers > MOST_CALLERS:
            return
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        method, target = (words[0], words[1]) if len(words) == 3 else ("", "")
        status, kind, body = self._reply(method, target.split("?", 1)[0])
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        writer.write("\r\n".join((*lines, "", "")).encode() + (b"" if method == "HEAD" else body))
        await writer.drain()

    def _reply(self, method: str, path: str) -> tuple[HTTPStatus, str, bytes]:
        if not method:
            return HTTPStatus.BAD_REQUEST, TEXT, b"not a request\n"
        if method not in {"GET", "HEAD"}:
            return HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET and HEAD are answered here\n"
        if path == "/health":
            return HTTPStatus.OK, "application/json", b'{"status":"ok"}'
        if path == "/ready":
            good, lines = self._vitals.ready()
            return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, TEXT, lines.encode()
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest()
        return HTTPStatus.NOT_FOUND, TEXT, b"/health, /ready and /metrics are answered here\n"
