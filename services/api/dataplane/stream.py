"""A stream on its way through: only whole, well-formed events pass, and its end is an end or an error.

What comes is split into events, each is parsed to know what it is, and its bytes go on unchanged. So a client never
sees half an event, and an answer that broke off can be told from one that ended.
"""

from abc import ABC, abstractmethod
from typing import Any, cast

import orjson

from libs.upstreams.errors import BrokenStream, UpstreamError
from libs.upstreams.reply import ABANDONED, MAX_TOKENS, told
from libs.upstreams.sse import BOM, MAX_EVENT_BYTES
from libs.upstreams.types import Usage

DONE = b"[DONE]"
END = b"\n\n"
DATA = b"data: "
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
MALFORMED = (KeyError, TypeError, AttributeError, IndexError, ValueError)


class EventStream(ABC):
    """What streams of every endpoint have in common. `feed` it bytes, and it gives the bytes that may go on.

    `done`: the answer said that it is over. `error`: why nothing may follow what `feed` gave. `pieces` counts the
    events that carried something of the answer, `usage` is the engine's own count once it came.
    """

    def __init__(self, *, keep_text: bool) -> None:
        self.done = False
        self.error: UpstreamError | None = None
        self.pieces: int = 0
        self.usage: Usage | None = None
        self.finish_reason = ""
        self._begun = False
        self._rest = b""
        self._text: list[str] | None = [] if keep_text else None

    @property
    def text(self) -> str:
        """The first choice's text so far, where it is kept."""
        return "".join(self._text or ())

    def feed(self, chunk: bytes) -> bytes:
        """The events that these bytes complete, less those that are not the client's. Never raises: see `error`."""
        if not self._begun and chunk:
            self._begun = True
            chunk = chunk.removeprefix(BOM)
        if self._rest:
            chunk = self._rest + chunk
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n")  # a CR whose LF is still to come stays in the rest
        first = chunk.find(END)
        if first >= 0 and first == len(chunk) - len(END):  # one event, as engines mostly send them
            self._rest = b""
            return chunk if self._passes(chunk[:first]) else b""
        *blocks, self._rest = chunk.split(END)
        passed = [block + END for block in blocks if self._passes(block)]
        if len(self._rest) > MAX_EVENT_BYTES:
            self.error = BrokenStream(f"an event is longer than {MAX_EVENT_BYTES} bytes", of_request=True)
        return b"".join(passed)

    def _passes(self, block: bytes) -> bool:
        """Whether an event goes on. When the answer is over or broke off, none does."""
        if self.done or self.error is not None:
            return False
        try:
            if len(block) > MAX_EVENT_BYTES:
                raise BrokenStream(f"an event is longer than {MAX_EVENT_BYTES} bytes", of_request=True)
            return self._take(block)
        except UpstreamError as error:
            self.error = error
        except MALFORMED as error:
            self.error = BrokenStream(f"an event is not what it should be: {type(error).__name__}")
        return False

    def ended(self) -> None:
        """The body ended: an error unless the answer was over."""
        if not self.done and self.error is None:
            self.error = BrokenStream(self._missing())

    def error_event(self, document: dict[str, str | None]) -> bytes:
        """The event that tells a client that the answer broke off."""
        return DATA + orjson.dumps({"error": document}) + END

    def _take(self, block: bytes) -> bool:
        """Read one event; whether it goes on. Comments do not: they would look like progress."""
        if block.startswith(DATA) and b"\n" not in block:
            return self._read(block[6:])
        lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
        return bool(lines) and self._read(b"\n".join(lines))

    @abstractmethod
    def _read(self, data: bytes) -> bool:
        """Take note of the data of one event; whether it goes on. May raise `MALFORMED` and `UpstreamError`."""

    @abstractmethod
    def _missing(self) -> str:
        """What a stream that ended now would lack, in words."""

    def _keep(self, text: object) -> None:
        if self._text is not None and isinstance(text, str):
            self._text.append(text)


