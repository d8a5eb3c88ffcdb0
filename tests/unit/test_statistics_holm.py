"""Holm's adjustment: known cases, and what it must do for any p values."""

from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.statistics.holm import holm

multitest: Any = import_module("statsmodels.stats.multitest")  # which says nothing of its types

P_VALUES = st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8)


@pytest.mark.parametrize(
    ("p_values", "wanted"),
    [
        ({}, {}),
        ({"one": 0.03}, {"one": 0.03}),
        # By hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and the last not below the one before it.
        ({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}),
        ({"a": 0.9, "b": 0.8, "c": 0.4}, {"a": 1.0, "b": 1.0, "c": 1.0}),
        ({"a": 0.0, "b": 1.0}, {"a": 0.0, "b": 1.0}),
    ],
)
def test_known_cases(p_values: dict[str, float], wanted: dict[str, float]) -> None:
    assert holm(p_values) == pytest.approx(wanted)


@given(P_VALUES)
def test_it_lies_between_each_alone_and_bonferroni_and_keeps_the_order(p_values: dict[str, float]) -> None:
    found = holm(p_values)
    assert list(found) == list(p_values)
    for name, p_value in p_values.items():
        assert p_value <= found[name] <= min(1.0, len(p_values) * p_value)
        assert all(found[name] <= found[other] for other in p_values if p_value < p_values[other])


@pytest.mark.parametrize(
    "p_values", [[0.5], [0.02, 0.01, 0.03], [0.4, 0.001, 0.02, 0.02, 0.9, 0.0, 1.0], [0.012] * 5, [1e-12, 0.3, 0.04]]
)
def test_it_is_that_of_statsmodels(p_values: list[float]) -> None:
    found = holm({str(at): p_value for at, p_value in enumerate(p_values)})
    wanted = multitest.multipletests(p_values, method="holm")[1]
    assert list(found.values()) == pytest.approx(wanted.tolist(), rel=1e-12, abs=1e-300)


@given(P_VALUES, st.sampled_from([0.01, 0.05, 0.2]))
def test_it_calls_what_holms_steps_call(p_values: dict[str, float], alpha: float) -> None:
    called: set[str] = set()
    for place, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        if (len(p_values) - place) * p_values[name] > alpha:
            break
        called.add(name)
    assert {name for name, adjusted in holm(p_values).items() if adjusted <= alpha} == called
