"""The shapes in which the fake engine answers `/v1/responses`: one object, or vLLM's sequence of typed events."""

import json
from typing import Any

from tests.fakes.engine_forms import Asked, tools_called, words
from tests.fakes.engine_replies import split

STATUSES = {"length": "incomplete", "failed": "failed", "in_progress": "in_progress"}
"""The status of a response by the reply's finish reason; completed where it is another."""


class ResponseForm:
    """`/v1/responses`: one message, or calls of functions. Its stream ends with a terminal event and no `[DONE]`."""

    streams = True

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._tools = tools_called(asked.body, asked.reply)
        self._message = {"id": f"msg_fake_{asked.number}", "type": "message", "role": "assistant"}
        source = self._tools[0].arguments if self._tools else asked.reply.text
        self._parts = split(source, asked.chunks)
        self._sequence = 0
        self.length = len(self._parts)

    def whole(self) -> dict[str, Any]:
        return self._response(STATUSES.get(self._asked.reply.finish_reason, "completed"), self._output())

    def opening(self) -> bytes:
        begun = self._response("in_progress", [])
        events = [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
        ]
        item = self._call(0, status="in_progress") if self._tools else self._with_content([], "in_progress")
        events.append(self._event("response.output_item.added", output_index=0, item=item))
        if not self._tools:
            events.append(self._content("response.content_part.added", part=self._text("")))
        return b"".join(events)

    def piece(self, number: int) -> bytes:
        part = self._parts[number]
        if self._tools:
            return self._event("response.function_call_arguments.delta", item_id="fc_0", output_index=0, delta=part)
        return self._content("response.output_text.delta", delta=part, logprobs=[])

    def finish(self) -> bytes:
        text, last = self._asked.reply.text, self.whole()
        if self._tools:
            arguments, name = self._tools[0].arguments, self._tools[0].name
            kind = "response.function_call_arguments.done"
            events = [self._event(kind, item_id="fc_0", output_index=0, name=name, arguments=arguments)]
        else:
            events = [
                self._content("response.output_text.done", text=text, logprobs=[]),
                self._content("response.content_part.done", part=self._text(text)),
            ]
        events.append(self._event("response.output_item.done", output_index=0, item=last["output"][0]))
        events.append(self._event(f"response.{last['status']}", response=last))
        return b"".join(events)

    def usage(self) -> bytes:
        return b""

    def done(self) -> bytes:
        return b""

    def _output(self) -> list[dict[str, Any]]:
        if self._tools:
            return [self._call(number, status="completed") for number in range(len(self._tools))]
        return [self._with_content([self._text(self._asked.reply.text)], "completed")]

    def _call(self, number: int, *, status: str) -> dict[str, Any]:
        tool = self._tools[number]
        arguments = tool.arguments if status == "completed" else ""
        ids = {"id": f"fc_{number}", "call_id": f"call_{number}"}
        return {**ids, "type": "function_call", "name": tool.name, "arguments": arguments, "status": status}

    def _with_content(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {**self._message, "content": content, "status": status}

    def _text(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self._asked
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        error = {"code": "server_error", "message": "the engine died"} if status == "failed" else None
        return {
            "id": f"resp_fake_{asked.number}",
            "object": "response",
            "created_at": 1,
            "model": asked.model,
            "status": status,
            "output": output,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": asked.body.get("instructions"),
            "metadata": asked.body.get("metadata"),
            "parallel_tool_calls": True,
            "store": asked.body.get("store", True),
            "temperature": asked.body.get("temperature", 1.0),
            "tool_choice": asked.body.get("tool_choice", "auto"),
            "tools": asked.body.get("tools", []),
            "top_p": asked.body.get("top_p", 1.0),
            "usage": None if status == "in_progress" else self._counted(),
        }

    def _counted(self) -> dict[str, Any]:
        tokens_in, out = self._asked.reply.tokens_in, words(self._asked.reply)
        return {
            "input_tokens": tokens_in,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens_in + out,
        }

    def _content(self, kind: str, **members: Any) -> bytes:
        return self._event(kind, item_id=self._message["id"], output_index=0, content_index=0, **members)

    def _event(self, kind: str, **members: Any) -> bytes:
        content = {"type": kind, "sequence_number": self._sequence, **members}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(content)}\n\n".encode()