class ChoiceEvents(EventStream):
    """`/chat/completions` and `/completions`: choices that each finish, then `[DONE]`.

    The usage event that we always ask the engine for goes on only where the client asked for it too. A choice that
    finishes a second time is passed over.
    """

    def __init__(self, *, choices: int, wants_usage: bool, keep_text: bool = False) -> None:
        super().__init__(keep_text=keep_text)
        self._open = set(range(choices))
        self._finished: set[int] = set()
        self._reasons: set[str] = set()
        self._wants_usage = wants_usage

    def _read(self, data: bytes) -> bool:
        if data == DONE:
            if self._open:
                raise BrokenStream(self._missing())
            self.done = True
            return True
        event = orjson.loads(data)
        if event.get("error") is not None:
            raise told(event["error"])
        if usage := event.get("usage"):
            self.usage = count(usage["prompt_tokens"], usage.get("completion_tokens", 0)) or self.usage
        choices = event["choices"]
        if not choices:
            return self._wants_usage or not usage
        fresh = bool(usage) and self._wants_usage
        for choice in choices:
            fresh = self._choose(choice) or fresh
        return fresh

    def _choose(self, choice: dict[str, Any]) -> bool:
        """Take note of one choice's part of an event; whether there is anything new in it."""
        index = choice.get("index", 0)
        if index in self._finished:
            return False
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        if text or (delta and len(delta) > ("content" in delta) + ("role" in delta)):
            self.pieces += 1
            if index == 0 and self._text is not None:
                self._keep(text or orjson.dumps(delta).decode())
        if reason := choice.get("finish_reason"):
            if reason in ABANDONED:
                raise BrokenStream(f"the engine gave up: finish reason {reason!r}")
            self._reasons.add(str(reason))
            self.finish_reason = ",".join(sorted(self._reasons))
            self._finished.add(index)
            self._open.discard(index)
        return True

    def _missing(self) -> str:
        if self._open:
            return "the stream ended without a finish reason"
        return "the stream ended without [DONE]"


class ResponseEvents(EventStream):
    """`/responses`: numbered, typed events, the last of which says how it ended. There is no `[DONE]`."""

    def __init__(self, *, keep_text: bool = False) -> None:
        super().__init__(keep_text=keep_text)
        self._number = -1

    def _read(self, data: bytes) -> bool:
        event = orjson.loads(data)
        kind, self._number = event["type"], int(event.get("sequence_number", self._number + 1))
        if kind == "error":
            raise told(event.get("error") or event)
        if kind.endswith(".delta"):
            self.pieces += 1
            if kind == "response.output_text.delta":
                self._keep(event.get("delta"))
        if kind in LAST_EVENTS:
            self.done = True
            response = cast("dict[str, Any]", event["response"])
            self.finish_reason = str(response.get("status") or kind.removeprefix("response."))
            if usage := response.get("usage"):
                self.usage = count(usage["input_tokens"], usage.get("output_tokens", 0))
        return True

    def error_event(self, document: dict[str, str | None]) -> bytes:
        """As the event `error` of this API, with the object that the official clients raise for beside it."""
        event = {
            "type": "error",
            "code": document["code"],
            "message": document["message"],
            "param": document["param"],
            "sequence_number": self._number + 1,
            "error": document,
        }
        return b"event: error\n" + DATA + orjson.dumps(event) + END

    def _missing(self) -> str:
        return "the stream ended without its last event"


def count(tokens_in: object, tokens_out: object) -> Usage | None:
    """The engine's counts, or None where they are beyond belief."""
    if not isinstance(tokens_in, int) or not isinstance(tokens_out, int):
        return None
    believable = 0 <= tokens_in <= MAX_TOKENS and 0 <= tokens_out <= MAX_TOKENS
    return Usage(tokens_in=tokens_in, tokens_out=tokens_out) if believable else None
