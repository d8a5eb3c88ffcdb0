"""Prompts that no context window of a place can hold: they are refused before anything is sent."""

from typing import Any, cast

from libs.upstreams.dialects import BYTES_PER_TOKEN
from libs.upstreams.errors import PromptTooLong
from libs.upstreams.upstream import Upstream
from services.api.dataplane.inquiry import Inquiry


def refuse_what_cannot_fit(inquiry: Inquiry, place: Upstream) -> None:
    """Raise `PromptTooLong` where the fewest tokens that the prompt can have are more than the window.

    What room the answer asks for is the engine's business: it may cut it. The body is looked at again only where the
    estimate leaves a doubt, which it does for hardly any.
    """
    entry = place.entry
    if entry.context is None or inquiry.prompt_tokens <= entry.context:
        return
    needed = least_tokens(inquiry)
    if needed > entry.context:
        place.meters.called(PromptTooLong.code)
        raise PromptTooLong(
            f"the prompt has at least {needed} tokens, the context length is {entry.context}", upstream=entry.name
        )


def least_tokens(inquiry: Inquiry) -> int:
    """The fewest tokens that the longest prompt of a request can have: of its plain text alone, since what tools and
    media come to depends on the model. 0 where the caller lets the engine cut it.
    """
    body = inquiry.body
    if body.get("truncate_prompt_tokens") is not None or body.get("truncation") == "auto":
        return 0
    match inquiry.endpoint:
        case "chat/completions":
            return _texts_in(body.get("messages")) // BYTES_PER_TOKEN
        case "responses":
            return (_texts_in(body.get("input")) + _texts_in(body.get("instructions"))) // BYTES_PER_TOKEN
        case "completions":
            return _longest(body.get("prompt"))
        case "embeddings":
            return _longest(body.get("input"))


def _texts_in(given: Any) -> int:
    """Bytes of the text of a message or a part of one, or of a list of them."""
    if isinstance(given, str):
        return len(given.encode())
    if isinstance(given, list):
        return sum(map(_texts_in, cast("list[Any]", given)))
    if not isinstance(given, dict):
        return 0
    part = cast("dict[str, Any]", given)
    text = part.get("text")
    return _texts_in(part.get("content")) + (len(text.encode()) if isinstance(text, str) else 0)


def _longest(given: Any) -> int:
    """The tokens of the longest of one prompt or many, each a text or a list of tokens."""
    if isinstance(given, str):
        return len(given.encode()) // BYTES_PER_TOKEN
    many = cast("list[Any]", given) if isinstance(given, list) else []
    if many and isinstance(many[0], int):
        return len(many)
    return max(map(_longest, many), default=0)
