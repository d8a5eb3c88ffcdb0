"""A client's body in the words of one dialect.

How an answer can be bound to a form has a different name everywhere, and an engine ignores the names it does not know:
the client then gets free text and no error. Here each wish is said so that the engine hears it, or refused.

| wish | vllm: `structured_outputs.` | llamacpp | openai |
|---|---|---|---|
| a JSON schema | `json` | `response_format`; completions: `json_schema` | `response_format`; responses: `text.format` |
| any JSON object | `json_object` | the same | the same |
| one of some words | `choice` | `grammar` | no |
| a grammar | `grammar` | `grammar` | no |
| a regular expression | `regex` | no | no |

For responses, vLLM too is told a schema in `text.format`: older ones ignore the other field there.

A schema goes to llama.cpp as it is. Our own grammars (`grammar.py`) would be narrower than the caller's schema, in its
array lengths for one, and nothing here validates the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import orjson

from libs.upstreams.grammar import gbnf
from libs.upstreams.types import Constraint, Dialect

Fields: TypeAlias = dict[str, Any]

COUNTED = frozenset({"chat/completions", "completions"})
"""Endpoints that count the tokens of a stream only when asked."""

AS_GIVEN = "as given"
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")

GUIDED: Mapping[str, str] = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
}
GUIDED_OPTIONS: Mapping[str, str] = {"guided_whitespace_pattern": "whitespace_pattern"}

LLAMACPP_FORMS = ("response_format", "text", "grammar", "json_schema")
"""Fields by which llama.cpp's callers, or OpenAI's, bind an answer."""

LLAMACPP_NAMES: Mapping[str, str] = {
    "n_predict": "use max_tokens",
    "n_cmpl": "use n",
    "id_slot": "which of its slots a server uses is its own business",
}
"""Fields of llama.cpp's own by which an answer would be longer than was counted, or take another's place."""

_MARGIN = 8
"""Levels that a schema given as text may be put below, of the 254 that orjson writes."""


class Unfit(ValueError):
    """The dialect has no words for a field; `param` is the field as the caller wrote it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Wish:
    """What an answer must look like, and the field that said so."""

    kind: str
    value: Any
    param: str
    options: Fields = field(default_factory=dict[str, Any])


def fit(dialect: Dialect, endpoint: str, body: Mapping[str, Any], *, model: str, priority: int) -> Fields:
    """A shallow copy of `body` for a server of `dialect`; `body` stays as it is. Raises `Unfit`."""
    fitted = dict(body)
    fitted["model"] = model
    if dialect == "vllm":
        fitted["priority"] = priority
    else:
        fitted.pop("priority", None)
        if dialect == "llamacpp":
            _refuse_own_names(fitted)
    if fitted.get("stream") is True and endpoint in COUNTED:
        fitted["stream_options"] = _counted(fitted.get("stream_options"))
    guided = [name for name in fitted if name.startswith("guided_")]
    if guided or "structured_outputs" in fitted:
        _bind(dialect, endpoint, fitted, guided=guided)
    elif dialect == "llamacpp" and any(name in fitted for name in LLAMACPP_FORMS):
        _say_standard_forms(endpoint, fitted)
    return fitted


def _refuse_own_names(fitted: Fields) -> None:
    for name, instead in LLAMACPP_NAMES.items():
        if fitted.pop(name, None) is not None:
            raise Unfit(f"{name} is not accepted here: {instead}", param=name)


def _counted(options: object) -> Fields:
    """The stream's options with the usage asked for, and no more usage than the caller asked for."""
    given = cast("Fields", options) if isinstance(options, dict) else {}
    counted = {**given, "include_usage": True}
    if given.get("include_usage") is not True:
        counted.pop("continuous_usage_stats", None)
    return counted


