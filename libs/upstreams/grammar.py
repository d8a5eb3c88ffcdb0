"""From a constraint to a llama.cpp grammar (GBNF) that leaves an answer no room for free white space.

llama.cpp's own translation of a JSON schema allows white space between any two tokens, and a small model fills its
answer with it until the tokens run out. Here every text the grammar allows is compact JSON, valid under the schema
but for what `CHECKED_LATER` lists, and bounded: a string, array or number always ends.

The grammar may be narrower than the schema (declared order of properties, bounds where the schema sets none), never
wider. The notation is documented in llama.cpp's `grammars/README.md`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias, cast

from jsonschema import Draft202012Validator, SchemaError

from libs.upstreams.types import Constraint

Schema: TypeAlias = Mapping[str, Any]

STRING_BOUND = 500  # characters, where the schema sets no maxLength
ARRAY_BOUND = 8  # items, where the schema sets no maxItems
REPEAT_BOUND = 1500  # some builds of llama.cpp refuse a grammar that repeats a rule more than 2000 times
DEPTH_BOUND = 16
INTEGER_DIGITS = 15
FRACTION_DIGITS = 6

# One character of a JSON string. Unicode escapes are left out: they could spell lone surrogates and NUL.
CHARACTER = r'[^"\\\x00-\x1F\x7F-\x9F] | "\\" ["\\n]'

COLON = '":"'

ANNOTATIONS = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples"})
CHECKED_LATER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
KEYWORDS: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength"}),
    "number": CHECKED_LATER,
    "integer": CHECKED_LATER,
    "boolean": frozenset(),
    "null": frozenset(),
}


class UnsupportedSchema(ValueError):
    """A schema uses what cannot be turned into a grammar; the message names the place and the keyword."""


@dataclass(slots=True)
class Rules:
    """The rules written so far, name to right-hand side. Equal right-hand sides share one rule."""

    bodies: dict[str, str] = field(default_factory=dict[str, str])
    names: dict[str, str] = field(default_factory=dict[str, str])

    def name(self, body: str) -> str:
        """The name of the rule with this right-hand side."""
        known = self.names.get(body)
        if known is None:
            known = self.names[body] = f"r{len(self.names)}"
            self.bodies[known] = body
        return known

    def text(self, root: str) -> str:
        """The whole grammar, `root` first."""
        return "".join(f"{name} ::= {body}\n" for name, body in [("root", root), *self.bodies.items()])


def gbnf(constraint: Constraint) -> str:
    """The grammar of a constraint: exactly its choices, or compact JSON valid under its schema.

    Raises `UnsupportedSchema` naming the keyword that has no translation.
    """
    if constraint.choice:
        return _choice(constraint.choice)
    if constraint.schema is None:
        raise UnsupportedSchema("the constraint has neither a schema nor choices")
    return _schema(json.dumps(constraint.schema))


def _choice(words: tuple[str, ...]) -> str:
    return Rules().text(" | ".join(_literal(word) for word in words))


@lru_cache(maxsize=256)
def _schema(text: str) -> str:
    schema = json.loads(text)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UnsupportedSchema(f"{error.json_path}: not a JSON schema: {error.message}") from error
    rules = Rules()
    return rules.text(_value(schema, rules, "$"))


def _literal(text: str) -> str:
    """A GBNF literal: quotes and backslashes escaped, everything outside printable ASCII by its number."""
    return '"' + "".join(_literal_character(character) for character in text) + '"'


def _literal_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if " " <= character <= "~":
        return character
    return f"\\U{ord(character):08X}"


def _json_literal(value: object) -> str:
    return _literal(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _value(schema: object, rules: Rules, where: str) -> str:
    """The right-hand side that matches one value."""
    if not isinstance(schema, Mapping):
        raise UnsupportedSchema(f"{where}: a schema must be an object")
    fields = {name: value for name, value in cast("Schema", schema).items() if name not in ANNOTATIONS}
    if where.count(".") + where.count("[") > DEPTH_BOUND:
        raise UnsupportedSchema(f"{where}: nested deeper than {DEPTH_BOUND}")
    for listing in ("enum", "const"):
        if listing in fields:
            return _listed(fields, listing, where)
    kinds = fields.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(names, list) or not names or any(name not in KEYWORDS for name in cast("list[object]", names)):
        raise UnsupportedSchema(f"{where}: type {kinds!r} is not supported")
    allowed = frozenset[str]().union(*(KEYWORDS[name] for name in cast("list[str]", names)), {"type"})
    _refuse_others(fields, allowed, where)
    return " | ".join(_KINDS[name](fields, rules, where) for name in cast("list[str]", names))


def _refuse_others(fields: Schema, allowed: frozenset[str], where: str) -> None:
    unknown = sorted(set(fields) - allowed)
    if unknown:
        raise UnsupportedSchema(f"{where}: unsupported keyword {', '.join(unknown)}")


def _listed(fields: Schema, keyword: str, where: str) -> str:
    _refuse_others(fields, frozenset({keyword, "type"}), where)
    values = [fields["const"]] if keyword == "const" else fields["enum"]
    typed: Any = Draft202012Validator({name: value for name, value in fields.items() if name == "type"})
    literals = [_json_literal(value) for value in values if typed.is_valid(value)]
    if not literals:
        raise UnsupportedSchema(f"{where}: {keyword} leaves no value of the given type")
    return " | ".join(literals)


def _bounds(fields: Schema, least: str, most: str, default: int, where: str) -> tuple[int, int]:
    """The smallest and largest count, cut to what the engine can repeat."""
    low = fields.get(least, 0)
    high = fields.get(most, max(default, low))
    if not 0 <= low <= high or low > REPEAT_BOUND:
        raise UnsupportedSchema(f"{where}: {least} {low} and {most} {high} leave nothing to write")
    return low, min(high, REPEAT_BOUND)


def _string(fields: Schema, rules: Rules, where: str) -> str:
    low, high = _bounds(fields, "minLength", "maxLength", STRING_BOUND, where)
    return rf'"\"" {rules.name(CHARACTER)}{{{low},{high}}} "\""' if high else _json_literal("")


def _array(fields: Schema, rules: Rules, where: str) -> str:
    low, high = _bounds(fields, "minItems", "maxItems", ARRAY_BOUND, where)
    if high == 0:
        return _json_literal([])
    item = rules.name(_value(fields.get("items"), rules, f"{where}[]"))
    # One repetition only when it can happen: "{0,0}" is not portable.
    more = f' ("," {item}){{{max(low - 1, 0)},{high - 1}}}' if high > 1 else ""
    some = f"{item}{more}"
    return f'"[" {some} "]"' if low else f'"[" ({some})? "]"'


def _object(fields: Schema, rules: Rules, where: str) -> str:
    """The properties in their declared order; those not required may be missing."""
    properties = fields.get("properties", {})
    required = fields.get("required", [])
    missing = sorted(set(required) - set(properties))
    if missing:
        raise UnsupportedSchema(f"{where}: required but not among the properties: {', '.join(missing)}")
    if not isinstance(fields.get("additionalProperties", False), bool):
        raise UnsupportedSchema(f"{where}: additionalProperties must be true or false")
    after, first = "", ""  # what may follow a written property, and what may come while none is written
    for name, schema in reversed(properties.items()):
        member = f"{_json_literal(name)} {COLON} {rules.name(_value(schema, rules, f'{where}.{name}'))}"
        if name in required:
            after, first = f'"," {member} {after}'.rstrip(), f"{member} {after}".rstrip()
        else:
            started = f"{member} {after}".rstrip()
            first = f"({started} | {first})" if first else f"({started})?"
            after = f'("," {member})? {after}'.rstrip()
    return f'"{{" {first} "}}"' if first else _literal("{}")


def _number(fields: Schema, rules: Rules, where: str) -> str:
    """A number without exponent. Of all ranges only 0 to 1, a probability's, is kept to here."""
    if fields.get("minimum") == 0 and fields.get("maximum") == 1:
        return f'"0" ("." [0-9]{{1,{FRACTION_DIGITS}}})? | "1"'
    return f'{_integer(fields, rules, where)} ("." [0-9]{{1,{FRACTION_DIGITS}}})?'


def _integer(fields: Schema, rules: Rules, where: str) -> str:
    """Digits without exponent, so that no number overflows; no sign where the schema allows nothing below zero."""
    del rules, where
    sign = "" if fields.get("minimum", fields.get("exclusiveMinimum", -1)) >= 0 else '"-"? '
    return f'{sign}("0" | [1-9] [0-9]{{0,{INTEGER_DIGITS - 1}}})'


def _boolean(fields: Schema, rules: Rules, where: str) -> str:
    del fields, rules, where
    return '"true" | "false"'


def _null(fields: Schema, rules: Rules, where: str) -> str:
    del fields, rules, where
    return '"null"'


_KINDS: Mapping[str, Callable[[Schema, Rules, str], str]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "null": _null,
}
