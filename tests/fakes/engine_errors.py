"""The fake engine's refusals, in each dialect's own words."""

import json
from collections.abc import Mapping
from typing import Any

from tests.fakes.engine_replies import FakeDialect


def error(status: int, message: str, kind: str, *, param: str | None = None) -> bytes:
    """vLLM's error object; its `code` repeats the status."""
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()


def unknown_model(name: object, dialect: FakeDialect) -> bytes:
    """404 for a model that is not served."""
    message = f"The model `{name}` does not exist."
    if dialect == "vllm":
        return error(404, message, "NotFoundError", param="model")
    content = {"message": message, "type": "invalid_request_error", "param": None, "code": "model_not_found"}
    return json.dumps({"error": content}).encode()


def too_long(tokens: int, answer: int, context: int, dialect: FakeDialect) -> bytes:
    """400 for a prompt that does not fit. vLLM names the parameter in the text as well."""
    if dialect == "vllm":
        message = (
            f"You passed {tokens} input tokens and requested {answer} output tokens. However, the model's context "
            f"length is only {context} tokens, resulting in a maximum input length of {max(0, context - answer)} "
            f"tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={tokens})"
        )
        return error(400, message, "BadRequestError", param="input_tokens")
    if dialect == "llamacpp":
        message = f"request ({tokens} tokens) exceeds the available context size ({context} tokens), try increasing it"
        content: dict[str, Any] = {
            "code": 400,
            "message": message,
            "type": "exceed_context_size_error",
            "n_prompt_tokens": tokens,
            "n_ctx": context,
        }
        return json.dumps({"error": content}).encode()
    message = f"This model's maximum context length is {context} tokens. However, your messages resulted in {tokens}."
    content = {"message": message, "type": "invalid_request_error", "param": "messages"}
    return json.dumps({"error": {**content, "code": "context_length_exceeded"}}).encode()


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens a prompt has: four bytes each."""
    prompt = body.get("messages") or body.get("prompt") or body.get("input")
    return len(json.dumps(prompt)) // 4


def answer_tokens(body: Mapping[str, Any]) -> int:
    """How many tokens the answer may have."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    return next((int(body[name]) for name in names if body.get(name)), 16)
