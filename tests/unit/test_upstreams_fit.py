"""A body in each dialect's words: nothing a client asked for is lost in silence."""

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.upstreams.fit import COUNTED, GUIDED, GUIDED_OPTIONS, LLAMACPP_NAMES, Unfit, fit
from libs.upstreams.grammar import gbnf
from libs.upstreams.types import Constraint, Dialect

CHAT, TEXT, EMBED, ANSWER = "chat/completions", "completions", "embeddings", "responses"
DIALECTS: tuple[Dialect, ...] = ("vllm", "llamacpp", "openai")
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"tickers": {"type": "array", "items": {"type": "string"}}}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": False}}
FLAT_SCHEMA = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": False}
PLAIN = {"type": "text"}
WORDS = gbnf(Constraint(choice=("buy", "sell")))
BINDING = ("structured_outputs", "response_format", "grammar", "json_schema", "text")


def fitted(dialect: Dialect, endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
    """The fitted body, checked to leave the client's own as it was."""
    body = {"model": "theirs", **fields}
    before = copy.deepcopy(body)
    try:
        return fit(dialect, endpoint, body, model="ours", priority=4)
    finally:
        assert body == before


def binding(dialect: Dialect, endpoint: str = CHAT, **fields: Any) -> dict[str, Any]:
    """Only what binds the form of the answer."""
    return {name: value for name, value in fitted(dialect, endpoint, **fields).items() if name in BINDING}


def unfit(dialect: Dialect, endpoint: str = CHAT, **fields: Any) -> Unfit:
    with pytest.raises(Unfit) as caught:
        fitted(dialect, endpoint, **fields)
    return caught.value


@pytest.mark.parametrize("endpoint", [CHAT, TEXT, EMBED, ANSWER])
def test_model_and_priority_are_ours(endpoint: str) -> None:
    assert fitted("vllm", endpoint, priority=-1000) == {"model": "ours", "priority": 4}
    assert fitted("vllm", endpoint) == {"model": "ours", "priority": 4}
    for dialect in ("llamacpp", "openai"):
        assert fitted(dialect, endpoint, priority=-1000) == {"model": "ours"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_streamed_answer_is_counted(dialect: Dialect) -> None:
    for endpoint in COUNTED:
        assert fitted(dialect, endpoint, stream=True)["stream_options"] == {"include_usage": True}
        assert fitted(dialect, endpoint, stream=True, stream_options=None)["stream_options"] == {"include_usage": True}
        options = {"include_usage": False, "x": 1, "continuous_usage_stats": True}
        counted = fitted(dialect, endpoint, stream=True, stream_options=options)["stream_options"]
        assert counted == {"include_usage": True, "x": 1}, "usage in every chunk was not asked for"
        options["include_usage"] = True
        assert fitted(dialect, endpoint, stream=True, stream_options=options)["stream_options"] == options
        assert "stream_options" not in fitted(dialect, endpoint, stream=False)
    assert fitted(dialect, ANSWER, stream=True, stream_options={"a": 1})["stream_options"] == {"a": 1}
    assert "stream_options" not in fitted(dialect, ANSWER, stream=True)


@pytest.mark.parametrize("endpoint", [CHAT, TEXT, ANSWER])
@pytest.mark.parametrize(
    ("name", "value", "member", "said"),
    [
        ("guided_json", SCHEMA, "json", SCHEMA),
        ("guided_json", json.dumps(SCHEMA), "json", SCHEMA),
        ("guided_regex", "[a-z]+", "regex", "[a-z]+"),
        ("guided_choice", ["buy", "sell"], "choice", ["buy", "sell"]),
        ("guided_grammar", 'root ::= "a"', "grammar", 'root ::= "a"'),
        ("guided_json_object", True, "json_object", True),
    ],
)
def test_vllm_is_told_in_its_new_words(endpoint: str, name: str, value: object, member: str, said: object) -> None:
    answer = fitted("vllm", endpoint, **{name: value, "guided_regex" if name == "guided_json" else "guided_json": None})
    bound = {"structured_outputs": {member: said}}
    if (endpoint, member) == (ANSWER, "json"):
        bound = {"text": {"format": {"type": "json_schema", "name": "answer", "schema": said, "strict": False}}}
    assert answer == {"model": "ours", "priority": 4, **bound}


def test_vllm_still_knows_the_white_space_pattern() -> None:
    answer = binding("vllm", guided_json=SCHEMA, guided_whitespace_pattern=" ?")
    assert answer == {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}}
    assert unfit("vllm", guided_whitespace_pattern=" ?").param == "guided_whitespace_pattern"


def test_a_form_in_a_response_of_vllm_leaves_the_rest_of_the_text_settings() -> None:
    text = binding("vllm", ANSWER, guided_json=SCHEMA, text={"verbosity": "low"})["text"]
    assert (text["verbosity"], text["format"]["schema"]) == ("low", SCHEMA)
    spaced = binding("vllm", ANSWER, guided_json=SCHEMA, guided_whitespace_pattern=" ?")
    assert spaced == {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}}


