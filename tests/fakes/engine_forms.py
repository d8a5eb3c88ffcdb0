"""The shapes in which the fake engine answers chat and completions, whole and as a stream of events."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from tests.fakes.engine_replies import FakeDialect, Reply, ToolCall, sample, split

Body = Mapping[str, Any]


class Form(Protocol):
    """One answer on its way. A stream is `opening`, `piece(0)` … `piece(length - 1)`, `finish`, `usage`, `done`."""

    length: int
    streams: bool

    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        ...

    def opening(self) -> bytes:
        """What comes before the text."""
        ...

    def piece(self, number: int) -> bytes:
        """One event with a part of the text."""
        ...

    def finish(self) -> bytes:
        """What says that the text is whole, and why it ended."""
        ...

    def usage(self) -> bytes:
        """The event that counts tokens; empty where none was asked for."""
        ...

    def done(self) -> bytes:
        """The end of the stream; empty where the endpoint has none."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form is made of: the request, the reply to it, and how it is told."""

    body: Body
    reply: Reply
    model: str
    dialect: FakeDialect
    chunks: int
    number: int

    @property
    def choices(self) -> int:
        """How many answers were asked for."""
        return int(self.body.get("n") or 1)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with an event that counts tokens."""
        options = cast("Body", self.body.get("stream_options") or {})
        return bool(options.get("include_usage"))

    def frame(self, kind: str, prefix: str) -> dict[str, Any]:
        """The members that every object of an answer begins with. The fingerprint names the seed that was asked for."""
        seed = self.body.get("seed")
        return {
            "id": f"{prefix}-fake-{self.number}",
            "object": kind,
            "created": 1,
            "model": self.model,
            "system_fingerprint": None if seed is None else f"seed-{seed}",
        }

    def usage(self, choices: int) -> dict[str, Any]:
        """The `usage` object."""
        out = choices * words(self.reply)
        total = self.reply.tokens_in + out
        return {"prompt_tokens": self.reply.tokens_in, "completion_tokens": out, "total_tokens": total}


def words(reply: Reply) -> int:
    """How many tokens a reply counts."""
    return len(reply.text.split()) if reply.tokens_out is None else reply.tokens_out


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def tools_called(body: Body, reply: Reply) -> tuple[ToolCall, ...]:
    """The functions a request has called: what the reply says, else what its `tool_choice` demands."""
    offered = [cast("Body", tool.get("function", tool)) for tool in body.get("tools") or ()]
    if not offered or reply.tools:
        return reply.tools if offered else ()
    choice = body.get("tool_choice")
    if choice == "required":
        wanted = offered[0]
    elif isinstance(choice, Mapping):
        named = cast("Body", choice)
        name = named.get("function", named).get("name")
        wanted = next((tool for tool in offered if tool["name"] == name), offered[0])
    else:
        return ()
    schema = cast("Body", wanted.get("parameters") or {"type": "object"})
    return (ToolCall(str(wanted["name"]), json.dumps(sample(schema, reply.text))),)


class ChatForm:
    """`/v1/chat/completions`, `n` answers alike, their pieces taking turns."""

    streams = True

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._tools = tools_called(asked.body, asked.reply)
        self._reason = "tool_calls" if self._tools else asked.reply.finish_reason
        self._parts = self._tool_deltas() if self._tools else split(asked.reply.text, asked.chunks)
        self._frame = asked.frame("chat.completion.chunk", "chatcmpl")
        self.length = len(self._parts) * asked.choices

    def whole(self) -> dict[str, Any]:
        asked = self._asked
        calls = [
            {"id": f"call_{number}", "type": "function", "function": {"name": tool.name, "arguments": tool.arguments}}
            for number, tool in enumerate(self._tools)
        ]
        text = None if self._tools else asked.reply.text
        message = {"role": "assistant", "content": text, "refusal": None, "tool_calls": calls}
        choices = [
            {
                "index": index,
                "message": message,
                "logprobs": self._logprobs(asked.reply.text),
                "finish_reason": self._reason,
                "stop_reason": None,
            }
            for index in range(asked.choices)
        ]
        return {
            **asked.frame("chat.completion", "chatcmpl"),
            "choices": choices,
            "usage": asked.usage(asked.choices),
        }

    def opening(self) -> bytes:
        first = "" if self._asked.dialect == "vllm" else None
        return b"".join(
            self._event(index, {"role": "assistant", "content": first}) for index in range(self._asked.choices)
        )

    def piece(self, number: int) -> bytes:
        part = self._parts[number // self._asked.choices]
        delta = {"content": part} if isinstance(part, str) else part
        return self._event(number % self._asked.choices, delta)

    def finish(self) -> bytes:
        return b"".join(self._event(index, {}, self._reason) for index in range(self._asked.choices))

    def usage(self) -> bytes:
        asked = self._asked
        return event({**self._frame, "choices": [], "usage": asked.usage(asked.choices)}) if asked.wants_usage else b""

    def done(self) -> bytes:
        return b"data: [DONE]\n\n"

    def _tool_deltas(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for index, tool in enumerate(self._tools):
            begin = {"index": index, "id": f"call_{index}", "type": "function"}
            deltas.append({"tool_calls": [{**begin, "function": {"name": tool.name, "arguments": ""}}]})
            deltas.extend(
                {"tool_calls": [{"index": index, "function": {"arguments": part}}]}
                for part in split(tool.arguments, self._asked.chunks)
            )
        return deltas

    def _event(self, index: int, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        logprobs = self._logprobs(delta.get("content") or "")
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event({**self._frame, "choices": [choice]})

    def _logprobs(self, text: str) -> dict[str, Any] | None:
        if not self._asked.body.get("logprobs") or not text:
            return None
        top = int(self._asked.body.get("top_logprobs") or 0)
        content = [
            {
                "token": token,
                "logprob": -0.1,
                "bytes": list(token.encode()),
                "top_logprobs": [
                    {"token": token, "logprob": -0.1 - rank, "bytes": list(token.encode())} for rank in range(top)
                ],
            }
            for token in text.split()
        ]
        return {"content": content}


class CompletionForm:
    """`/v1/completions`: `n` answers to each prompt, in the order of the prompts."""

    streams = True

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._choices = len(prompts(asked.body.get("prompt"))) * asked.choices
        self._parts = split(asked.reply.text, asked.chunks)
        self._frame = asked.frame("text_completion", "cmpl")
        self.length = len(self._parts) * self._choices

    def whole(self) -> dict[str, Any]:
        asked = self._asked
        choices = [self._choice(index, asked.reply.text, asked.reply.finish_reason) for index in range(self._choices)]
        return {**self._frame, "choices": choices, "usage": asked.usage(self._choices)}

    def opening(self) -> bytes:
        return b""

    def piece(self, number: int) -> bytes:
        index, part = number % self._choices, self._parts[number // self._choices]
        return event({**self._frame, "choices": [self._choice(index, part, None)]})

    def finish(self) -> bytes:
        reason = self._asked.reply.finish_reason
        return b"".join(
            event({**self._frame, "choices": [self._choice(index, "", reason)]}) for index in range(self._choices)
        )

    def usage(self) -> bytes:
        asked = self._asked
        return event({**self._frame, "choices": [], "usage": asked.usage(self._choices)}) if asked.wants_usage else b""

    def done(self) -> bytes:
        return b"data: [DONE]\n\n"

    def _choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._asked.body.get("logprobs") is not None and text:
            tokens = text.split()
            offsets = [sum(len(token) + 1 for token in tokens[:number]) for number in range(len(tokens))]
            logprobs = {
                "tokens": tokens,
                "token_logprobs": [-0.1 for _ in tokens],
                "top_logprobs": [{token: -0.1} for token in tokens],
                "text_offset": offsets,
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason, "stop_reason": None}


def prompts(given: object) -> list[object]:
    """The prompts of a request: text, tokens, or a list of either."""
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        return [given]
    listed = list(cast("Sequence[object]", given))
    return [listed] if isinstance(listed[0], int) else listed
