"""One answer of an evaluation, as one line of JSON.

A row says everything that the figures need and nothing that only the case knows, so that figures and comparisons read
the rows alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import orjson

RowStatus: TypeAlias = Literal["ok", "invalid", "unavailable", "refused"]
STATUSES: Final = frozenset(get_args(RowStatus))


class RowError(Exception):
    """A line is no row; the message names the field."""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one item.

    `status`: "ok" a valid answer; "invalid" a reply that is none, after the repair turn; "unavailable" no reply, such
    as a timeout; "refused" it could not be asked: the inputs do not fit the prompt, or the engine blames the request.
    `error` is why it is not "ok"; that of an invalid reply begins with its kind. `first_error` is what was wrong with a
    first reply that was sent back for repair. `allow`, `reasons` and `flags` are the model's decision, `rules_allow`
    and `rules_reasons` the rules'. `ungrounded` are the numbers of a rationale that stand in no input; None for others.
    `target`, `made` (change to the horizon, signed by side) and `won` are None where the case does not know. Times are
    milliseconds, and those of `libs.llm.types.Answer`; `late_ms` is how long after its planned moment the question was
    put, 0 in the closed loop. `try_` counts from 1. `at` is when the row was made, `worker` who made it.
    """

    item: int
    try_: int
    case: str
    twin: str
    twin_of: str
    attack: str
    ticker: str
    day: str
    as_of: str
    prompt: str
    version: str
    hash: str
    repeat: int
    status: RowStatus
    error: str | None
    first_error: str | None
    cached: bool
    text: str
    allow: bool | None
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    rules_allow: bool
    rules_reasons: tuple[str, ...]
    ungrounded: tuple[str, ...] | None
    side: str
    target: bool | None
    made: float | None
    won: bool | None
    queue_ms: float
    first_queue_ms: float
    first_token_ms: float
    total_ms: float
    late_ms: float
    tokens_in: int
    tokens_out: int
    model: str
    call_id: str
    at: str
    worker: str

    @property
    def answered(self) -> bool:
        """Whether the model replied, validly or not."""
        return self.status in {"ok", "invalid"}

    def document(self) -> dict[str, Any]:
        """The row as JSON."""
        return dict(zip(NAMES, _values(self), strict=True))

    def line(self) -> bytes:
        """The row as a line of JSON with its end."""
        return orjson.dumps(self.document(), option=orjson.OPT_APPEND_NEWLINE)


NAMES: Final = {field.name.removesuffix("_"): field.name for field in fields(Row)}
"""A row's fields in JSON (`try`) and in code (`try_`)."""
_values: Final = attrgetter(*NAMES.values())
LISTS: Final = ("reasons", "flags", "rules_reasons", "ungrounded")


def row_of(document: Mapping[str, Any]) -> Row:
    """The row of a document. Raises `RowError` naming the field; fields it does not know are let pass."""
    values = {attribute: document[name] for name, attribute in NAMES.items() if name in document}
    if len(values) != len(NAMES):
        raise RowError(f"{next(name for name in NAMES if name not in document)} is missing")
    for name in LISTS:
        if values[name] is not None:
            values[name] = texts_of(name, values[name])
    for name in ("item", "try_", "repeat"):
        if type(values[name]) is not int or values[name] < 0:
            raise RowError(f"{name.removesuffix('_')}: {values[name]!r} is no number of that kind")
    if values["status"] not in STATUSES:
        raise RowError(f"status: {values['status']!r} is none of {', '.join(sorted(STATUSES))}")
    return Row(**values)


def texts_of(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts. Raises `RowError`."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in cast("list[Any]", value)):
        raise RowError(f"{name}: {value!r} is no list of texts")
    return tuple(cast("list[str]", value))


def row_from(line: bytes) -> Row:
    """The row of a line. Raises `RowError`."""
    try:
        document: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RowError(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RowError("it is no JSON object")
    return row_of(cast("dict[str, Any]", document))
