"""How the fake engine gives an answer, once it has a slot for it, and the ways in which that goes wrong."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.fakes.engine_forms import Form
from tests.fakes.engine_replies import Fault
from tests.fakes.engine_wire import Connection

NEVER = frozenset({Fault.SILENT, Fault.STUCK})
HEAD_FIRST = frozenset({Fault.HEADERS_ONLY, Fault.PINGS_ONLY, Fault.RESET_AFTER_HEAD})
WRONG_BODY = frozenset({Fault.CUT_BODY, Fault.LENGTH_TOO_LONG, Fault.LENGTH_TOO_SHORT, Fault.NOT_JSON})
STREAM = "text/event-stream; charset=utf-8"
PING_S = 0.02
OVERHANG = 64


@dataclass(frozen=True, slots=True)
class Serving:
    """One answer: its form, what goes wrong, and how fast it comes. `stepped` is told of each piece that went out,
    `error` is what an error event says."""

    connection: Connection
    form: Form
    fault: Fault
    delay_s: float
    gap_s: Callable[[], float]
    stepped: Callable[[int], None]
    error: Mapping[str, object]

    async def answer(self, *, stream: bool) -> bool:
        """Give it. True where it was given whole."""
        if self.fault in NEVER:
            await asyncio.Event().wait()
        if self.fault in HEAD_FIRST:
            await self._head_only(stream=stream)
            return False
        await asyncio.sleep(self.delay_s)
        if self.fault in WRONG_BODY:
            self.wrong_body(self._everything(stream=stream), stream=stream)
            return False
        if stream and self.form.streams:
            return await self._stream()
        if self.fault in {Fault.CUT, Fault.RESET_MIDSTREAM, Fault.STALL, Fault.BAD_CHUNK}:
            await self._break_whole()
            return False
        self.stepped(0)
        whole = self.form.whole()
        if self.fault is Fault.NO_USAGE:
            del whole["usage"]
        self.connection.answer(200, json.dumps(whole).encode())
        return True

    async def _head_only(self, *, stream: bool) -> None:
        self.connection.begin(200, content_type="text/event-stream" if stream else "application/json")
        while self.fault is Fault.PINGS_ONLY:
            self.connection.write(b": ping\n\n" if stream else b" ")
            await asyncio.sleep(PING_S)
        if self.fault is Fault.RESET_AFTER_HEAD:
            await asyncio.sleep(PING_S)
            self.connection.reset()
            return
        await asyncio.Event().wait()

    def _everything(self, *, stream: bool) -> bytes:
        form = self.form
        if not (stream and form.streams):
            return json.dumps(form.whole()).encode()
        pieces = [form.piece(number) for number in range(form.length)]
        return b"".join([form.opening(), *pieces, form.finish(), form.usage(), form.done()])

    def wrong_body(self, body: bytes, *, stream: bool) -> None:
        """A body that is not what its head says."""
        connection, kind = self.connection, STREAM if stream else "application/json"
        if self.fault is Fault.NOT_JSON:
            connection.answer(200, b"<html><body>It works!</body></html>", content_type=kind)
            return
        sent = body[: len(body) // 2] if self.fault is Fault.CUT_BODY else body
        length = len(body) - OVERHANG if self.fault is Fault.LENGTH_TOO_SHORT else len(body)
        length += OVERHANG if self.fault is Fault.LENGTH_TOO_LONG else 0
        connection.begin(200, content_type=kind, length=length)
        connection.write_raw(sent)
        if self.fault is not Fault.LENGTH_TOO_SHORT:
            connection.finish()

    async def _break_whole(self) -> None:
        """The faults of a stream, on an answer that is not one: a chunked body that stops half way."""
        text = json.dumps(self.form.whole()).encode()
        self.connection.begin(200)
        self.connection.write(text[: len(text) // 2])
        await self._breaks()

    async def _stream(self) -> bool:
        connection, form = self.connection, self.form
        connection.begin(200, content_type=STREAM)
        connection.write(form.opening())
        half = (form.length + 1) // 2
        for number in range(form.length):
            if number == half and await self._breaks():
                return False
            connection.write(form.piece(number))
            await connection.drain()
            self.stepped(1)
            await asyncio.sleep(self.gap_s())
        if form.length <= half and await self._breaks():
            return False
        return self._end()

    def _end(self) -> bool:
        connection, form = self.connection, self.form
        if self.fault is not Fault.NO_FINISH:
            connection.write(form.finish())
        if self.fault is Fault.DUPLICATE_FINISH:
            connection.write(form.finish())
        if self.fault is not Fault.NO_USAGE:
            connection.write(form.usage())
        if self.fault is not Fault.NO_DONE:
            connection.write(form.done())
        connection.end()
        return True

    async def _breaks(self) -> bool:
        """Break off in the middle, if that is the fault."""
        connection = self.connection
        match self.fault:
            case Fault.STALL:
                await asyncio.Event().wait()
            case Fault.CUT:
                connection.finish()
            case Fault.RESET_MIDSTREAM:
                await asyncio.sleep(PING_S)
                connection.reset()
            case Fault.ENDS_EARLY:
                connection.end()
            case Fault.BAD_CHUNK:
                connection.write_raw(b"zz\r\ndata: {}\r\n")
            case Fault.MALFORMED:
                connection.write(b'data: {"choices": [{"delta": {"content": \n\n')
                connection.end()
            case Fault.ERROR_EVENT:
                connection.write(b"data: " + json.dumps({"error": self.error}).encode() + b"\n\n")
                connection.write(b"data: [DONE]\n\n")
                connection.end()
            case _:
                return False
        return True