def _bind(dialect: Dialect, endpoint: str, fitted: Fields, *, guided: list[str]) -> None:
    """Say the wish in `guided_*` or `structured_outputs` in the dialect's words."""
    wish = _guided({name: fitted.pop(name) for name in guided})
    structured = fitted.pop("structured_outputs", None)
    if structured is not None:
        if wish is not None:
            raise Unfit(f"{wish.param} cannot be combined with structured_outputs", param=wish.param)
        # vLLM's own field goes there as it is: new members need no change here.
        wish = Wish(AS_GIVEN, structured, "structured_outputs") if dialect == "vllm" else _structured(structured)
    if wish is None:
        if dialect == "llamacpp":
            _say_standard_forms(endpoint, fitted)
        return
    forms = _forms(dialect, fitted)
    if forms:
        raise Unfit(f"{wish.param} cannot be combined with {forms[0]}", param=wish.param)
    if endpoint == "embeddings":
        raise Unfit(f"{wish.param} is for generated text; embeddings have none", param=wish.param)
    _say(dialect, endpoint, wish, fitted)


def _guided(given: Fields) -> Wish | None:
    """The wish among the `guided_*` fields; null asks for nothing."""
    asked = {name: value for name, value in given.items() if value is not None}
    if asked.get("guided_json_object") is False:
        del asked["guided_json_object"]
    for name in asked:
        if name not in GUIDED and name not in GUIDED_OPTIONS:
            raise Unfit(f"{name} has no equal in today's engines", param=name)
    wishes = [name for name in asked if name in GUIDED]
    options = {GUIDED_OPTIONS[name]: asked[name] for name in asked if name in GUIDED_OPTIONS}
    if len(wishes) > 1:
        raise Unfit(f"{wishes[1]} cannot be combined with {wishes[0]}", param=wishes[1])
    if not wishes:
        if options:
            name = next(iter(asked))
            raise Unfit(f"{name} goes with guided_json, which is missing", param=name)
        return None
    return _wish(GUIDED[wishes[0]], asked[wishes[0]], wishes[0], options=options)


def _structured(given: object) -> Wish:
    """The wish in vLLM's `structured_outputs`, for a server that does not know the field."""
    if not isinstance(given, dict):
        raise Unfit("structured_outputs must be an object", param="structured_outputs")
    members = {name: value for name, value in cast("Fields", given).items() if value is not None and value is not False}
    kinds = [name for name in members if name in KINDS]
    if len(kinds) != 1:
        raise Unfit(f"structured_outputs must have one of {', '.join(KINDS)}", param="structured_outputs")
    options = {name: value for name, value in members.items() if name != kinds[0]}
    return _wish(kinds[0], members[kinds[0]], f"structured_outputs.{kinds[0]}", options=options)


def _wish(kind: str, value: object, param: str, *, options: Fields) -> Wish:
    match kind:
        case "json":
            return Wish(kind, _schema(value, param), param, options)
        case "choice":
            words = cast("list[object]", value) if isinstance(value, list) else []
            if not words or not all(isinstance(word, str) for word in words):
                raise Unfit(f"{param} must be an array of at least one string", param=param)
        case "json_object":
            if value is not True:
                raise Unfit(f"{param} must be true or false", param=param)
        case _:
            if not isinstance(value, str) or not value:
                raise Unfit(f"{param} must be a string that is not empty", param=param)
    return Wish(kind, value, param, options)


def _schema(value: object, param: str) -> Fields:
    """A JSON schema, given as such or as its text."""
    schema: object = value
    if isinstance(value, str):
        try:
            schema = orjson.loads(value)
            orjson.dumps(_nested(schema, _MARGIN))
        except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
            raise Unfit(f"{param} is not JSON: {error}", param=param) from error
    if not isinstance(schema, dict):
        raise Unfit(f"{param} must be a JSON schema, which is an object", param=param)
    return cast("Fields", schema)


def _nested(value: object, levels: int) -> object:
    for _ in range(levels):
        value = [value]
    return value


def _forms(dialect: Dialect, fitted: Fields) -> list[str]:
    """The standard fields, and the dialect's own, that bind the answer too."""
    forms: list[str] = []
    if _type_of(fitted.get("response_format")) != "text":
        forms.append("response_format")
    if _type_of(_member(fitted.get("text"), "format")) != "text":
        forms.append("text.format")
    if dialect == "llamacpp":
        forms += [name for name in ("grammar", "json_schema") if fitted.get(name) not in (None, "")]
    return forms


