"""A quick yes for values that fit a JSON schema.

Validation runs on every call, and the general validator costs a third of a call's processor time. For schemas made of
plain keywords this compiles a check that answers only yes or no; who hears no, or gets no check at all, asks the
general validator, which also knows why. Both must agree: a property test holds them together.
"""

from collections.abc import Callable, Mapping
from sys import float_info
from typing import Any, TypeAlias, cast

Check: TypeAlias = Callable[[Any], bool]

_SILENT = frozenset({"title", "description", "examples", "default", "$comment", "x-untrusted"})
_BY_KEYWORD = frozenset({
    "type", "enum", "properties", "required", "additionalProperties", "items",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems",
})  # fmt: skip
_TYPES: Mapping[str, tuple[type, ...]] = {
    "boolean": (bool,), "integer": (int,), "number": (int, float), "string": (str,), "object": (dict,),
    "array": (list,), "null": (type(None),),
}  # fmt: skip


def compile_fit(schema: Any) -> Check | None:
    """A check for `schema`, or None where it holds anything but plain keywords."""
    if schema is True or schema == {}:
        return _anything
    if not isinstance(schema, dict):
        return None
    entry = {name: value for name, value in cast("dict[str, Any]", schema).items() if name not in _SILENT}
    if not _BY_KEYWORD.issuperset(entry):
        return None
    if "enum" in entry and set(entry) <= {"enum", "type"} and all(_is_plain(one) for one in entry["enum"]):
        return _enum_check(entry)
    named = entry.get("type")
    kinds = [named] if isinstance(named, str) else named
    if not isinstance(kinds, list) or "enum" in entry:
        return None
    return _typed_check(entry, cast("list[str]", kinds))


def _anything(_: Any) -> bool:
    return True


def _nothing(_: Any) -> bool:
    return False


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _enum_check(entry: Mapping[str, Any]) -> Check | None:
    if "type" in entry:
        return None
    words = frozenset(entry["enum"])
    return lambda value: (value is None or isinstance(value, str)) and value in words


def _typed_check(entry: Mapping[str, Any], kinds: list[str]) -> Check | None:
    """By the value's exact type, so that True is no integer and a subclass is left to the general validator."""
    by_type: dict[type, Check] = {}
    for kind in kinds:
        inner = _check_of_kind(kind, entry)
        if inner is None:
            return None
        by_type.update(dict.fromkeys(_TYPES[kind], inner))

    def check(value: Any) -> bool:
        inner = by_type.get(cast("type[object]", type(value)))
        return inner is not None and inner(value)

    return check


def _check_of_kind(kind: str, entry: Mapping[str, Any]) -> Check | None:
    if kind == "object":
        return _object_check(entry)
    if kind == "array":
        return _array_check(entry)
    if kind in {"integer", "number"}:
        return _number_check(entry)
    if kind == "string":
        least, most = entry.get("minLength", 0), entry.get("maxLength", float("inf"))
        return lambda value: least <= len(value) <= most
    return _anything


def _number_check(entry: Mapping[str, Any]) -> Check:
    least, most = entry.get("minimum", -float_info.max), entry.get("maximum", float_info.max)
    above, below = entry.get("exclusiveMinimum"), entry.get("exclusiveMaximum")

    def check(value: Any) -> bool:
        return least <= value <= most and (above is None or value > above) and (below is None or value < below)

    return check


def _array_check(entry: Mapping[str, Any]) -> Check | None:
    item = compile_fit(entry.get("items", True))
    if item is None:
        return None
    least, most = entry.get("minItems", 0), entry.get("maxItems", float("inf"))
    return lambda value: least <= len(value) <= most and all(map(item, value))


def _object_check(entry: Mapping[str, Any]) -> Check | None:
    checks: dict[str, Check] = {}
    for name, schema in entry.get("properties", {}).items():
        inner = compile_fit(schema)
        if inner is None:
            return None
        checks[name] = inner
    more = entry.get("additionalProperties", True)
    others = _nothing if more is False else compile_fit(more)
    if others is None:
        return None
    required = frozenset(entry.get("required", ()))

    def check(value: Any) -> bool:
        if not required.issubset(value):
            return False
        return all(checks.get(name, others)(one) for name, one in value.items())

    return check