def test_vllm_gets_its_own_field_as_it_is() -> None:
    given = {"structural_tag": "<x>", "a_member_of_tomorrow": 1, "disable_any_whitespace": True}
    assert binding("vllm", structured_outputs=given) == {"structured_outputs": given}
    assert binding("vllm", response_format=JSON_SCHEMA) == {"response_format": JSON_SCHEMA}


@pytest.mark.parametrize(
    ("endpoint", "fields", "said"),
    [
        (CHAT, {"guided_json": SCHEMA}, {"response_format": JSON_SCHEMA}),
        (ANSWER, {"guided_json": SCHEMA}, {"response_format": JSON_SCHEMA}),
        (TEXT, {"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
        (CHAT, {"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"response_format": JSON_SCHEMA}),
        (CHAT, {"structured_outputs": {"json_object": True}}, {"response_format": {"type": "json_object"}}),
        (TEXT, {"structured_outputs": {"json_object": True}}, {"json_schema": {"type": "object"}}),
        (CHAT, {"guided_choice": ["buy", "sell"]}, {"grammar": WORDS}),
        (TEXT, {"structured_outputs": {"choice": ["buy", "sell"], "regex": None}}, {"grammar": WORDS}),
        (ANSWER, {"guided_grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
        (CHAT, {"response_format": JSON_SCHEMA}, {"response_format": JSON_SCHEMA}),
        (CHAT, {"grammar": "g"}, {"grammar": "g"}),
        (CHAT, {"response_format": PLAIN, "grammar": "g"}, {"response_format": PLAIN, "grammar": "g"}),
        (TEXT, {"response_format": JSON_SCHEMA}, {"json_schema": SCHEMA}),
        (TEXT, {"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        (ANSWER, {"text": {"format": FLAT_SCHEMA}}, {"text": {"format": FLAT_SCHEMA}, "response_format": JSON_SCHEMA}),
        (CHAT, {"structured_outputs": None, "guided_json": None}, {}),
    ],
)  # fmt: skip
def test_llamacpp_is_told_where_it_listens(endpoint: str, fields: dict[str, Any], said: dict[str, Any]) -> None:
    answer = fitted("llamacpp", endpoint, **fields)
    assert answer == {"model": "ours", **said}


@pytest.mark.parametrize(
    ("endpoint", "fields", "said"),
    [
        (CHAT, {"guided_json": SCHEMA}, {"response_format": JSON_SCHEMA}),
        (CHAT, {"structured_outputs": {"json_object": True}}, {"response_format": {"type": "json_object"}}),
        (ANSWER, {"guided_json": SCHEMA}, {"text": {"format": FLAT_SCHEMA}}),
        (ANSWER, {"guided_json": SCHEMA, "text": {"x": 1}}, {"text": {"x": 1, "format": FLAT_SCHEMA}}),
        (ANSWER, {"guided_json_object": True}, {"text": {"format": {"type": "json_object"}}}),
        (ANSWER, {"text": {"format": FLAT_SCHEMA}}, {"text": {"format": FLAT_SCHEMA}}),
    ],
)  # fmt: skip
def test_a_hosted_server_is_told_in_openais_words(endpoint: str, fields: dict[str, Any], said: dict[str, Any]) -> None:
    assert fitted("openai", endpoint, **fields) == {"model": "ours", **said}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": SCHEMA, "structured_outputs": {"json": SCHEMA}}, "guided_json"),
        ({"guided_json": SCHEMA, "response_format": JSON_SCHEMA}, "guided_json"),
        ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
        ({"guided_tomorrow": 1}, "guided_tomorrow"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_json": 7}, "guided_json"),
        ({"guided_json": "[" * 1000 + "]" * 1000}, "guided_json"),
        ({"guided_json": '{"a":' * 250 + "1" + "}" * 250}, "guided_json"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": False}, "guided_regex"),
        ({"guided_grammar": ["a"]}, "guided_grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "buy"}, "guided_choice"),
        ({"guided_choice": ["buy", 1]}, "guided_choice"),
        ({"guided_json_object": 1}, "guided_json_object"),
    ],
)
def test_what_cannot_be_meant_is_refused_everywhere(dialect: Dialect, fields: dict[str, Any], param: str) -> None:
    error = unfit(dialect, **fields)
    assert error.param == param
    assert param in str(error)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_embeddings_take_no_form(dialect: Dialect) -> None:
    assert unfit(dialect, EMBED, guided_choice=["a"]).param == "guided_choice"
    assert unfit(dialect, EMBED, structured_outputs={"choice": ["a"]}).param.startswith("structured_outputs")


@pytest.mark.parametrize(
    ("dialect", "endpoint", "fields", "param"),
    [
        ("llamacpp", CHAT, {"guided_regex": "a"}, "guided_regex"),
        ("llamacpp", CHAT, {"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
        ("llamacpp", CHAT, {"structured_outputs": {}}, "structured_outputs"),
        ("llamacpp", CHAT, {"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
        ("llamacpp", CHAT, {"structured_outputs": "a"}, "structured_outputs"),
        ("llamacpp", CHAT, {"guided_json": SCHEMA, "guided_whitespace_pattern": " "}, "guided_json"),
        ("llamacpp", CHAT, {"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.json"),
        ("llamacpp", CHAT, {"guided_choice": ["a"], "grammar": "g"}, "guided_choice"),
        ("llamacpp", CHAT, {"response_format": JSON_SCHEMA, "grammar": "g"}, "grammar"),
        ("llamacpp", CHAT, {"json_schema": SCHEMA, "grammar": "g"}, "json_schema"),
        ("llamacpp", TEXT, {"response_format": "json"}, "response_format"),
        ("llamacpp", TEXT, {"response_format": {"type": "structural_tag"}}, "response_format"),
        ("llamacpp", TEXT, {"response_format": {"type": "json_schema"}}, "response_format"),
        ("llamacpp", ANSWER, {"text": {"format": {"type": "grammar"}}}, "text.format"),
        ("openai", CHAT, {"guided_choice": ["a"]}, "guided_choice"),
        ("openai", CHAT, {"guided_regex": "a"}, "guided_regex"),
        ("openai", CHAT, {"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar"),
        ("openai", TEXT, {"guided_json": SCHEMA}, "guided_json"),
        ("openai", ANSWER, {"guided_json": SCHEMA, "text": {"format": FLAT_SCHEMA}}, "guided_json"),
        ("openai", ANSWER, {"guided_json": SCHEMA, "text": "a"}, "text"),
    ],
)  # fmt: skip
def test_what_a_dialect_has_no_words_for_is_refused(
    dialect: Dialect, endpoint: str, fields: dict[str, Any], param: str
) -> None:
    assert unfit(dialect, endpoint, **fields).param == param


@pytest.mark.parametrize(("name", "instead"), [("n_predict", "max_tokens"), ("n_cmpl", "use n"), ("id_slot", "slots")])
@pytest.mark.parametrize("endpoint", [CHAT, TEXT, ANSWER])
def test_names_of_llamacpp_that_go_round_what_was_counted_are_refused(endpoint: str, name: str, instead: str) -> None:
    refused = unfit("llamacpp", endpoint, **{name: 0})
    assert refused.param == name
    assert instead in str(refused)
    assert name not in fitted("llamacpp", endpoint, **{name: None})
    assert fitted("vllm", endpoint, **{name: 8})[name] == 8, "other engines do not know it"


def test_a_schema_given_as_text_can_be_written_where_it_is_put() -> None:
    deep = '{"a":' * 245 + "1" + "}" * 245
    for dialect in DIALECTS:
        assert orjson.dumps(fitted(dialect, ANSWER, guided_json=deep))


NAMES = st.sampled_from(
    [
        *GUIDED,
        *GUIDED_OPTIONS,
        *LLAMACPP_NAMES,
        *BINDING,
        "guided_decoding_backend",
        "priority",
        "stream",
        "stream_options",
        "model",
    ]
)
MEMBERS = st.sampled_from(["json", "choice", "type", "format", "schema"]) | st.text(max_size=4)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from([json.dumps(SCHEMA), "text"])
)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=3), max_leaves=8
)
VALUES = NESTED | st.sampled_from([SCHEMA, JSON_SCHEMA, ["a"], {"choice": ["a"]}, {"format": FLAT_SCHEMA}])


@given(
    st.sampled_from(DIALECTS),
    st.sampled_from([CHAT, TEXT, EMBED, ANSWER]),
    st.dictionaries(NAMES | st.text(max_size=6), VALUES, max_size=5),
)
def test_whatever_comes_our_model_and_priority_go_out(dialect: Dialect, endpoint: str, body: dict[str, Any]) -> None:
    before = copy.deepcopy(body)
    try:
        answer = fit(dialect, endpoint, body, model="ours", priority=4)
    except Unfit as error:
        assert error.param.partition(".")[0] in body  # noqa: PT017 - or it fits
    else:
        assert answer["model"] == "ours"
        assert answer.get("priority") == (4 if dialect == "vllm" else None)
        assert not [name for name in answer if name.startswith("guided_")]
        assert dialect == "vllm" or "structured_outputs" not in answer
        assert dialect != "llamacpp" or LLAMACPP_NAMES.keys().isdisjoint(answer)
        ours = {"model", "priority", "stream_options", *BINDING, *GUIDED, *GUIDED_OPTIONS}
        untouched = set(body) - ours - (LLAMACPP_NAMES.keys() if dialect == "llamacpp" else set())
        assert all(answer[name] == body[name] for name in untouched if not name.startswith("guided_"))
    assert body == before
