"""The quick check against the general validator: they must agree."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.llm.schema_fit import compile_fit
from libs.llm.structured import _StrictValidator

numbers = st.integers(min_value=-20, max_value=20)
leaf_schemas = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={"minimum": numbers, "maximum": numbers, "exclusiveMinimum": numbers, "exclusiveMaximum": numbers},
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={"minLength": st.integers(0, 3), "maxLength": st.integers(0, 3), "title": st.text()},
    ),
    st.fixed_dictionaries({"type": st.just(["integer", "null"])}, optional={"minimum": numbers}),
    st.fixed_dictionaries({"enum": st.lists(st.none() | st.sampled_from("abc"), min_size=1)}),
)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from("abc")
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={"minItems": st.integers(0, 2), "maxItems": st.integers(0, 2)},
        ),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(names, inner, max_size=3)},
            optional={"required": st.lists(names, unique=True), "additionalProperties": st.just(False) | inner},
        ),
    )


schemas = st.recursive(leaf_schemas, grown, max_leaves=6)
values = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.floats(-20, 20)
    | st.sampled_from([float("nan"), float("inf")])
    | st.sampled_from(["", "a", "b", "abcd"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=8,
)


@given(schemas, values)
def test_both_agree(schema: Any, value: Any) -> None:
    fits = compile_fit(schema)
    assert fits is not None
    assert fits(value) == _StrictValidator(schema).is_valid(value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^a"},
        {"anyOf": [{"type": "string"}]},
        {"enum": [1, True]},
        {"type": "array", "items": {"const": 1}},
        {"type": "object", "properties": {"a": {"not": {}}}},
        {"properties": {"a": {"type": "string"}}},
        False,
    ],
)
def test_what_is_not_plain_is_left_to_the_general_validator(schema: Any) -> None:
    assert compile_fit(schema) is None
