"""The grammars we hand to llama.cpp: everything they allow must be compact, bounded, and valid under the schema."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from libs.upstreams.grammar import ARRAY_BOUND, STRING_BOUND, UnsupportedSchema, gbnf
from libs.upstreams.types import Constraint

Pick = Callable[[int], int]  # pick(n) -> 0..n-1

POLICY: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["allow", "reasons"],
    "properties": {
        "allow": {"type": "boolean"},
        "reasons": {"type": "array", "maxItems": 3, "items": {"enum": ["EARNINGS", "COVERAGE"]}},
    },
}


class Interpreter:
    """Writes a text that a grammar allows, making each choice with `pick`. Knows the part of GBNF that we write."""

    TOKEN = re.compile(
        r'\s*(?:(?P<literal>"(?:[^"\\]|\\.)*")|(?P<set>\[(?:[^\]\\]|\\.)*\])|(?P<name>[a-z][a-z0-9]*)'
        r"|(?P<repeat>\{\d+,\d+\})|(?P<sign>[()|?]))"
    )

    def __init__(self, grammar: str, pick: Pick) -> None:
        rules = [line.split(" ::= ", 1) for line in grammar.splitlines()]
        self.rules = {name: self.tokens(body) for name, body in rules}
        assert len(self.rules) == len(rules), "a rule is defined twice"
        self.pick = pick

    def tokens(self, body: str) -> list[tuple[str, str]]:
        """The tokens of a right-hand side; anything unknown fails."""
        found: list[tuple[str, str]] = []
        place = 0
        while place < len(body.rstrip()):
            match = self.TOKEN.match(body, place)
            assert match is not None, f"cannot read {body[place : place + 40]!r}"
            found.append((str(match.lastgroup), match.group(str(match.lastgroup))))
            place = match.end()
        return found

    def write(self, rule: str = "root") -> str:
        """One text of this rule."""
        text, rest = self.alternatives(self.rules[rule], 0)
        assert rest == len(self.rules[rule])
        return text()

    def alternatives(self, tokens: list[tuple[str, str]], at: int) -> tuple[Callable[[], str], int]:
        """Parse `a | b | …` from a place on; what comes back writes one of them."""
        options: list[Callable[[], str]] = []
        while True:
            sequence, at = self.sequence(tokens, at)
            options.append(sequence)
            if at >= len(tokens) or tokens[at][1] != "|" or tokens[at][0] != "sign":
                return self.one_of(options), at
            at += 1

    def one_of(self, options: list[Callable[[], str]]) -> Callable[[], str]:
        """Writes one of several, picked anew each time."""

        def write() -> str:
            return options[self.pick(len(options))]()

        return write

    def sequence(self, tokens: list[tuple[str, str]], at: int) -> tuple[Callable[[], str], int]:
        """Parse items one after the other."""
        items: list[Callable[[], str]] = []
        while at < len(tokens) and not (tokens[at][0] == "sign" and tokens[at][1] in "|)"):
            item, at = self.item(tokens, at)
            items.append(item)
        return lambda: "".join(item() for item in items), at

    def item(self, tokens: list[tuple[str, str]], at: int) -> tuple[Callable[[], str], int]:
        """Parse one item with its repetition."""
        kind, text = tokens[at]
        at += 1
        if kind == "sign":
            assert text == "("
            single, at = self.alternatives(tokens, at)
            assert tokens[at] == ("sign", ")")
            at += 1
        else:
            single = self.single(kind, text)
        low, high = 1, 1
        if at < len(tokens) and tokens[at] == ("sign", "?"):
            low, high, at = 0, 1, at + 1
        elif at < len(tokens) and tokens[at][0] == "repeat":
            low, high = (int(number) for number in tokens[at][1][1:-1].split(","))
            at += 1
        return lambda: "".join(single() for _ in range(low + self.pick(high - low + 1))), at

    def single(self, kind: str, text: str) -> Callable[[], str]:
        """A literal, a character set or the name of a rule."""
        if kind == "literal":
            written = unescape(text[1:-1])
            return lambda: written
        if kind == "set":
            letters = characters(text)
            return lambda: letters[self.pick(len(letters))]
        assert kind == "name"
        return lambda: self.write(text)


def unescape(text: str) -> str:
    """GBNF's escapes: a backslash before itself or a quote, \\n, and a code point by its number."""
    replaced = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
    return re.sub(r'\\U[0-9A-F]{8}|\\["\\n]', lambda m: replaced.get(m[0]) or chr(int(m[0][2:], 16)), text)


