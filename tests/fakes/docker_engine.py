"""A Docker engine with one container, on a Unix socket: the parts of its API that restart things, and its troubles.

Written after Docker's API reference and what a real engine was seen to answer; tests/docker asks a real one.
"""

import asyncio
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NOT_FOUND_IN_IMAGE = 'OCI runtime exec failed: exec failed: exec: "nvidia-smi": executable file not found in $PATH'


class Trouble(StrEnum):
    """What the engine does instead of what it is asked for."""

    NO_PROGRAM = "no program"
    PROGRAM_FAILS = "program fails"
    PROGRAM_HANGS = "program hangs"
    NOT_FRAMED = "not framed"
    NOT_JSON = "not json"
    CUT = "cut"
    GONE = "gone"
    STOPPED = "stopped"
    FORBIDDEN = "forbidden"
    START_FAILS = "start fails"
    LATE = "late"


def framed(text: str, *, stream: int = 1, cut_at: int = 7) -> bytes:
    """Output as the engine frames it, in pieces."""
    raw = text.encode()
    pieces = [raw[at : at + cut_at] for at in range(0, len(raw), cut_at)]
    return b"".join(struct.pack(">BxxxI", stream, len(piece)) + piece for piece in pieces)


@dataclass
class DockerEngine:
    """`readings` are what nvidia-smi prints, one each time, the last one again and again."""

    socket: Path
    readings: Sequence[object]
    troubles: set[Trouble] = field(default_factory=set[Trouble])
    asked: list[str] = field(default_factory=list[str])
    commands: list[list[str]] = field(default_factory=list[list[str]])
    starts: int = 1
    running: bool = True
    name: str = "llm"
    id: str = "109c0ffee109" + "0" * 52
    hung: int = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        self.socket.unlink(missing_ok=True)

    @property
    def host(self) -> str:
        """Its address as Docker's clients write it."""
        return f"unix://{self.socket}"

    @property
    def restarts(self) -> list[str]:
        """The questions that asked for a restart."""
        return [asked for asked in self.asked if "/restart" in asked]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                method, path, _ = lines[0].split(" ")
                length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-le")), 0)
                body: dict[str, Any] = json.loads(await reader.readexactly(length) or b"{}")
                self.asked.append(f"{method} {path}")
                if path.endswith("/start") and "/exec/" in path:
                    await self._stream(reader, writer)
                    break
                await self._answer(writer, *await self._reply(path, body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, status: int, body: object) -> None:
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Something\r\nApi-Version: 1.45\r\nContent-Length: {len(raw)}\r\n\r\n"
        writer.write((head if status != 204 else head.replace("Content-Length: 0\r\n", "")).encode() + raw)
        await writer.drain()

    async def _reply(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        if path == "/_ping":
            return 200, b"OK"
        assert path.startswith("/v1.45/")
        if Trouble.FORBIDDEN in self.troubles:
            return 403, b"<html><body><h1>403 Forbidden</h1></body></html>"
        if Trouble.NOT_JSON in self.troubles:
            return 200, b"<html>"
        if "/containers/" in path and (Trouble.GONE in self.troubles or not self._is_asked(path)):
            return 404, {"message": "No such container: llm"}
        return await self._exec(path, body) if "exec" in path else await self._lifecycle(path)

    async def _exec(self, path: str, body: dict[str, Any]) -> tuple[int, object]:
        if path.endswith("/json"):
            return 200, {"Running": self.hung > 0, "ExitCode": None if self.hung else self._code}
        if Trouble.STOPPED in self.troubles or not self.running:
            return 409, {"message": "container llm is not running"}
        self.commands.append(body["Cmd"])
        return 201, {"Id": f"e{len(self.commands)}"}

    async def _lifecycle(self, path: str) -> tuple[int, object]:
        if path.endswith("/json"):
            state = {"Running": self.running, "StartedAt": f"start {self.starts}"}
            return 200, {"Id": self.id, "Name": f"/{self.name}", "State": state}
        if path.endswith("/start"):
            self.starts, self.running = self.starts + (not self.running), True
            return 204, None
        if Trouble.START_FAILS in self.troubles:
            self.running = False
            return 500, {"message": "Cannot restart container llm: the device is lost"}
        self.starts += 1
        if Trouble.LATE in self.troubles:
            await asyncio.Event().wait()
        return 204, None

    def _is_asked(self, path: str) -> bool:
        """As the real one: a name that it does not know may also be the beginning of an id."""
        asked = path.split("/containers/")[1].split("/")[0]
        return asked == self.name or self.id.startswith(asked)

    @property
    def _code(self) -> int:
        return 127 if Trouble.NO_PROGRAM in self.troubles else 9 if Trouble.PROGRAM_FAILS in self.troubles else 0

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n\r\n")
        reading = self.readings[min(len(self.commands), len(self.readings)) - 1]
        if Trouble.PROGRAM_HANGS in self.troubles:
            self.hung += 1
            await reader.read()
        elif Trouble.NOT_FRAMED in self.troubles:
            writer.write(b"Segmentation fault\n")
        elif Trouble.CUT in self.troubles:
            writer.write(framed(f"{reading}\n")[:10])
        elif self._code:
            writer.write(framed(NOT_FOUND_IN_IMAGE + "\n", stream=2 if self._code == 9 else 1))
        else:
            writer.write(framed("a warning\n", stream=2) + framed(f"{reading}\n"))
        await writer.drain()
