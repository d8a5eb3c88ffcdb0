"""One request in the words of each engine.

vllm: `structured_outputs`, `priority`. llamacpp: `grammar` (a schema there lets the model fill its answer with white
space), `cache_prompt`. openai: `response_format`. All are streamed and ask for usage.
"""

from typing import Any

from libs.upstreams.grammar import UnsupportedSchema, gbnf
from libs.upstreams.types import ChatRequest, Constraint, Dialect, JsonObject

BYTES_PER_TOKEN = 5
"""More bytes than a token carries in prose under the tokenizers in use (about 4.5 for English, fewer for digits, JSON
and other scripts), so that the estimate is low and a prompt in doubt is sent: the engine counts exactly."""


def least_tokens(request: ChatRequest) -> int:
    """The fewest tokens the messages can have, their role marks left out."""
    return sum(len(message.content.encode()) for message in request.messages) // BYTES_PER_TOKEN


def body(dialect: Dialect, model: str, request: ChatRequest, *, official: bool = False) -> dict[str, Any]:
    """The JSON body of `/chat/completions`. `official`: OpenAI's own servers, which renamed `max_tokens`."""
    sampling = request.sampling
    content: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens" if official else "max_tokens": sampling.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.seed is not None:
        content["seed"] = sampling.seed
    if dialect == "vllm":
        content["priority"] = int(request.priority)
    elif dialect == "llamacpp":
        content["cache_prompt"] = True
    if request.constraint is not None:
        content.update(_constraint(dialect, request.constraint))
    return content


def _constraint(dialect: Dialect, constraint: Constraint) -> dict[str, Any]:
    if dialect == "vllm":
        wanted = {"choice": list(constraint.choice)} if constraint.choice else {"json": constraint.schema}
        return {"structured_outputs": wanted}
    if dialect == "llamacpp":
        try:
            return {"grammar": gbnf(constraint)}
        except UnsupportedSchema:
            # Its own translation of the schema knows more keywords; the white space it allows costs tokens only.
            return _response_format(constraint.schema)
    return _response_format(constraint.schema)


def _response_format(schema: JsonObject | None) -> dict[str, Any]:
    if schema is None:
        # Bare words cannot be asked for there; the prompt names them, and the answer is checked as any other.
        return {}
    # Not strict: strict refuses schemas with keywords it does not know, while every answer is validated here anyway.
    form = {"name": "answer", "schema": schema, "strict": False}
    return {"response_format": {"type": "json_schema", "json_schema": form}}
