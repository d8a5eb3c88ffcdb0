"""The prompts' YAML, read once at start into frozen types. Nothing is checked again afterwards.

Every failure is a `PromptFileError` that names file, key, version and field. A version's sha256 covers key, number and
all its fields, as written, in canonical JSON; comments and layout of the file do not matter. The order of properties in
a schema does: answers are written and untrusted inputs are shown in it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from libs.llm.errors import ExperimentError, PromptFileError
from libs.llm.experiments import GUARDRAILS, METRICS, UNIT_KINDS, Experiment, bound_problem, check_arms, worth_problem
from libs.llm.types import PromptVersion
from libs.strict_yaml import YamlError, read_yaml
from libs.upstreams.types import Constraint, Sampling

KEY_FIELDS = frozenset({"version", "experiment", "versions"})
VERSION_FIELDS = frozenset({"system", "user_template", "inputs", "output", "sampling"})
EXPERIMENT_FIELDS = frozenset({"arms", "unit", "guardrails", "metrics"})
SAMPLING_FIELDS = frozenset(field.name for field in fields(Sampling))
UNTRUSTED_MARK = "x-untrusted"

_KEY = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_HIGHEST_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class PromptKey:
    """One prompt: which version is active, which exist, which experiment the file asks for."""

    active: str
    versions: Mapping[str, PromptVersion]
    experiment: Experiment | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the file something stands, for messages."""

    file: Path
    key: str = ""
    version: str = ""
    field: str = ""

    def at(self, field: str) -> "Place":
        """The same place, one field deeper."""
        return Place(self.file, self.key, self.version, f"{self.field}.{field}" if self.field else field)

    def wrong(self, message: str) -> PromptFileError:
        """The error to raise for this place."""
        parts = [str(self.file)]
        # White space is no part of a name: what has any is wording that was indented wrongly, and not for logs.
        named = {"key": self.key, "version": self.version, "field": self.field}
        parts += [f"{what} {name if len(name.split()) == 1 else '…'}" for what, name in named.items() if name]
        return PromptFileError(f"{', '.join(parts)}: {message}")


def read_prompts(path: Path) -> dict[str, PromptKey]:
    """All prompts of the file, checked. Raises `PromptFileError`."""
    place = Place(path)
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise place.wrong(str(error)) from error
    prompts = _mapping(document, place)
    if not prompts:
        raise place.wrong("holds no prompts")
    return {key: _read_key(body, Place(path, key)) for key, body in prompts.items()}


def _read_key(body: Any, place: Place) -> PromptKey:
    if not _KEY.fullmatch(place.key):
        raise place.wrong("a key is small letters, digits and underscores")
    entry = _mapping(body, place)
    _known(entry, KEY_FIELDS, place)
    bodies = _mapping(entry.get("versions"), place.at("versions"))
    versions = {name: _read_version(one, Place(place.file, place.key, name)) for name, one in bodies.items()}
    active = entry.get("version")
    if not isinstance(active, str) or not _VERSION.fullmatch(active):
        raise place.at("version").wrong(f"expected the number of a version in quotes, found {_kind(active)}")
    if active not in versions:
        raise place.at("version").wrong(f"there is no version {active!r}, only {', '.join(versions) or 'none at all'}")
    experiment = (
        _read_experiment(entry["experiment"], versions, place.at("experiment")) if "experiment" in entry else None
    )
    return PromptKey(active=active, versions=versions, experiment=experiment)


