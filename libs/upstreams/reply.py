"""From the bytes of a stream to one whole answer, or to an honest error."""

from typing import Any, cast

import orjson

from libs.upstreams.errors import BrokenStream, Refused
from libs.upstreams.sse import SseOverflow, SseParser
from libs.upstreams.types import Usage

MAX_TEXT_CHARS = 4 * 1024 * 1024
MAX_TOKENS = 2**31 - 1
ABANDONED = frozenset({"abort", "error"})
"""Finish reasons with which engines say that they gave up on a request."""
CLIENT_ERRORS = range(400, 500)


class Assembly:
    """Puts one answer together from the chunks of a chat completion stream."""

    __slots__ = ("_done", "_finish", "_length", "_parser", "_pieces", "_thinking", "_usage")

    def __init__(self) -> None:
        self._parser = SseParser()
        self._pieces: list[str] = []
        self._length = 0
        self._finish = ""
        self._usage: Usage | None = None
        self._done = False
        self._thinking = False

    @property
    def begun(self) -> bool:
        """Whether a token came, of the answer or of the reasoning before it, or the answer ended without one."""
        return bool(self._pieces or self._thinking or self._finish)

    @property
    def done(self) -> bool:
        """Whether the stream said that it is over."""
        return self._done

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._pieces)

    @property
    def finish_reason(self) -> str:
        """Why the answer ended; empty until it has."""
        return self._finish

    def feed(self, chunk: bytes) -> int:
        """Take bytes of the body; how many events they completed. Raises `BrokenStream`, or `Refused` for an error
        object with a 4xx code.
        """
        try:
            events = self._parser.feed(chunk)
        except SseOverflow as error:
            raise BrokenStream(str(error)) from error
        for data in events:
            if data == b"[DONE]":
                self._done = True
            elif not self._done:
                self._take(data)
        return len(events)

    def close(self) -> None:
        """The body ended. Raises `BrokenStream` unless the answer is whole."""
        if not self._finish:
            raise BrokenStream("the stream ended without a finish reason")
        if not self._done:
            raise BrokenStream("the stream ended without [DONE]")
        if self._finish in ABANDONED:
            raise BrokenStream(f"the engine gave up: finish reason {self._finish!r}")

    def usage(self, prompt_tokens: int) -> Usage:
        """Tokens as counted by the engine, else the estimate for the prompt and one token per piece."""
        return self._usage or Usage(tokens_in=prompt_tokens, tokens_out=len(self._pieces), estimated=True)

    def _take(self, data: bytes) -> None:
        try:
            event = orjson.loads(data)
            if "error" in event:
                raise told(event["error"])
            choices = event["choices"]
            if choices and choices[0].get("index", 0) == 0:
                self._choose(choices[0])
            usage = event.get("usage")
            if usage:
                self._count(int(usage["prompt_tokens"]), int(usage.get("completion_tokens", 0)))
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
            raise BrokenStream(f"an event is not a chat completion chunk: {type(error).__name__}") from error

    def _count(self, tokens_in: int, tokens_out: int) -> None:
        """Believe the engine's counts unless they are beyond belief, which would cost the call its record."""
        if 0 <= tokens_in <= MAX_TOKENS and 0 <= tokens_out <= MAX_TOKENS:
            self._usage = Usage(tokens_in=tokens_in, tokens_out=tokens_out)

    def _choose(self, choice: dict[str, Any]) -> None:
        delta = cast("dict[str, object]", choice.get("delta") or {})
        content = delta.get("content")
        if delta.get("reasoning_content") or delta.get("reasoning"):
            self._thinking = True
        if content:
            if not isinstance(content, str):
                raise TypeError("content is not text")
            self._pieces.append(content)
            self._length += len(content)
            if self._length > MAX_TEXT_CHARS:
                raise BrokenStream(f"the answer is longer than {MAX_TEXT_CHARS} characters")
        if choice.get("finish_reason"):
            self._finish = str(choice["finish_reason"])


def told(error: object) -> BrokenStream | Refused:
    """The error an engine sent inside its stream."""
    told = cast("dict[str, object]", error) if isinstance(error, dict) else {"message": str(error)}
    message = f"the engine sent an error: {brief(told.get('message', ''))}"
    code = told.get("code")
    if isinstance(code, int) and code in CLIENT_ERRORS:
        return Refused(message, status=code)
    broken = BrokenStream(message)
    broken.quotes_engine = True
    return broken


def brief(text: object) -> str:
    """At most 200 characters of a message on one line."""
    return " ".join(str(text).split())[:200]


def refusal(content: bytes) -> str:
    """The message of an error body in any of the shapes engines use; empty where there is none to read."""
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError:
        return brief(content.decode("utf-8", "replace"))
    if not isinstance(told, dict):
        return ""
    inner = cast("dict[str, object]", told)
    error = inner.get("error", inner.get("detail", inner))
    if isinstance(error, dict):
        error = cast("dict[str, object]", error).get("message", "")
    return brief(error)
