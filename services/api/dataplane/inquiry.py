"""From the bytes of a request to a checked inquiry.

Checked is what the gateway itself relies on: the fields it reads, the fields it refuses, and how deep the body nests.
Everything else is the engine's business and passes unread, unknown fields too. Of two members with one name the last
counts, as in every parser the engines use, and only that one is sent on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias, cast

import orjson

from services.api.dataplane.errors import ApiError

Endpoint: TypeAlias = Literal["chat/completions", "completions", "embeddings", "responses"]

REFUSED = frozenset(
    {
        "api_base", "base_url", "user_config", "chat_template", "chat_template_kwargs", "prompt_embeds",
        "kv_transfer_params", "ec_transfer_params",
    }
)  # fmt: skip
"""Fields by which a caller would choose the server, its settings, the template, raw tensors, or where an engine
fetches its state from.
"""

ALSO_SEARCHED = ("extra_body", "metadata")
"""Objects at the top level that some servers unpack beside the other fields."""

DEPTH = 240
"""How deep a body may nest. orjson reads 1024 levels and writes 254; translating a body may add a few."""

ROOMS: Mapping[Endpoint, tuple[str, ...]] = {
    "chat/completions": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "responses": ("max_output_tokens",),
    "embeddings": (),
}
"""How callers bound the answer; the first that is given counts. Other names mean nothing there and pass."""

COUNTED = frozenset({"chat/completions", "completions"})
"""Where a request may ask for several answers."""
DEFAULT_ANSWER_TOKENS = 512
BYTES_PER_TOKEN = 4
MEDIA_BYTES = 768 * BYTES_PER_TOKEN
"""What an image, a sound or a file counts, as bytes of text: its tokens depend on the model, not on its bytes."""

MODEL_LENGTH = 256

ENCODINGS = (None, "float", "base64")
"""Of embeddings: those that are JSON. vLLM knows others, whose answers are raw bytes."""

_MARGIN = 254 - DEPTH
_NAMES: Mapping[type, str] = {
    bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object",
    type(None): "null",
}  # fmt: skip


@dataclass(slots=True)
class Inquiry:
    """One request, still in the client's own words. Not frozen, which would treble the price of making one."""

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    """The client asked for a usage event of its own."""
    choices: int
    """How many choices the answer will have; 0 for embeddings."""
    prompt_tokens: int
    """An estimate of the prompt."""
    tokens: int
    """An estimate of all: the prompt, and what the answer may use."""


def read_inquiry(endpoint: Endpoint, raw: bytes, *, choices: int) -> Inquiry:
    """Parse and check one body; `choices` is the largest `n`.

    Raises `ApiError` 400: `invalid_json`, `invalid_body` naming the field, or `field_refused` naming it.
    """
    body = _parse(raw)
    _refuse(body)
    model = body.get("model")
    if not isinstance(model, str) or not model or len(model) > MODEL_LENGTH or not model.isprintable():
        _invalid("model", f"must be a string of 1 to {MODEL_LENGTH} printable characters")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        _invalid("stream", "must be true or false")
    wants_usage = _wants_usage(body.get("stream_options"))
    n = answers = 1
    if endpoint in COUNTED:
        n = _choices(body, "n", choices)
        answers = max(n, _choices(body, "best_of", choices))
    room = _answer_tokens(endpoint, body)
    match endpoint:
        case "chat/completions":
            prompt, prompts = _chat_bytes(body), 1
        case "completions":
            prompt, prompts = _texts(body, "prompt")
            prompt += _optional_bytes(body.get("suffix"))
        case "responses":
            _make_stateless(body)
            prompt, prompts = _responses_bytes(body), 1
        case "embeddings":
            if stream:
                _refused("stream", "cannot be true here: embeddings come whole")
            if body.get("encoding_format") not in ENCODINGS:
                _invalid("encoding_format", "must be float or base64")
            prompt, _ = _texts(body, "input")
            answers = prompts = 0
    prompt_tokens = max(prompt // BYTES_PER_TOKEN, 1)
    return Inquiry(
        endpoint=endpoint,
        body=body,
        model=model,
        stream=stream is True,
        wants_usage=wants_usage,
        choices=n * prompts,
        prompt_tokens=prompt_tokens,
        tokens=prompt_tokens + room * answers * prompts,
    )


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_body", f"the body must be a JSON object, not {_NAMES[type(body)]}")
    # Hardly any body has as many brackets as it may have levels, so hardly any is measured.
    if raw.count(b"{") + raw.count(b"[") > DEPTH:
        _measure_depth(cast("dict[str, Any]", body))
    return cast("dict[str, Any]", body)


def _measure_depth(body: dict[str, Any]) -> None:
    probe: Any = body
    for _ in range(_MARGIN):
        probe = [probe]
    try:
        orjson.dumps(probe)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, "invalid_body", f"the body nests deeper than {DEPTH} levels") from error


