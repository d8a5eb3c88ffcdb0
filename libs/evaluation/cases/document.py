"""The JSON of a case, field by field: what must be there, of which type, within which bounds."""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Final, Literal, TypeAlias, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from libs.judgement.types import Side

DEEPEST = 16
"""Levels of lists and objects that a fact's value may have."""
LARGEST_INTEGER = 2**53
LARGEST_PRICE = 1e18
LONGEST_SHOWN = 60
FEATURES: Final = ("signal", "factors", "liquidity_usd", "coverage_pct", "headlines", "earnings_in_days")
"""The features that may have a moment of their own."""


def plain_text(value: str) -> str:
    """Text that UTF-8 and Postgres can hold."""
    if "\0" in value:
        raise ValueError("holds a NUL character, which Postgres cannot keep")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no text") from error
    return value


def one_line(value: str) -> str:
    """Text of one visible line, not blank."""
    if not value.strip() or not value.isprintable():
        raise ValueError("must be one line of visible text")
    return plain_text(value)


def moment(value: object) -> datetime:
    """A moment in UTC from ISO 8601 text with a zone, or from a datetime with one (Parquet)."""
    if not isinstance(value, str | datetime):
        raise ValueError("must be an ISO 8601 moment with a time zone")  # noqa: TRY004 - pydantic takes ValueError
    text = value if isinstance(value, str) else value.isoformat()
    try:
        read = datetime.fromisoformat(text)
        if read.tzinfo is None:
            raise ValueError(f"{shown(text)} has no time zone; write +00:00 behind it if it is UTC")
        return read.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{shown(text)} is out of range") from error


def json_value(value: object) -> object:
    """Any JSON that reads back as it was written: finite numbers, integers up to 2^53, not nested for ever."""
    return checked(value, 0)


def checked(value: object, depth: int) -> object:
    """The value itself. Raises `ValueError`."""
    if depth > DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise ValueError("holds an integer beyond 2^53, which JSON readers round")
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError("holds a number that is not finite")
        return value
    if isinstance(value, list):
        return [checked(entry, depth + 1) for entry in cast("list[object]", value)]
    if isinstance(value, dict):
        return entries_of(cast("dict[object, object]", value), depth)
    raise ValueError(f"holds a {type(value).__name__}, which is no JSON")


def entries_of(value: Mapping[object, object], depth: int) -> dict[str, object]:
    """A JSON object, checked. Raises `ValueError`."""
    found: dict[str, object] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise ValueError(f"holds the name {shown(name)}, which is no text")  # noqa: TRY004 - pydantic takes ValueError
        found[plain_text(name)] = checked(entry, depth + 1)
    return found


Text: TypeAlias = Annotated[str, AfterValidator(plain_text)]
Name: TypeAlias = Annotated[str, Field(max_length=200), AfterValidator(one_line)]
Moment: TypeAlias = Annotated[datetime, BeforeValidator(moment)]
Price: TypeAlias = Annotated[float, Field(gt=0, le=LARGEST_PRICE)]
Score: TypeAlias = Annotated[float, Field(ge=-1e6, le=1e6)]


class Strict(BaseModel):
    """A part of a case: no unknown names, no type juggling, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SignalDocument(Strict):
    """`inputs.signal`: prices in the quote currency, the expected return as a fraction."""

    side: Side
    last_price: Price
    mean: Price
    lower: Price
    upper: Price
    expected_return: Annotated[float, Field(ge=-1, le=1e6)]


class FactDocument(Strict):
    """One of `inputs.facts`: what was known, since when, from where."""

    value: Annotated[Any, BeforeValidator(json_value)]
    as_of: Moment
    source: Text


class InputsDocument(Strict):
    """`inputs`, as `libs.judgement.record.inputs_block` writes them.

    Lengths and bounds are such that every prompt can be rendered with whatever passes.
    """

    ticker: Annotated[str, Field(max_length=32), AfterValidator(one_line)]
    horizon: Annotated[str, Field(max_length=16), AfterValidator(one_line)]
    as_of: Moment
    signal: SignalDocument
    factors: dict[Name, Score]
    headlines: list[Text]
    liquidity_usd: Annotated[float, Field(ge=0, le=1e18)] | None
    coverage_pct: Annotated[float, Field(ge=0, le=100)] | None
    earnings_in_days: Annotated[int, Field(ge=0, le=100_000)] | None
    facts: dict[Name, FactDocument]


class MomentsDocument(Strict):
    """`moments`: since when single features were known."""

    signal: Moment | None = None
    factors: Moment | None = None
    liquidity_usd: Moment | None = None
    coverage_pct: Moment | None = None
    headlines: Moment | list[Moment] | None = None
    earnings_in_days: Moment | None = None

    def given(self) -> dict[str, datetime | list[datetime]]:
        """Those that are there."""
        found = {name: getattr(self, name) for name in FEATURES}
        return {name: value for name, value in found.items() if value is not None}


class TargetDocument(Strict):
    """`target`: what a right policy answers."""

    allow: bool


class RealisedDocument(Strict):
    """`realised`: the price's change to the horizon as a fraction, and when it was known."""

    change: Annotated[float, Field(ge=-1)]
    at: Moment


class CaseDocument(Strict):
    """The whole of a case."""

    id: Name
    as_of: Moment
    feed: Annotated[str, Field(max_length=200), AfterValidator(one_line)]
    inputs: InputsDocument
    moments: MomentsDocument = MomentsDocument()
    target: TargetDocument | None = None
    realised: RealisedDocument | None = None
    twin: Literal["", "masked", "hostile"] = ""
    twin_of: Annotated[str, Field(max_length=200)] = ""
    attack: Annotated[str, Field(max_length=200)] = ""


UNION_BRANCHES: Final = ("function-before", "list[")
"""How pydantic names the alternatives of `moments.headlines`, which are no part of a field's name."""


def problem_of(error: ValidationError) -> tuple[str, str]:
    """The field of the first problem (`inputs.signal.last_price`), and the problem in words."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(UNION_BRANCHES))
    if first["type"] == "missing":
        return place, "is missing"
    if first["type"] == "extra_forbidden":
        return place, "is unknown; is the name spelt as in docs/datasets.md?"
    if first["type"] == "value_error":
        return place or "the case", first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return "the case", f"must be a JSON object, not {shown(first['input'])}"
    return place, f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {shown(first['input'])}"


def shown(value: object) -> str:
    """A value for a message, cut short."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
