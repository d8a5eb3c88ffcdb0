"""A model's text, judged strictly: `Parsed` or `Rejected`, never an exception.

What is accepted as JSON is exactly one value with nothing but white space around it: no prose, no code fence. Nothing
is converted. "false" is no boolean, 1 is no boolean, "1" is no number, and 1.0 is no integer (an integer is written
without fraction or exponent), while 1 is a number. NaN, infinities (also written as 1e999), keys given twice and text
that cannot be stored (NUL, lone surrogates) are refused. A choice is one of its words exactly, white space around it
aside. Free text must not be empty.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend  # pyright: ignore[reportUnknownVariableType] - untyped

from libs.llm.schema_fit import compile_fit

RejectedKind: TypeAlias = Literal[
    "empty", "cut", "not_json", "surrounded", "duplicate_key", "not_finite", "unstorable", "schema", "choice"
]

LONGEST_REPLY = 200_000
LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Parsed:
    """A valid answer: the JSON value, the chosen word, or the text."""

    value: Any


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a text is no valid answer: a kind to count, a sentence for people and for the model."""

    kind: RejectedKind
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_: object, value: object) -> bool:
    return _is_integer(_, value) or (isinstance(value, float) and math.isfinite(value))


_StrictValidator: Any = extend(  # pyright: ignore[reportUnknownVariableType] - untyped
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer).redefine("number", _is_number),
)


