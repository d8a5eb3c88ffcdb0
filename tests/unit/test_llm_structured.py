"""What counts as a valid answer, and which numbers of a text stand on nothing."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.structured import Output, Parsed, Rejected, parse_json, ungrounded_numbers

POLICY = Output(
    schema={
        "type": "object",
        "additionalProperties": False,
        "required": ["allow", "score", "size"],
        "properties": {
            "allow": {"type": "boolean"},
            "score": {"type": "integer", "minimum": 0, "maximum": 10},
            "size": {"type": "number", "exclusiveMinimum": 0},
            "flags": {"type": "array", "maxItems": 2, "items": {"enum": ["WIDE_RANGE", "INSTRUCTIONS"]}},
        },
    }
)
WORD = Output(choice=("OK", "NO"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "text",
    [
        '{"allow": true, "score": 0, "size": 1}',
        ' \n{"allow":false,"score":10,"size":0.5,"flags":["WIDE_RANGE"]}\t\n',
        '{"allow": true, "score": 3, "size": 1e3, "flags": []}',
    ],
)
def test_valid_answers(text: str) -> None:
    assert POLICY.parse(text) == Parsed(json.loads(text))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("allow", "not_json"),
        ('{"allow": true, "score": 1, "size": 1', "not_json"),
        ("{'allow': true, 'score': 1, 'size': 1}", "not_json"),
        ('Sure! {"allow": true, "score": 1, "size": 1}', "surrounded"),
        ('```json\n{"allow": true, "score": 1, "size": 1}\n```', "surrounded"),
        ('{"allow": true, "score": 1, "size": 1} I hope this helps', "surrounded"),
        ('{"allow": true, "score": 1, "size": 1}{}', "surrounded"),
        ('{"allow": true, "allow": false, "score": 1, "size": 1}', "duplicate_key"),
        ('{"allow": true, "score": 1, "size": NaN}', "not_finite"),
        ('{"allow": true, "score": 1, "size": Infinity}', "not_finite"),
        ('{"allow": true, "score": 1, "size": 1e999}', "not_finite"),
        ('{"allow": "false", "score": 1, "size": 1}', "schema"),
        ('{"allow": 1, "score": 1, "size": 1}', "schema"),
        ('{"allow": null, "score": 1, "size": 1}', "schema"),
        ('{"allow": true, "score": 1.0, "size": 1}', "schema"),
        ('{"allow": true, "score": true, "size": 1}', "schema"),
        ('{"allow": true, "score": "1", "size": 1}', "schema"),
        ('{"allow": true, "score": 11, "size": 1}', "schema"),
        ('{"allow": true, "score": -1, "size": 1}', "schema"),
        ('{"allow": true, "score": 1, "size": 0}', "schema"),
        ('{"allow": true, "score": 1}', "schema"),
        ('{"allow": true, "score": 1, "size": 1, "more": 1}', "schema"),
        ('{"allow": true, "score": 1, "size": 1, "flags": ["OTHER"]}', "schema"),
        ("[true, 1, 1]", "schema"),
        ("[" * 100_000, "not_json"),
        ("9" * 10_000, "not_json"),
    ],
)
def test_invalid_answers(text: str, kind: str) -> None:
    rejected = POLICY.parse(text)
    assert isinstance(rejected, Rejected)
    assert rejected.kind == kind
    assert 0 < len(rejected.reason) < 400
    assert "\n" not in rejected.reason


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"\\ud800"', '{"\\u0000": 1}', '"\ud800"'])
def test_what_cannot_be_stored_is_refused(text: str) -> None:
    rejected = parse_json(text)
    assert isinstance(rejected, Rejected)
    assert rejected.kind == "unstorable"


def test_an_escaped_backslash_before_u0000_is_harmless() -> None:
    assert parse_json('"a\\\\u0000"') == Parsed("a\\u0000")


def test_a_schema_error_names_the_place() -> None:
    rejected = POLICY.parse('{"allow": true, "score": 1, "size": 1, "flags": ["WIDE_RANGE", "OTHER"]}')
    assert isinstance(rejected, Rejected)
    assert rejected.reason.startswith("$.flags[1]: 'OTHER'")


@pytest.mark.parametrize("text", ["OK", " OK\n"])
def test_a_choice_is_its_word(text: str) -> None:
    assert WORD.parse(text) == Parsed("OK")


@pytest.mark.parametrize("text", ["ok", "OK.", '"OK"', "OK NO", "MAYBE", "", "O K"])
def test_nothing_else_is_a_choice(text: str) -> None:
    rejected = WORD.parse(text)
    assert isinstance(rejected, Rejected)
    assert rejected.kind == "choice"


def test_a_cut_answer_is_invalid_unless_it_is_free_text() -> None:
    assert isinstance(WORD.parse("OK", finish_reason="length"), Rejected)
    assert Output().parse("as far as I got", finish_reason="length") == Parsed("as far as I got")


@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    for output in (POLICY, WORD, Output()):
        assert isinstance(output.parse(text), Parsed | Rejected)


@given(st.text(alphabet='{}[]",:\\u0eE+-.123truefalsn \n'))
def test_no_json_like_text_makes_it_raise(text: str) -> None:
    assert isinstance(POLICY.parse(text), Parsed | Rejected)


@given(json_values)
def test_any_json_that_can_be_stored_is_read_as_it_is(value: Any) -> None:
    text = json.dumps(value)
    parsed = parse_json(text)
    if isinstance(parsed, Parsed):
        assert parsed.value == value
        assert type(parsed.value) is type(value)
    else:
        assert parsed.kind == "unstorable"
        assert "\\u0000" in text or "\\ud" in text


@given(json_values)
def test_whatever_passes_the_schema_truly_fits_it(value: Any) -> None:
    parsed = POLICY.parse(json.dumps(value))
    if isinstance(parsed, Parsed):
        assert type(parsed.value["allow"]) is bool
        assert type(parsed.value["score"]) is int
        assert math.isfinite(parsed.value["size"])


INPUTS: dict[str, Any] = {
    "last_price": 150.254,
    "expected_return": 0.0123,
    "liquidity_usd": 4_512_345,
    "coverage_pct": 97.5,
    "factors": {"momentum_20d": -1.37},
    "as_of": "2013-01-02",
    "headlines": ["Profit up 12% to $3.4 billion"],
}


@pytest.mark.parametrize(
    "text",
    [
        "The price is 150.25.",
        "At about 150 it is fair.",
        "It gains 1.23% (1.2 %, 0.0123, 123 bps).",
        "Liquidity of 4,512,345 or 4.5 million USD, $4.51m.",
        "Momentum is 1.37 below average: -1.37, \u22121.4.",
        "As of 2013-01-02 coverage is 97.5 percent.",
        "Profit rose 12% to 3.4 billion.",
        "Two of 3 factors over 5 days agree.",
        "No numbers at all, S&P and Q1 aside.",
    ],
)
def test_grounded_numbers(text: str) -> None:
    assert ungrounded_numbers(text, INPUTS) == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The price is 151.25.", ("151.25",)),
        ("It gains 1.9%, then 1.9% again.", ("1.9%",)),
        ("Liquidity is 5.2 million.", ("5.2 million",)),
        ("As of 2014-01-02.", ("2014-01-02",)),
        ("A target of $180 and 150.25.", ("$180",)),
        ("Earnings in 14 days.", ("14",)),
        ("It falls 7%.", ("7%",)),
    ],
)
def test_ungrounded_numbers(text: str, found: tuple[str, ...]) -> None:
    assert ungrounded_numbers(text, INPUTS) == found


@given(st.text(), json_values)
def test_looking_for_numbers_never_raises(text: str, inputs: Any) -> None:
    assert all(number in text for number in ungrounded_numbers(text, {"a": inputs}))


@given(st.text(alphabet="0123456789.,eE+-%$ kmb"), st.floats())
def test_looking_for_odd_numbers_never_raises(text: str, number: float) -> None:
    assert isinstance(ungrounded_numbers(text, [number, 10**400, text]), tuple)


@given(st.floats(min_value=10, max_value=1e9), st.integers(min_value=0, max_value=6))
def test_an_input_is_grounded_however_it_is_rounded(number: float, digits: int) -> None:
    assert ungrounded_numbers(f"It is {number:.{digits}f} or {number:,.{digits}f}.", {"x": number}) == ()


def test_a_reply_without_end_is_not_searched_to_its_end() -> None:
    assert ungrounded_numbers("word " * 2 + "77 " + "word " * 10_000 + "88", {}) == ("77",)
