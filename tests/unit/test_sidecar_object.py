"""Phi-3's object: what the sidecar lets through is exactly what the contract allows."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.registry import Registry
from libs.llm.structured import Parsed
from libs.upstreams.grammar import gbnf
from services.sidecar.asking import LONGEST_REVIEWED
from tests.unit.sidecar_cases import MEMBERS, by_the_contract

FILE = Path(__file__).parents[2] / "configs" / "sidecar_prompts.yaml"
REGISTRY = Registry.load(FILE)
ADJUSTMENT = REGISTRY.active("adjustment")
OUTPUT = REGISTRY.output(ADJUSTMENT)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)
numbers = st.one_of(st.integers(-1000, 1000), st.floats(allow_nan=False, allow_infinity=False, width=32))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
valid = st.fixed_dictionaries(
    {
        "ticker": st.text(st.sampled_from("ABCXYZ.-^"), max_size=32),
        "action": st.sampled_from(["adjust", "pass", "abort"]),
        "confidence": st.one_of(st.sampled_from([0, 1]), st.floats(0, 1)),
        "rationale": texts,
    },
    optional={
        "side": st.sampled_from(["LONG", "SHORT"]),
        "new_stop_pct": st.one_of(st.none(), numbers),
        "new_target_pct": st.one_of(st.none(), numbers),
    },
)


@st.composite
def near_misses(draw: st.DrawFn) -> Any:
    """A valid object with some members replaced by anything, left out, or added."""
    made: dict[str, Any] = draw(valid)
    for name in draw(st.lists(st.sampled_from(sorted(MEMBERS)), max_size=3)):
        if draw(st.booleans()):
            made.pop(name, None)
        else:
            made[name] = draw(anything)
    if draw(st.integers(0, 4)) == 0:
        made[draw(texts)] = draw(anything)
    return made


@given(valid)
def test_every_valid_object_passes_unchanged(made: dict[str, Any]) -> None:
    parsed = OUTPUT.parse(json.dumps(made))
    assert isinstance(parsed, Parsed), (made, parsed)
    assert parsed.value == made
    assert by_the_contract(parsed.value)


@given(near_misses())
def test_what_passes_is_what_the_contract_says(made: Any) -> None:
    """A symbol of more than 32 characters is the one thing that is stricter here."""
    passes = isinstance(OUTPUT.parse(json.dumps(made)), Parsed)
    longer = isinstance(made.get("ticker"), str) and len(made["ticker"]) > 32
    assert passes == (by_the_contract(made) and not longer), made


@given(st.text(max_size=60))
def test_no_text_at_all_gets_past_but_an_object(text: str) -> None:
    parsed = OUTPUT.parse(text)
    assert not isinstance(parsed, Parsed) or by_the_contract(parsed.value)


@given(valid, st.integers(0, 200))
def test_half_an_object_is_none(made: dict[str, Any], cut: int) -> None:
    text = json.dumps(made)
    assert not isinstance(OUTPUT.parse(text[: min(cut, len(text) - 1)]), Parsed)
    assert not isinstance(OUTPUT.parse(text, finish_reason="length"), Parsed)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"0.5"', "1.01", "-0.01"])
def test_a_confidence_is_a_number_from_0_to_1(number: str) -> None:
    text = f'{{"ticker": "A", "action": "pass", "confidence": {number}, "rationale": "r"}}'
    assert not isinstance(OUTPUT.parse(text), Parsed)


def test_every_engine_can_be_held_to_it() -> None:
    """It has a grammar for llama.cpp; the others take the schema as it is."""
    assert ADJUSTMENT.constraint is not None
    grammar = gbnf(ADJUSTMENT.constraint)
    for word in (*MEMBERS, "adjust", "pass", "abort", "LONG", "SHORT"):
        assert word in grammar


def test_every_version_of_the_file_is_released() -> None:
    assert set(REGISTRY.keys()) == {"generate", "adjustment", "adjustment_review", "health"}
    assert list(REGISTRY.drafts()) == []


def test_a_review_is_cut_nowhere_before_the_sidecar_refuses() -> None:
    properties = REGISTRY.active("adjustment_review").inputs_schema["properties"]
    assert {name: one["maxLength"] for name, one in properties.items()} == {
        "request": LONGEST_REVIEWED,
        "proposal": LONGEST_REVIEWED,
    }