def _read_experiment(body: Any, versions: Mapping[str, PromptVersion], place: Place) -> Experiment:
    entry = _mapping(body, place)
    _known(entry, EXPERIMENT_FIELDS, place)
    arms = _mapping(entry.get("arms"), place.at("arms"))
    for version, weight in arms.items():
        if version not in versions:
            raise place.at("arms").wrong(f"there is no version {version!r}, only {', '.join(versions)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise place.at(f"arms.{version}").wrong(f"expected a weight, found {_kind(weight)}")
    try:
        pairs = tuple((version, float(weight)) for version, weight in arms.items())
        check_arms(pairs, where="arms")
    except (ExperimentError, OverflowError) as error:
        raise place.wrong(str(error)) from error
    unit: Any = entry.get("unit", "ticker_day")
    if unit not in UNIT_KINDS:
        raise place.at("unit").wrong(f"is none of {', '.join(UNIT_KINDS)}")
    guardrails = _read_numbers(entry, "guardrails", place, known=GUARDRAILS, problem=bound_problem)
    metrics = _read_numbers(entry, "metrics", place, known=METRICS, problem=worth_problem)
    return Experiment(arms=pairs, unit=unit, guardrails=guardrails, metrics=metrics)


def _read_numbers(
    entry: Mapping[str, Any],
    field: str,
    place: Place,
    *,
    known: Mapping[str, Any],
    problem: Callable[[str, Any], str | None],
) -> dict[str, Any] | None:
    """What `field` says by name, None where it is left out; `problem` says why a value cannot be used."""
    if field not in entry:
        return None
    said = _mapping(entry[field], place.at(field))
    _known(said, frozenset(known), place.at(field))
    for name, value in said.items():
        wrong = problem(name, value)
        if wrong:
            raise place.at(field).at(name).wrong(wrong)
    return said


def _read_version(body: Any, place: Place) -> PromptVersion:
    if not _VERSION.fullmatch(place.version):
        raise place.wrong("a version's number holds letters, digits and . _ + - only")
    entry = _mapping(body, place)
    _known(entry, VERSION_FIELDS, place)
    inputs = _read_inputs(entry.get("inputs", {}), place.at("inputs"))
    sampling = _read_sampling(entry.get("sampling", {}), place.at("sampling"))
    properties: Mapping[str, Any] = inputs["properties"]
    return PromptVersion(
        key=place.key,
        version=place.version,
        system=_text(entry.get("system", ""), place.at("system")),
        user_template=_text(entry.get("user_template"), place.at("user_template")),
        inputs_schema=inputs,
        untrusted=tuple(name for name, schema in properties.items() if _is_untrusted(schema, place, name)),
        constraint=_read_output(entry["output"], place.at("output")) if "output" in entry else None,
        sampling=Sampling(**sampling),
        sampling_fields=frozenset(sampling),
        sha256=_hash(entry, place),
    )


def _hash(entry: Mapping[str, Any], place: Place) -> str:
    try:
        return content_hash(place.key, place.version, entry)
    except (TypeError, ValueError) as error:
        raise place.wrong(f"holds a value that JSON has no form for (put dates in quotes): {error}") from error


def content_hash(key: str, version: str, body: Mapping[str, Any]) -> str:
    """sha256 of a version's content in canonical JSON (no spaces, UTF-8), as 64 hex digits.

    Fields and sampling are sorted. Schemas keep their order, since it changes what is asked: a grammar makes the model
    write the properties of its answer in it, such as the reasons before the verdict.
    """
    content = {"key": key, "version": version, **{name: body[name] for name in sorted(VERSION_FIELDS) if name in body}}
    if isinstance(body.get("sampling"), Mapping):
        content["sampling"] = dict(sorted(body["sampling"].items()))
    canonical = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _is_untrusted(schema: Any, place: Place, name: str) -> bool:
    mark: Any = schema.get(UNTRUSTED_MARK, False) if isinstance(schema, Mapping) else False  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType] - any YAML
    if not isinstance(mark, bool):
        raise place.at(f"inputs.properties.{name}.{UNTRUSTED_MARK}").wrong(
            f"expected true or false, found {_kind(mark)}"
        )
    return mark