def _type_of(form: object) -> object:
    """`text` where nothing is asked for."""
    return "text" if form is None else _member(form, "type")


def _say(dialect: Dialect, endpoint: str, wish: Wish, fitted: Fields) -> None:
    if dialect == "vllm":
        if endpoint == "responses" and wish.kind == "json" and not wish.options:
            _say_in_text_format(wish, fitted)
            return
        given = wish.kind == AS_GIVEN
        fitted["structured_outputs"] = wish.value if given else {wish.kind: wish.value, **wish.options}
        return
    if wish.options:
        name = next(iter(wish.options))
        raise Unfit(f"{name}, given with {wish.param}, has no equal on a {dialect} server", param=wish.param)
    if dialect == "llamacpp":
        _say_to_llamacpp(endpoint, wish, fitted)
    else:
        _say_to_openai(endpoint, wish, fitted)


def _say_to_llamacpp(endpoint: str, wish: Wish, fitted: Fields) -> None:
    match wish.kind:
        case "choice":
            fitted["grammar"] = gbnf(Constraint(choice=tuple(wish.value)))
        case "grammar":
            fitted["grammar"] = wish.value
        case "json" | "json_object" if endpoint == "completions":
            # It reads response_format for chats alone.
            fitted["json_schema"] = wish.value if wish.kind == "json" else {"type": "object"}
        case "json" | "json_object":
            fitted["response_format"] = _response_format(wish)
        case _:
            raise _unknown("llamacpp", wish)


def _say_to_openai(endpoint: str, wish: Wish, fitted: Fields) -> None:
    if wish.kind not in ("json", "json_object") or endpoint == "completions":
        raise _unknown("openai", wish)
    if endpoint == "responses":
        _say_in_text_format(wish, fitted)
    else:
        fitted["response_format"] = _response_format(wish)


def _say_in_text_format(wish: Wish, fitted: Fields) -> None:
    form = _response_format(wish)
    text = fitted.get("text")
    if text is not None and not isinstance(text, dict):
        raise Unfit("text must be an object", param="text")
    flat = {"type": form["type"], **form.get("json_schema", {})}
    fitted["text"] = {**cast("Fields", text or {}), "format": flat}


def _response_format(wish: Wish) -> Fields:
    if wish.kind == "json_object":
        return {"type": "json_object"}
    # Not strict: strict refuses schemas with keywords it does not know, and the caller did not ask for it.
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wish.value, "strict": False}}


def _unknown(dialect: Dialect, wish: Wish) -> Unfit:
    return Unfit(f"{wish.param} has no equal on the {dialect} server that has this model", param=wish.param)


def _say_standard_forms(endpoint: str, fitted: Fields) -> None:
    """llama.cpp ignores `response_format` for completions and `text.format` for responses, and prefers the
    `response_format` to a grammar, all in silence."""
    forms = _forms("llamacpp", fitted)
    if len(forms) > 1:
        raise Unfit(f"{forms[1]} cannot be combined with {forms[0]}", param=forms[1])
    if forms == ["response_format"] and endpoint == "completions":
        form = fitted.pop("response_format")
        _say_to_llamacpp(endpoint, _form_wish(form, _member(form, "json_schema"), "response_format"), fitted)
    elif forms == ["text.format"] and endpoint == "responses":
        form = _member(fitted["text"], "format")
        _say_to_llamacpp(endpoint, _form_wish(form, form, "text.format"), fitted)


def _form_wish(form: object, holder: object, param: str) -> Wish:
    """The wish of a standard form, whose schema is in `holder`."""
    kind = _type_of(form)
    if kind == "json_object":
        return Wish("json_object", value=True, param=param)
    schema = _member(holder, "schema")
    if kind != "json_schema" or schema is None:
        raise Unfit(f"{param} must have the type json_schema, with a schema, or json_object", param=param)
    return _wish("json", schema, param, options={})


def _member(value: object, name: str) -> object:
    return cast("Fields", value).get(name) if isinstance(value, dict) else None
