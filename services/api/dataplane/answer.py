"""What an answer in one piece says of itself: the engine's counts, why it ended, its text."""

from typing import Any, NamedTuple

import orjson

from libs.upstreams.errors import BrokenStream
from libs.upstreams.reply import ABANDONED
from libs.upstreams.types import Usage
from services.api.dataplane.inquiry import Endpoint
from services.api.dataplane.stream import MALFORMED, count

ENDED = frozenset({"completed", "incomplete", "failed"})


class BadAnswer(BrokenStream):
    """A whole answer that is not one of this API. Unless it is no JSON at all or the engine owns up to it, the request
    may be why: engines have answers of other forms for those who ask for them.
    """

    code = "bad_upstream_answer"

    def __init__(self, message: str, *, of_request: bool = True, upstream: str = "") -> None:
        super().__init__(message, of_request=of_request, upstream=upstream)


class Gist(NamedTuple):
    """Of an answer. `text`, where it is kept, is the first choice's, or its message as JSON where that is more."""

    usage: Usage | None = None
    finish_reason: str = ""
    text: str = ""


def read_answer(endpoint: Endpoint, body: bytes, *, keep_text: bool) -> Gist:
    """Look through a whole answer. Raises `BadAnswer` where it is none."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadAnswer("the answer is not JSON", of_request=False) from error
    try:
        if answer.get("error") is not None and answer.get("status") != "failed":
            raise BadAnswer("the engine sent an error under the status 200", of_request=False)
        if endpoint == "embeddings":
            return _embeddings(answer)
        read = _response if endpoint == "responses" else _choices
        return read(answer, keep_text=keep_text)
    except MALFORMED as error:
        raise BadAnswer(f"the answer is not what it should be: {type(error).__name__}") from error


def _embeddings(answer: dict[str, Any]) -> Gist:
    if not isinstance(answer["data"], list):
        raise TypeError("data is not a list")
    return Gist(count(_usage(answer).get("prompt_tokens"), 0))


def _response(answer: dict[str, Any], *, keep_text: bool) -> Gist:
    usage = _usage(answer)
    tokens = count(usage.get("input_tokens"), usage.get("output_tokens", 0))
    output, status = answer["output"], str(answer["status"])
    if status not in ENDED:
        raise BadAnswer(f"a response that is {status!r} is no answer yet")
    return Gist(tokens, status, orjson.dumps(output).decode() if keep_text else "")


def _choices(answer: dict[str, Any], *, keep_text: bool) -> Gist:
    reasons: set[str | None] = {choice["finish_reason"] for choice in answer["choices"]}
    named = sorted(reason for reason in reasons if reason and reason not in ABANDONED)
    if not named or len(named) < len(reasons):
        raise BadAnswer(f"the engine gave up: finish reasons {reasons}", of_request=False)
    usage = _usage(answer)
    tokens = count(usage.get("prompt_tokens"), usage.get("completion_tokens", 0))
    return Gist(tokens, ",".join(named), _text(answer["choices"][0]) if keep_text else "")


def _usage(answer: dict[str, Any]) -> dict[str, Any]:
    return answer.get("usage") or {}


def _text(choice: dict[str, Any]) -> str:
    message: dict[str, Any] | None = choice.get("message")
    if message is None:
        return str(choice["text"])
    text = message.get("content")
    return text if isinstance(text, str) and not message.get("tool_calls") else orjson.dumps(message).decode()
