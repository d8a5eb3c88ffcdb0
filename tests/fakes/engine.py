"""A model server on loopback that speaks the engines' dialects and misbehaves on request.

In a test: `async with FakeEngine(dialect="vllm", slots=64) as fake:`, then `fake.base_url`, `fake.reply`, `fake.fault`.
As a process: `python -m tests.fakes.engine --port 8008 --slots 64 --delay-ms 250 --chunks 1 --reply OK`.
"""

import argparse
import asyncio
import heapq
import itertools
import json
import signal
import ssl
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from tests.fakes.engine_replies import (
    FakeDialect,
    Fault,
    Reply,
    ReplySource,
    by_constraint,
    llamacpp_metrics,
    split,
    usage,
    vllm_metrics,
)
from tests.fakes.engine_wire import Connection, WireRequest

__all__ = ["FakeEngine", "Fault", "Reply"]


class FakeEngine:
    """The engine. Set the public attributes at any time; they act on the next request.

    `delay_s` passes between taking a slot and the first chunk, `gap_s` between chunks. `faults` holds the faults of
    the next requests, one each; when it is empty, `fault` applies. Counters: `requests` (bodies), `headers`, `active`
    (holding a slot), `waiting`, `peak`, `served`, `aborted` (callers that left), `connections_made`.
    """

    def __init__(
        self,
        *,
        dialect: FakeDialect = "vllm",
        slots: int = 64,
        model: str = "Lexi",
        reply: ReplySource = "OK",
        chunks: int = 4,
        delay_s: float = 0.0,
        gap_s: float = 0.0,
        api_key: str | None = None,
        keep_alive_s: float = 5.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.dialect: FakeDialect = dialect
        self.slots = slots
        self.model = model
        self.reply = reply
        self.chunks = chunks
        self.delay_s = delay_s
        self.gap_s = gap_s
        self.api_key = api_key
        self.keep_alive_s = keep_alive_s
        self.fault = Fault.NONE
        self.faults: deque[Fault] = deque()
        self.fault_status = 500
        self.fault_body: str | None = None
        self.retry_after: str | None = None
        self.metrics_on = True
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.active = self.waiting = self.peak = self.served = self.aborted = self.connections_made = 0
        self.iterations = self.tokens = 0
        self._tls = tls
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def base_url(self) -> str:
        """Where the OpenAI API is, e.g. `http://127.0.0.1:41234/v1`."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def start(self, port: int | None = None) -> None:
        """Listen; a second start after `stop` takes the same port again unless another is given."""
        loop = asyncio.get_running_loop()
        wanted = self.port if port is None else port
        self._server = await loop.create_server(self._connection, "127.0.0.1", wanted, ssl=self._tls, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Go away as a killed server does: stop listening and drop every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._connections):
            connection.drop()
        await asyncio.sleep(0)
        await self._server.wait_closed()
        self._server = None

    def drop_idle(self) -> None:
        """Close every open connection, as a server does whose keep-alive ran out."""
        for connection in tuple(self._connections):
            connection.drop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _connection(self) -> Connection:
        self.connections_made += 1
        return Connection(self._handle, self._connections, self.keep_alive_s)

    async def _handle(self, connection: Connection, request: WireRequest) -> None:
        path = request.path.split("?", 1)[0]
        self.paths.append(path)
        if self.fault is Fault.FROZEN:
            await asyncio.Event().wait()
        if path == "/v1/chat/completions" and request.method == "POST":
            await self._chat(connection, request)
        elif path == "/health" and self.dialect != "openai":
            connection.answer(200, b"" if self.dialect == "vllm" else b'{"status":"ok"}')
        elif path == "/metrics" and self.dialect != "openai" and self.metrics_on:
            connection.answer(200, self.metrics().encode(), content_type="text/plain; version=0.0.4")
        elif path == "/version" and self.dialect == "vllm":
            connection.answer(200, b'{"version":"0.19.0"}')
        elif path == "/props" and self.dialect == "llamacpp":
            connection.answer(200, json.dumps({"total_slots": self.slots}).encode())
        elif path == "/v1/models":
            self._models(connection, request)
        else:
            connection.answer(404, b'{"error":{"message":"not found","type":"NotFoundError","code":404}}')

    def _refused_key(self, connection: Connection, request: WireRequest) -> bool:
        if self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}":
            return False
        connection.answer(401, b'{"error":{"message":"Unauthorized","type":"invalid_request_error","code":401}}')
        return True

    def _models(self, connection: Connection, request: WireRequest) -> None:
        if self._refused_key(connection, request):
            return
        owner = {"vllm": "vllm", "llamacpp": "llamacpp", "openai": "system"}[self.dialect]
        entry = {"id": self.model, "object": "model", "created": 1, "owned_by": owner}
        connection.answer(200, json.dumps({"object": "list", "data": [entry]}).encode())

    def metrics(self) -> str:
        """What /metrics says, with the names of the dialect."""
        if self.dialect == "llamacpp":
            return llamacpp_metrics(self.active, self.waiting, self.iterations, self.tokens)
        return vllm_metrics(self.model, self.active, self.waiting, self.iterations, self.tokens)

    async def _chat(self, connection: Connection, request: WireRequest) -> None:
        if self._refused_key(connection, request):
            return
        body: dict[str, Any] = json.loads(bytes(request.body))
        self.requests.append(body)
        self.headers.append(request.headers)
        source = self.reply(body) if callable(self.reply) else self.reply
        reply = source if isinstance(source, Reply) else Reply(source)
        fault = self.faults.popleft() if self.faults else self.fault
        if reply.fault is not None:
            fault = reply.fault
        if self._fails_at_once(connection, fault):
            return
        try:
            async with self._slot(int(body.get("priority", 0)) if self.dialect == "vllm" else 0):
                await self._answer(connection, body, reply, fault)
                self.served += 1
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    def _fails_at_once(self, connection: Connection, fault: Fault) -> bool:
        if fault is Fault.STATUS:
            message = f"status {self.fault_status} on request"
            text = json.dumps({"error": {"message": message}}) if self.fault_body is None else self.fault_body
            more = {} if self.retry_after is None else {"retry_after": self.retry_after}
            connection.answer(self.fault_status, text.encode(), **more)
        elif fault is Fault.CLOSE:
            connection.drop()
        elif fault is Fault.GARBAGE:
            connection.write_raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        else:
            return False
        return True

    @asynccontextmanager
    async def _slot(self, priority: int) -> AsyncGenerator[None]:
        if self.active >= self.slots:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._queue, (priority, next(self._order), turn))
            self.waiting += 1
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._free()
                raise
            finally:
                self.waiting -= 1
        else:
            self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            yield
        finally:
            self._free()

    def _free(self) -> None:
        while self._queue:
            turn = heapq.heappop(self._queue)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self.active -= 1

    async def _answer(self, connection: Connection, body: dict[str, Any], reply: Reply, fault: Fault) -> None:
        if fault in {Fault.SILENT, Fault.STUCK}:
            await asyncio.Event().wait()
        delay = self.delay_s if reply.delay_s is None else reply.delay_s
        if body.get("stream"):
            await self._stream(connection, body, reply, fault, delay)
            return
        await asyncio.sleep(delay)
        self.iterations += 1
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        answer = {"id": "chatcmpl-fake", "object": "chat.completion", "created": 1, "model": self.model}
        connection.answer(200, json.dumps({**answer, "choices": [choice], "usage": usage(reply)}).encode())

    async def _stream(
        self, connection: Connection, body: dict[str, Any], reply: Reply, fault: Fault, delay: float
    ) -> None:
        if fault in {Fault.HEADERS_ONLY, Fault.PINGS_ONLY}:
            connection.begin(200, content_type="text/event-stream")
            while fault is Fault.PINGS_ONLY:
                connection.write(b": ping\n\n")
                await asyncio.sleep(0.02)
            await asyncio.Event().wait()
        await asyncio.sleep(delay)
        connection.begin(200, content_type="text/event-stream; charset=utf-8")
        connection.write(self._event({"role": "assistant", "content": "" if self.dialect == "vllm" else None}))
        pieces = split(reply.text, self.chunks)
        half = (len(pieces) + 1) // 2
        for number, piece in enumerate(pieces):
            if number == half and await self._breaks(connection, fault):
                return
            connection.write(self._event({"content": piece}))
            self.iterations += 1
            self.tokens += 1
            await asyncio.sleep(self.gap_s)
        if len(pieces) <= half and await self._breaks(connection, fault):
            return
        self._end_stream(connection, body, reply, fault)

    async def _breaks(self, connection: Connection, fault: Fault) -> bool:
        if fault is Fault.STALL:
            await asyncio.Event().wait()
        elif fault is Fault.CUT:
            connection.finish()
        elif fault is Fault.MALFORMED:
            connection.write(b'data: {"choices": [{"delta": {"content": \n\n')
            connection.end()
        elif fault is Fault.ERROR_EVENT:
            error = {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}
            connection.write(b"data: " + json.dumps(error).encode() + b"\n\n")
            connection.write(b"data: [DONE]\n\n")
            connection.end()
        else:
            return False
        return True

    def _end_stream(self, connection: Connection, body: dict[str, Any], reply: Reply, fault: Fault) -> None:
        if fault is not Fault.NO_FINISH:
            connection.write(self._event({}, reply.finish_reason))
        if body.get("stream_options", {}).get("include_usage") and fault is not Fault.NO_USAGE:
            connection.write(
                b"data: " + json.dumps({**self._frame(), "choices": [], "usage": usage(reply)}).encode() + b"\n\n"
            )
        if fault is not Fault.NO_DONE:
            connection.write(b"data: [DONE]\n\n")
        connection.end()

    def _frame(self) -> dict[str, Any]:
        return {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 1, "model": self.model}

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return b"data: " + json.dumps({**self._frame(), "choices": [choice]}).encode() + b"\n\n"


def arguments() -> argparse.Namespace:
    """The command line of the fake as a process."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fakes.engine", description="A fake model server on loopback."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; the first line printed names it")
    parser.add_argument("--dialect", choices=("vllm", "llamacpp", "openai"), default="vllm")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="from taking a slot to the first chunk")
    parser.add_argument("--gap-ms", type=float, default=0.0, help="between chunks")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--model", default="Lexi")
    parser.add_argument("--reply", default="OK")
    parser.add_argument("--reply-by-constraint", action="store_true", help="answer within the constraint asked for")
    parser.add_argument("--fault", choices=[fault.value for fault in Fault], default="none")
    return parser.parse_args()


async def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = arguments()
    fake = FakeEngine(
        dialect=options.dialect,
        slots=options.slots,
        model=options.model,
        reply=by_constraint(options.reply) if options.reply_by_constraint else options.reply,
        chunks=options.chunks,
        delay_s=options.delay_ms / 1000,
        gap_s=options.gap_ms / 1000,
    )
    fake.fault = Fault(options.fault)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    await fake.start(options.port)
    sys.stdout.write(f"{fake.base_url}\n")
    sys.stdout.flush()
    await stop.wait()
    await fake.stop()


if __name__ == "__main__":
    asyncio.run(main())