def _refuse(body: dict[str, Any]) -> None:
    if not REFUSED.isdisjoint(body):
        _refused(min(REFUSED & body.keys()), "is not accepted here")
    for outer in ALSO_SEARCHED:
        inner = body.get(outer)
        if isinstance(inner, dict) and not REFUSED.isdisjoint(cast("dict[str, Any]", inner)):
            _refused(f"{outer}.{min(REFUSED & cast('dict[str, Any]', inner).keys())}", "is not accepted here")


def _make_stateless(body: dict[str, Any]) -> None:
    """Nothing is kept between two calls of `/responses`: what would need it is refused."""
    for name in ("previous_response_id", "conversation"):
        if body.get(name) is not None:
            _refused(name, "is not accepted here: responses are not stored; send the whole conversation as input")
    background = body.get("background")
    if background is not None and background is not False:
        _refused("background", "is not accepted here: responses are not stored, so none can be fetched later")
    body["store"] = False


def _wants_usage(options: object) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        _invalid("stream_options", "must be an object")
    wanted = cast("dict[str, object]", options).get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        _invalid("stream_options.include_usage", "must be true or false")
    return wanted is True


def _choices(body: dict[str, Any], name: str, most: int) -> int:
    value = body.get(name)
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= most:
        _refused(name, f"must be an integer from 1 to {most}, the limit of this key")
    return value


def _answer_tokens(endpoint: Endpoint, body: dict[str, Any]) -> int:
    """Room for one answer. A completion may ask for none, to have its prompt scored."""
    least = 0 if endpoint == "completions" else 1
    rooms: list[int] = []
    for name in ROOMS[endpoint]:
        value = body.get(name)
        if type(value) is int and value >= least:
            rooms.append(value)
        elif value is not None:
            _invalid(name, f"must be an integer of at least {least}")
    return rooms[0] if rooms else DEFAULT_ANSWER_TOKENS


def _chat_bytes(body: dict[str, Any]) -> int:
    messages = _list(body.get("messages"))
    if not messages:
        _invalid("messages", "must be an array with at least one message")
    return sum(map(_item_bytes, messages)) + _written_bytes(body.get("tools"))


def _responses_bytes(body: dict[str, Any]) -> int:
    given = body.get("input")
    items = [given] if isinstance(given, str) else _list(given)
    if not items:
        _invalid("input", "must be a string or an array with at least one item")
    return sum(map(_item_bytes, items)) + _optional_bytes(body.get("instructions")) + _written_bytes(body.get("tools"))


def _texts(body: dict[str, Any], name: str) -> tuple[int, int]:
    """The size and number of texts: one, a list of them, the tokens of one, or lists of tokens."""
    given = body.get(name)
    if isinstance(given, str):
        return _text_bytes(given), 1
    many = _list(given)
    if not many:
        _invalid(name, "must be a string, or an array with at least one string, token or array of tokens")
    if isinstance(many[0], int):
        return len(many) * BYTES_PER_TOKEN, 1
    return sum(map(_one_text_bytes, many)), len(many)


def _one_text_bytes(text: object) -> int:
    if isinstance(text, str):
        return _text_bytes(text)
    tokens = _list(text)
    return MEDIA_BYTES if tokens is None else len(tokens) * BYTES_PER_TOKEN


def _item_bytes(item: object) -> int:
    """A message, or an item of a response's input. Calls of tools and the like count as they are written."""
    if not isinstance(item, dict):
        return _one_text_bytes(item)
    message = cast("dict[str, object]", item)
    content = message.get("content")
    size = _written_bytes(message.get("tool_calls"))
    if isinstance(content, str):
        return size + _text_bytes(content)
    parts = _list(content)
    if parts is not None:
        return size + sum(map(_part_bytes, parts))
    return size or _written_bytes(message)


def _part_bytes(part: object) -> int:
    text = cast("dict[str, object]", part).get("text") if isinstance(part, dict) else part
    return _text_bytes(text) if isinstance(text, str) else MEDIA_BYTES


def _list(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _optional_bytes(text: object) -> int:
    return _text_bytes(text) if isinstance(text, str) else 0


def _written_bytes(value: object) -> int:
    return 0 if value is None else len(orjson.dumps(value))


def _invalid(name: str, rule: str) -> NoReturn:
    raise ApiError(400, "invalid_body", f"{name} {rule}", param=name)


def _refused(name: str, why: str) -> NoReturn:
    raise ApiError(400, "field_refused", f"{name} {why}", param=name)