def characters(text: str) -> str:
    """Letters that a character set allows, the awkward ones among them."""
    if not text.startswith("[^"):
        pattern = re.compile(text)
        return "".join(chr(number) for number in range(128) if pattern.fullmatch(chr(number)))
    pattern = re.compile(text)
    return "".join(
        letter for letter in " aZ0{}[],:/'\"\\\x00\x1f\n\t\x7f\x85é€😀\u2028\ufeff" if pattern.fullmatch(letter)
    )


def leaf(draw: st.DrawFn) -> dict[str, Any]:
    """A schema that holds no other."""
    low = draw(st.integers(0, 4))
    leaves: list[dict[str, Any]] = [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string"},
        {"type": ["number", "null"]},
        {"type": "string", "minLength": low, "maxLength": low + draw(st.integers(0, 4))},
        {"type": draw(st.sampled_from(["number", "integer"])), "minimum": 0},
        {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        {"enum": draw(st.lists(st.text(max_size=5) | st.integers() | st.none(), min_size=1))},
        {"const": draw(st.text(max_size=5))},
    ]
    return draw(st.sampled_from(leaves))


@st.composite
def schemas(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    """Schemas of the supported kind."""
    kind = draw(st.sampled_from(["leaf", "array", "object"])) if depth else "leaf"
    if kind == "leaf":
        return leaf(draw)
    if kind == "array":
        low = draw(st.integers(0, 2))
        items = draw(schemas(depth - 1))
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + draw(st.integers(0, 2))}
    properties = draw(st.dictionaries(st.text(max_size=4), schemas(depth - 1), max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@given(schema=schemas(), data=st.data())
def test_everything_the_grammar_allows_is_compact_json_valid_under_the_schema(
    schema: dict[str, Any], data: st.DataObject
) -> None:
    random = data.draw(st.randoms(use_true_random=False))
    text = Interpreter(gbnf(Constraint(schema=schema)), random.randrange).write()
    value = json.loads(text)
    validator: Any = Draft202012Validator(schema)
    validator.validate(value)
    assert not re.search(r"\s", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)), "white space between tokens"
    text.encode("utf-8")  # no lone surrogates


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_a_choice_allows_its_words_and_nothing_else(words: list[str]) -> None:
    grammar = gbnf(Constraint(choice=tuple(words)))
    written = {Interpreter(grammar, lambda count, at=at: min(at, count - 1)).write() for at in range(len(words))}
    assert written == set(words)


def test_the_longest_text_is_bounded_where_the_schema_sets_no_bound() -> None:
    schema = {"type": "array", "items": {"type": "string"}}
    text = Interpreter(gbnf(Constraint(schema=schema)), lambda count: count - 1).write()
    value = json.loads(text)
    assert len(value) == ARRAY_BOUND
    assert {len(entry) for entry in value} == {STRING_BOUND}


def test_properties_come_in_their_declared_order_and_required_ones_always() -> None:
    shortest = Interpreter(gbnf(Constraint(schema=POLICY)), lambda _: 0).write()
    assert shortest == '{"allow":true,"reasons":[]}'
    longest = Interpreter(gbnf(Constraint(schema=POLICY)), lambda count: count - 1).write()
    assert longest == '{"allow":false,"reasons":["COVERAGE","COVERAGE","COVERAGE"]}'


def test_a_listed_value_of_another_type_is_never_written() -> None:
    grammar = gbnf(Constraint(schema={"type": "string", "enum": ["A", 1, None]}))
    assert {Interpreter(grammar, lambda n, at=at: at % n).write() for at in range(3)} == {'"A"'}


def test_equal_constraints_give_the_same_text() -> None:
    assert gbnf(Constraint(schema=POLICY)) is gbnf(Constraint(schema=json.loads(json.dumps(POLICY))))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "^a$"}, "pattern"),
        ({"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}]}}}, r"\$\.a"),
        ({"$ref": "#/x"}, "type None"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "array"}, r"\$\[\]"),
        ({"type": "object", "properties": {}, "required": ["a"]}, "required"),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "null"}}, "additionalProperties"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "string", "maxLength": "many"}, "maxLength"),
        ({"type": "thing"}, "type"),
        ({"enum": [1], "type": "string"}, "enum"),
        ({"enum": ["a"], "maxLength": 3}, "maxLength"),
        ({}, "type"),
    ],
)
def test_what_cannot_be_translated_is_named(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        gbnf(Constraint(schema=schema))


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UnsupportedSchema, match="nested"):
        gbnf(Constraint(schema=schema))


def test_an_empty_constraint_is_refused() -> None:
    with pytest.raises(UnsupportedSchema, match="neither"):
        gbnf(Constraint())