class Schema:
    """One JSON schema, compiled once, that takes 1.0 for no integer, and NaN and infinities for no number."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._fits = compile_fit(schema)
        self._validator: Any = _StrictValidator(dict(schema))

    def problem(self, value: Any) -> str | None:
        """Where and why `value` does not fit, on one line of bounded length; None where it does."""
        try:
            if self._fits is not None and self._fits(value):
                return None
            problem: ValidationError | None = next(self._validator.iter_errors(value), None)
        except RecursionError:
            return "$: it is nested too deeply"
        if problem is None:
            return None
        message = " ".join(str(problem.message).split())
        return f"{problem.json_path}: {message if len(message) <= LONGEST_REASON else message[:LONGEST_REASON] + '…'}"


class _Refused(Exception):
    def __init__(self, kind: RejectedKind, reason: str) -> None:
        super().__init__(reason)
        self.rejected = Rejected(kind, reason)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _Refused("duplicate_key", f"the key {twice[:40]!r} is given twice")
    return built


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("not_finite", f"the number {text[:40]} is too large")
    return value


def _constant(text: str) -> float:
    raise _Refused("not_finite", f"{text} is no JSON number")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)


def parse_json(text: str) -> Parsed | Rejected:
    """Read one strict JSON value. Never raises."""
    stripped = text.strip(" \t\r\n")
    if not stripped:
        return Rejected("empty", "the reply is empty")
    if len(stripped) > LONGEST_REPLY:
        return Rejected("not_json", f"the reply is longer than {LONGEST_REPLY} characters")
    try:
        value, end = _decoder.raw_decode(stripped)
    except _Refused as refused:
        return refused.rejected
    except (ValueError, RecursionError) as error:
        return _not_json(stripped, error)
    if end != len(stripped):
        return Rejected("surrounded", f"text follows the JSON value at character {end}")
    if not _can_store(stripped, value):
        return Rejected("unstorable", "the reply holds a NUL or a lone surrogate")
    return Parsed(value)


def _not_json(text: str, error: Exception) -> Rejected:
    start = text.find("{")
    if start > 0 and text.rstrip().endswith(("}", "```")):
        return Rejected("surrounded", "text stands before the JSON value")
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply or a number is too long"
    place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
    return Rejected("not_json", f"the reply is not JSON: {reason}{place}")


def is_storable(text: str) -> bool:
    """Whether Postgres can keep the text: no NUL, no lone surrogate."""
    if text.isascii():
        return "\x00" not in text
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _can_store(text: str, value: Any) -> bool:
    """Whether the value read from `text` can be stored; its strings are looked at only where an escape may hide one."""
    if not is_storable(text):
        return False
    return "\\u" not in text or all(is_storable(leaf) for leaf in _leaves(value, keys=True) if isinstance(leaf, str))


class Output:
    """What one prompt version accepts, compiled once: a JSON schema, a choice of words, or (with neither) free text."""

    def __init__(self, *, schema: Mapping[str, Any] | None = None, choice: Iterable[str] = ()) -> None:
        self._choice = tuple(choice)
        self._schema = None if schema is None else Schema(schema)

    @property
    def structured(self) -> bool:
        """Whether answers must have a given form."""
        return self._schema is not None or bool(self._choice)

    def parse(self, text: str, *, finish_reason: str = "stop") -> Parsed | Rejected:
        """Judge a reply. A structured one that was cut at its token limit is never valid. Never raises."""
        if self.structured and finish_reason == "length":
            return Rejected("cut", "the reply was cut at its token limit")
        if self._choice:
            return self._parse_choice(text)
        if self._schema is None:
            return Parsed(text) if text.strip() else Rejected("empty", "the reply is empty")
        parsed = parse_json(text)
        if isinstance(parsed, Rejected):
            return parsed
        problem = self._schema.problem(parsed.value)
        return parsed if problem is None else Rejected("schema", problem)

    def _parse_choice(self, text: str) -> Parsed | Rejected:
        word = text.strip(" \t\r\n")
        if word in self._choice:
            return Parsed(word)
        return Rejected("choice", f"expected one of {', '.join(self._choice)} and nothing else")


# --- numbers in prose -------------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"""(?<![\w.])                       # not inside a word or another number
    [-+\u2212]?[$€£]?
    (?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)
    (?:[eE](?P<exponent>[-+]?\d{1,2}))?
    \s?(?P<suffix>%|percent\b|bps\b|bp\b|(?:million|billion|trillion|thousand|[kKmMbB]|bn|mn)\b)?
    (?!\w)""",
    re.VERBOSE,
)
_DATE = re.compile(r"(?<!\d)\d{4}-\d{2}-\d{2}(?:T[\d:.]+(?:Z|[+-]\d{2}:?\d{2})?)?(?!\d)")
_SCALES = {
    "%": 1.0, "percent": 1.0, "bp": 0.01, "bps": 0.01, "thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "mn": 1e6,
    "billion": 1e9, "b": 1e9, "bn": 1e9, "trillion": 1e12,
}  # fmt: skip
_SMALLEST_TELLING = 10
_RELATIVE_TOLERANCE = 1e-9
_LARGEST_INTEGER = 10**300
_LONGEST_PROSE = 20_000


def ungrounded_numbers(text: str, inputs: Mapping[str, Any] | Iterable[Any]) -> tuple[str, ...]:
    """Numbers of `text`, as written and each once, that no number of `inputs` can stand behind.

    A number is grounded when some input, rounded to the digits written, equals it; sign and thousands separators do
    not matter, and a percentage or basis points may stand for a fraction (0.0123, 1.23, "1.23 %", "123 bps"). Numbers
    inside texts of the inputs (dates, headlines) count as inputs. Whole numbers below 10 without a unit are taken
    as counting words and not judged. Only the first 20,000 characters are looked at: a reply without end must not hold
    up the process.
    """
    text = text[:_LONGEST_PROSE]
    known = sorted({abs(number) for number in _numbers_of(inputs) if math.isfinite(number)})
    dates = set(_dates_of(inputs))
    found: dict[str, None] = {}
    for match in _DATE.finditer(text):
        if match.group()[:10] not in dates:
            found[match.group()] = None
    for match in _NUMBER.finditer(_DATE.sub(" ", text)):
        if not _is_grounded(match, known):
            found[match.group().strip()] = None
    return tuple(found)


def _scale(match: re.Match[str]) -> float:
    return _SCALES.get((match["suffix"] or "").lower(), 1.0) * 10.0 ** int(match["exponent"] or 0)


def _written(match: re.Match[str]) -> float:
    return float(match["digits"].replace(",", "")) * _scale(match)


def _is_grounded(match: re.Match[str], known: list[float]) -> bool:
    suffix = (match["suffix"] or "").lower()
    decimals = len(match["digits"].partition(".")[2])
    scale = _scale(match)
    written = _written(match)
    if scale == 1 and not suffix and not decimals and written < _SMALLEST_TELLING:
        return True
    half_step = 0.5 * 10.0**-decimals * scale
    fractions = (1.0, 100.0) if suffix in {"%", "percent", "bp", "bps"} else (1.0, 100.0, 0.01)
    for number in known:
        for factor in fractions:
            step = half_step if factor != 0.01 else min(half_step, 0.005)
            if abs(number * factor - written) <= step + _RELATIVE_TOLERANCE * written:
                return True
    return False


def _leaves(value: Any, *, keys: bool = False) -> Iterator[Any]:
    """Every value inside that holds no other, without recursion, since replies may be nested deeply."""
    waiting: list[Any] = [value]
    while waiting:
        current: Any = waiting.pop()
        if isinstance(current, Mapping):
            waiting.extend(cast("Mapping[Any, Any]", current).values())
            if keys:
                yield from cast("Mapping[Any, Any]", current)
        elif isinstance(current, list | tuple | set | frozenset):
            waiting.extend(cast("Iterable[Any]", current))
        else:
            yield current


def _numbers_of(inputs: Any) -> Iterator[float]:
    for leaf in _leaves(inputs):
        if isinstance(leaf, float) or (isinstance(leaf, int) and abs(leaf) <= _LARGEST_INTEGER):
            yield float(leaf)
        elif isinstance(leaf, str):
            yield from (_written(match) for match in _NUMBER.finditer(leaf))


def _dates_of(inputs: Any) -> Iterator[str]:
    for leaf in _leaves(inputs):
        if isinstance(leaf, str):
            yield from (match.group()[:10] for match in _DATE.finditer(leaf))
