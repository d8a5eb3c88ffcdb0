"""Clients of the gateway: one that reads answers to their end and keeps everything, and one that leaves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from tests.faults.gateway_process import Gateway, token

CHAT = "chat/completions"
LIMIT = 2**20
MESSAGES = [{"role": "user", "content": "What moved today?"}]
PROMPTS: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "completions": {"prompt": "What moved today?"},
    "embeddings": {"input": "What moved today?"},
    "responses": {"input": "What moved today?"},
}


@dataclass(slots=True)
class Answer:
    """What a client saw. `whole` says that the body came to its proper end."""

    status: int
    headers: httpx.Headers
    body: bytes = b""
    whole: bool = False
    json: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def request_id(self) -> str:
        """The name under which the gateway keeps it."""
        return self.headers["x-request-id"]

    @property
    def streamed(self) -> bool:
        """Whether it is a stream of events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON of its events; fails on one that is not whole."""
        return [json.loads(data) for data in self._data() if data != "[DONE]"]

    @property
    def done(self) -> bool:
        """Whether it is a stream that ended with `[DONE]`."""
        return self.streamed and self._data()[-1:] == ["[DONE]"]

    @property
    def error(self) -> dict[str, Any]:
        """The error object: the body's, or the last event's; empty where there is none."""
        holder = (self.events or [{}])[-1] if self.streamed else self.json
        return holder.get("error") or {}

    @property
    def text(self) -> str:
        """What the model said in the first choice, so far as it came."""
        if not self.streamed:
            choice = self.json["choices"][0]
            return choice.get("text") or choice["message"]["content"]
        choices = [choice for event in self.events for choice in event.get("choices", ()) if choice["index"] == 0]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)

    @property
    def finishes(self) -> list[str]:
        """The finish reasons of a stream's events."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]

    def _data(self) -> list[str]:
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == "", "the stream ends within an event"
        lines = [line for block in blocks for line in block.split("\n")]
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def request(
    model: str, *, stream: bool = False, endpoint: str = CHAT, key: str = "desk", **body: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of a request; a member `headers` of `body` is added to the headers."""
    headers = {"authorization": f"Bearer {token(key)}", "x-request-id": f"test-{uuid4()}", **body.pop("headers", {})}
    return {"model": model, **PROMPTS[endpoint], **({"stream": True} if stream else {}), **body}, headers


async def ask(gateway: Gateway, model: str, *, endpoint: str = CHAT, **more: Any) -> Answer:
    """Ask, and read what comes to its end."""
    body, headers = request(model, endpoint=endpoint, **more)
    url = f"{gateway.url}/v1/{endpoint}"
    async with gateway.http.stream("POST", url, json=body, headers=headers) as response:
        answer = Answer(response.status_code, response.headers)
        try:
            async for piece in response.aiter_raw():
                answer.body += piece
            answer.whole = True
        except httpx.RemoteProtocolError:
            answer.whole = False
    if answer.whole and not answer.streamed:
        answer.json = json.loads(answer.body)
    return answer


@dataclass(frozen=True, slots=True)
class Leaver:
    """A client on a socket of its own, which it closes without a word when it leaves."""

    request_id: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def leave(self) -> None:
        """Close the socket now."""
        self.writer.transport.abort()


@asynccontextmanager
async def client_that_leaves(
    gateway: Gateway, model: str, *, endpoint: str = CHAT, **more: Any
) -> AsyncGenerator[Leaver, None]:
    """A client that has sent its request and reads nothing on its own account."""
    body, headers = request(model, endpoint=endpoint, **more)
    content = json.dumps(body).encode()
    lines = [f"POST /v1/{endpoint} HTTP/1.1", f"host: 127.0.0.1:{gateway.port}", "content-type: application/json"]
    lines += [f"content-length: {len(content)}", *(f"{name}: {value}" for name, value in headers.items())]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=LIMIT)
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
    try:
        yield Leaver(headers["x-request-id"], reader, writer)
    finally:
        writer.transport.abort()