def _read_inputs(body: Any, place: Place) -> dict[str, Any]:
    """The inputs schema with what it leaves open closed: an object, every property required, no others."""
    schema = _mapping(body, place)
    if schema.get("type", "object") != "object":
        raise place.at("type").wrong("the inputs are an object")
    properties = _mapping(schema.get("properties", {}), place.at("properties"))
    closed: dict[str, Any] = {"required": list(properties), **schema}
    closed |= {"type": "object", "properties": properties, "additionalProperties": False}
    _check_schema(closed, place)
    missing = sorted(set(cast("list[str]", closed["required"])) - set(properties))
    if missing:
        raise place.at("required").wrong(f"{missing[0]!r} is not among the properties")
    return closed


def _read_output(body: Any, place: Place) -> Constraint:
    entry = _mapping(body, place)
    if "choice" in entry:
        _known(entry, frozenset({"choice"}), place)
        words: Any = entry["choice"]
        if not isinstance(words, list) or not words or not all(_is_word(word) for word in cast("list[Any]", words)):
            raise place.at("choice").wrong("expected a list of words in quotes, without white space around them")
        return Constraint(choice=tuple(cast("list[str]", words)))
    if entry.get("type") != "object":
        raise place.at("type").wrong("a reply is an object, or give {choice: [...]}")
    _check_schema(entry, place)
    _check_closed(entry, place)
    return Constraint(schema=entry)


def _is_word(word: Any) -> bool:
    return isinstance(word, str) and bool(word) and word == word.strip()


def _check_schema(schema: Mapping[str, Any], place: Place) -> None:
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        # The message itself quotes what stands there, descriptions and all.
        raise place.wrong(f"is not a JSON schema: {error.json_path} breaks the rule {error.validator!r}") from error


def _check_closed(schema: Any, place: Place) -> None:
    """Every object inside must name its keys and allow no others; references could reach the network, so none exist."""
    if isinstance(schema, list):
        for number, part in enumerate(cast("list[Any]", schema)):
            _check_closed(part, place.at(str(number)))
        return
    if not isinstance(schema, dict):
        return
    entry = cast("dict[str, Any]", schema)
    if "$ref" in entry or "$dynamicRef" in entry:
        raise place.wrong("references are not allowed in a reply's schema")
    if entry.get("type") == "object" and entry.get("additionalProperties") is not False:
        raise place.wrong("an object of a reply needs additionalProperties: false")
    for name, part in entry.items():
        if name not in {"enum", "const", "default", "examples", "required"}:
            _check_closed(part, place.at(name))


def _read_sampling(body: Any, place: Place) -> dict[str, Any]:
    entry = _mapping(body, place)
    _known(entry, SAMPLING_FIELDS, place)
    for name, value in entry.items():
        problem = sampling_problem(name, value)
        if problem:
            raise place.at(name).wrong(problem)
    return entry


def sampling_problem(name: str, value: Any) -> str | None:
    """Why `value` cannot be the sampling field `name`, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected a number, found {_kind(value)}"
    if name in {"max_tokens", "seed"}:
        if not isinstance(value, int):
            return f"{value!r} is not a whole number"
        return None if value >= (1 if name == "max_tokens" else 0) else f"{value} is too small"
    if name == "temperature":
        return None if 0 <= value <= _HIGHEST_TEMPERATURE else f"{value} is not between 0 and {_HIGHEST_TEMPERATURE:g}"
    return None if 0 < value <= 1 else f"{value} is not above 0 and at most 1"


def _mapping(value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.wrong("is missing" if value is None else f"expected names with values, found {_kind(value)}")
    return cast("dict[str, Any]", value)


def _text(value: Any, place: Place) -> str:
    if not isinstance(value, str):
        raise place.wrong("is missing" if value is None else f"expected text, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """What a value is, for messages: they reach logs and `/ready`, where nothing of a prompt's wording belongs."""
    name = type(value).__name__
    return {"bool": "true or false", "str": "text", "dict": "names with values"}.get(name, name)


def _known(entry: Mapping[str, Any], allowed: frozenset[str], place: Place) -> None:
    for name in entry:
        if name not in allowed:
            raise place.at(name).wrong(f"unknown field; known are {', '.join(sorted(allowed))}")
