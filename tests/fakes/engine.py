"""A model server on loopback that speaks the engines' dialects and misbehaves on request.

In a test: `async with FakeEngine(dialect="vllm", slots=64) as fake:`, then `fake.base_url`, `fake.reply`, `fake.fault`.
As a process: `python -m tests.fakes.engine --port 8008 --slots 64 --delay-ms 250 --chunks 1 --reply OK`.
"""

import asyncio
import heapq
import itertools
import json
import signal
import ssl
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from tests.fakes.engine_arguments import arguments
from tests.fakes.engine_embeddings import EmbeddingForm
from tests.fakes.engine_errors import answer_tokens, prompt_tokens, too_long, unknown_model
from tests.fakes.engine_forms import Asked, ChatForm, CompletionForm, Form
from tests.fakes.engine_replies import (
    FakeDialect,
    Fault,
    Reply,
    ReplySource,
    ToolCall,
    by_constraint,
    llamacpp_metrics,
    vllm_metrics,
)
from tests.fakes.engine_responses import ResponseForm
from tests.fakes.engine_serving import Serving
from tests.fakes.engine_wire import Connection, WireRequest

__all__ = ["FakeEngine", "Fault", "Reply", "ToolCall"]

FORMS: dict[str, Callable[[Asked], Form]] = {
    "/v1/chat/completions": ChatForm,
    "/v1/completions": CompletionForm,
    "/v1/embeddings": EmbeddingForm,
    "/v1/responses": ResponseForm,
}


class FakeEngine:
    """The engine. Set the public attributes at any time; they act on the next request.

    `delay_s` passes between taking a slot and the first chunk, `gap_s` between chunks. `faults` holds the faults of
    the next requests, one each; when it is empty, `fault` applies. `context` (tokens) refuses what is longer, and
    `strict_model` what is meant for another model. Counters: `requests` (bodies), `headers`, `active`
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
        self.fault_event: dict[str, object] = {
            "message": "EngineCore died",
            "type": "InternalServerError",
            "code": 500,
        }
        self.retry_after: str | None = None
        self.huge_bytes = 1024 * 1024
        self.context: int | None = None
        self.strict_model = True
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

    @property
    def connections(self) -> int:
        """How many connections are open, idle ones included."""
        return len(self._connections)

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
        if path in FORMS and request.method == "POST":
            await self._generate(connection, request, FORMS[path])
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

    async def _generate(self, connection: Connection, request: WireRequest, shape: Callable[[Asked], Form]) -> None:
        if self._refused_key(connection, request):
            return
        body: dict[str, Any] = json.loads(bytes(request.body))
        self.requests.append(body)
        self.headers.append(request.headers)
        if self._refused_body(connection, body):
            return
        source = self.reply(body) if callable(self.reply) else self.reply
        reply = source if isinstance(source, Reply) else Reply(source)
        fault = self.faults.popleft() if self.faults else self.fault
        if reply.fault is not None:
            fault = reply.fault
        if self._fails_at_once(connection, body, fault):
            return
        chunks = self.chunks
        if fault is Fault.HUGE:
            reply, chunks = replace(reply, text="x" * self.huge_bytes, tokens_out=1), 1
        form = shape(Asked(body, reply, self.model, self.dialect, chunks, len(self.requests)))
        delay_s = self.delay_s if reply.delay_s is None else reply.delay_s
        serving = Serving(connection, form, fault, delay_s, lambda: self.gap_s, self._stepped, self.fault_event)
        try:
            async with self._slot(int(body.get("priority") or 0) if self.dialect == "vllm" else 0):
                await serving.answer(stream=bool(body.get("stream")))
                self.served += 1
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    def _stepped(self, tokens: int) -> None:
        self.iterations += 1
        self.tokens += tokens

    def _refused_body(self, connection: Connection, body: dict[str, Any]) -> bool:
        """Refuse a model that is not served and a prompt that does not fit; llama.cpp takes any model's name."""
        if self.strict_model and self.dialect != "llamacpp" and body.get("model") not in {None, self.model}:
            connection.answer(404, unknown_model(body["model"], self.dialect))
            return True
        tokens, answer = prompt_tokens(body), answer_tokens(body)
        if self.context is None or tokens + answer <= self.context:
            return False
        connection.answer(400, too_long(tokens, answer, self.context, self.dialect))
        return True

    def _fails_at_once(self, connection: Connection, body: dict[str, Any], fault: Fault) -> bool:
        if fault is Fault.STATUS:
            message = f"status {self.fault_status} on request"
            text = json.dumps({"error": {"message": message}}) if self.fault_body is None else self.fault_body
            more = {} if self.retry_after is None else {"retry_after": self.retry_after}
            connection.answer(self.fault_status, text.encode(), **more)
        elif fault is Fault.CONTEXT:
            tokens, answer = prompt_tokens(body), answer_tokens(body)
            connection.answer(400, too_long(tokens, answer, self.context or 4, self.dialect))
        elif fault is Fault.CLOSE or (fault is Fault.STALE and connection.requests > 1):
            connection.drop()
        elif fault is Fault.RESET:
            connection.reset()
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
