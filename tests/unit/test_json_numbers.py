"""Numbers and stored values on their way into JSON."""

import json
import math
import sys
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from libs.json_numbers import JsonValue, Number, json_number, json_value


class Row(BaseModel):
    price: Number
    target: Number | None
    stored: JsonValue


def digits(number: float) -> int:
    """The significant digits a number is written with."""
    mantissa = repr(number).split("e")[0].replace(".", "").replace("-", "")
    return len(mantissa.strip("0")) or 1


@given(st.floats())
@example(sys.float_info.max)
@example(-sys.float_info.max)
@example(5e-324)
def test_a_number_has_at_most_15_digits_and_stays_close(value: float) -> None:
    rounded = json_number(value)
    if not math.isfinite(value):
        assert rounded is None
        return
    assert rounded is not None
    assert digits(rounded) <= 15
    assert math.isclose(rounded, value, rel_tol=1e-14, abs_tol=1e-320)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(ANY)
def test_any_stored_value_becomes_strict_json_of_the_same_shape(value: Any) -> None:
    text = json.dumps(json_value(value), allow_nan=False)
    assert json.loads(text, parse_float=float) == json_value(value)


def test_the_fields_of_an_answer_are_rounded() -> None:
    row = Row(price=0.1 + 0.2, target=None, stored={"deep": [1 / 3, math.inf, "x", 7]})
    assert row.model_dump_json() == '{"price":0.3,"target":null,"stored":{"deep":[0.333333333333333,null,"x",7]}}'
    assert Row(price=math.nan, target=1, stored=None).model_dump_json() == '{"price":null,"target":1.0,"stored":null}'
