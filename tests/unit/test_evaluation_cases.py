"""A case's JSON: what is read comes back as it was, and whatever is wrong is named by its field."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.evaluation.cases.case import CaseError, EvalCase, Realised, case_from, document_of, vouched_for
from libs.judgement.record import inputs_block, read_inputs
from libs.judgement.types import Signal
from tests.unit.evaluation_case_values import any_cases, good_case, json_values

LATE = "2012-11-20T21:00:01+00:00"


def document(**changes: Any) -> dict[str, Any]:
    return deepcopy(document_of(good_case())) | changes


def at(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Put a value where a dotted path leads."""

    def change(found: dict[str, Any]) -> None:
        *folders, name = path.split(".")
        for folder in folders:
            found = found[folder]
        found[name] = value

    return change


def without(path: str) -> Callable[[dict[str, Any]], None]:
    """Take away what a dotted path leads to."""

    def change(found: dict[str, Any]) -> None:
        *folders, name = path.split(".")
        for folder in folders:
            found = found[folder]
        del found[name]

    return change


@given(any_cases())
def test_a_case_comes_back_as_it_was(case: EvalCase) -> None:
    assert case_from(document_of(case)) == case
    assert case_from(orjson.loads(orjson.dumps(document_of(case)))) == case


def test_the_inputs_are_those_of_a_stored_record() -> None:
    case = good_case()
    assert document_of(case)["inputs"] == inputs_block(case.inputs)
    assert read_inputs(document_of(case)["inputs"]) == case.inputs


@pytest.mark.parametrize(
    ("change", "place", "problem"),
    [
        (without("id"), "id", "is missing"),
        (at("id", ""), "id", "visible text"),
        (at("id", "a\nb"), "id", "one line"),
        (at("id", 7), "id", "valid string, not 7"),
        (at("id", "x" * 201), "id", "at most 200"),
        (at("id", "x" * 151), "id", "more than 150"),
        (without("as_of"), "as_of", "is missing"),
        (at("as_of", "2012-11-20T21:00:00"), "as_of", "has no time zone"),
        (at("as_of", "yesterday"), "as_of", "Invalid isoformat"),
        (at("as_of", 1353445200), "as_of", "ISO 8601"),
        (at("as_of", "0001-01-01T00:00:00+05:00"), "as_of", "out of range"),
        (at("as_of", LATE), "inputs.as_of", "is not the case's as_of"),
        (without("inputs.facts"), "inputs.facts", "is missing"),
        (without("inputs.signal.mean"), "inputs.signal.mean", "is missing"),
        (at("inputs.signal.side", "long"), "inputs.signal.side", "'buy', 'sell' or 'none', not 'long'"),
        (at("inputs.signal.last_price", "100"), "inputs.signal.last_price", "valid number, not '100'"),
        (at("inputs.signal.last_price", 0), "inputs.signal.last_price", "greater than 0"),
        (at("inputs.signal.last_price", float("nan")), "inputs.signal.last_price", "finite"),
        (at("inputs.signal.last_price", True), "inputs.signal.last_price", "valid number"),
        (at("inputs.signal.last_price", 10**400), "inputs.signal.last_price", "number"),
        (at("inputs.signal.expected_return", 1e308), "inputs.signal.expected_return", "less than or equal to 1000000"),
        (at("inputs.factors.trend_50", -1e7), "inputs.factors.trend_50", "greater than or equal to -1000000"),
        (at("inputs.signal.price", 1), "inputs.signal.price", "is unknown"),
        (at("inputs.factors.momentum_20", None), "inputs.factors.momentum_20", "valid number, not None"),
        (at("inputs.coverage_pct", 101), "inputs.coverage_pct", "less than or equal to 100"),
        (at("inputs.coverage_pct", 0.99j), "inputs.coverage_pct", "valid number"),
        (at("inputs.liquidity_usd", -1), "inputs.liquidity_usd", "greater than or equal to 0"),
        (at("inputs.earnings_in_days", 1.5), "inputs.earnings_in_days", "integer"),
        (at("inputs.earnings_in_days", -1), "inputs.earnings_in_days", "greater than or equal to 0"),
        (at("inputs.headlines", "AAPL up"), "inputs.headlines", "list"),
        (at("inputs.headlines", ["up", None]), "inputs.headlines.1", "valid string, not None"),
        (at("inputs.headlines", ["\ud800"]), "inputs.headlines.0", "surrogate"),
        (at("inputs.headlines", ["a\0b"]), "inputs.headlines.0", "NUL"),
        (at("inputs.ticker", "X" * 33), "inputs.ticker", "at most 32"),
        (at("inputs.facts.borrow.as_of", LATE), "inputs.facts.borrow.as_of", "nothing from the future"),
        (at("inputs.facts.borrow.value", float("inf")), "inputs.facts.borrow.value", "not finite"),
        (at("inputs.facts.borrow.value", {1: 2}), "inputs.facts.borrow.value", "no text"),
        (at("inputs.facts.borrow.value", 2**60), "inputs.facts.borrow.value", "2^53"),
        (at("inputs.facts.borrow.value", {"a": {1, 2}}), "inputs.facts.borrow.value", "no JSON"),
        (without("inputs.facts.borrow.source"), "inputs.facts.borrow.source", "is missing"),
        (at("moments", {"factors": LATE}), "moments.factors", "nothing from the future"),
        (at("moments", {"headlines": [LATE]}), "moments.headlines.0", "nothing from the future"),
        (at("moments", {"headlines": []}), "moments.headlines", "0 moments for 1 headlines"),
        (at("moments", {"headlines": "soon"}), "moments.headlines", "Invalid isoformat"),
        (at("moments", {"close": "2012-11-20T21:00:00+00:00"}), "moments.close", "is unknown"),
        (at("moments", None), "moments", "dictionary"),
        (at("target", {"allow": "yes"}), "target.allow", "boolean, not 'yes'"),
        (at("target", True), "target", "dictionary"),
        (at("realised.at", "2012-11-20T21:00:00+00:00"), "realised.at", "an outcome comes later"),
        (at("realised.at", "2012-11-19T21:00:00+00:00"), "realised.at", "an outcome comes later"),
        (at("realised.change", -1.01), "realised.change", "greater than or equal to -1"),
        (at("outcome", 0.1), "outcome", "is unknown"),
        (at("twin", "evil"), "twin", "'masked' or 'hostile'"),
        (at("twin", "masked"), "twin_of", "is missing"),
        (at("twin_of", "other"), "twin", "is missing"),
        (at("attack", "tags"), "attack", "hostile twin"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[dict[str, Any]], None], place: str, problem: str) -> None:
    found = document()
    change(found)
    with pytest.raises(CaseError) as caught:
        case_from(found)
    assert caught.value.place == place
    assert problem in str(caught.value)


def test_a_case_is_not_its_own_twin_and_a_hostile_one_names_its_attack() -> None:
    with pytest.raises(CaseError, match="twin_of: a case cannot be its own twin"):
        case_from(document(twin="masked", twin_of="AAPL-0"))
    with pytest.raises(CaseError, match="attack: belongs to a hostile twin"):
        case_from(document(twin="hostile", twin_of="AAPL-1"))


@pytest.mark.parametrize("nonsense", [None, 1, "case", [], [1]])
def test_what_is_no_object_is_no_case(nonsense: Any) -> None:
    with pytest.raises(CaseError, match="the case: must be a JSON object"):
        case_from(nonsense)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within some JSON, with each name or position in it."""
    names: list[Any] = [*node] if isinstance(node, Mapping) else [*range(len(node))]
    for name in names:
        yield node, name
        if isinstance(node[name], Mapping | list):
            yield from places(node[name])


@given(any_cases(), st.data())
def test_damage_never_ends_in_anything_but_a_case_error(case: EvalCase, data: st.DataObject) -> None:
    found: Any = document_of(case)
    spots = list(places(found))
    strange = json_values | st.floats() | st.integers() | st.binary() | st.text() | st.datetimes()
    for _ in range(data.draw(st.integers(1, 3))):
        node, name = data.draw(st.sampled_from(spots))
        if not isinstance(node, list) and data.draw(st.booleans()):
            node.pop(name, None)
            node[data.draw(st.text(max_size=5))] = data.draw(strange)
        elif isinstance(node, list) or name in node:
            node[name] = data.draw(strange)
    try:
        read = case_from(found)
    except CaseError:
        return
    assert case_from(document_of(read)) == read


def test_what_came_of_a_case_is_signed_by_its_side() -> None:
    def made(side: Any, change: float) -> tuple[float | None, bool | None]:
        inputs = replace(good_case().inputs, signal=Signal(side, 100.0, 101.0, 98.0, 104.0, 0.01))
        case = good_case(inputs=inputs, realised=Realised(change, datetime(2012, 11, 21, 21, tzinfo=UTC)))
        return case.made, case.won

    assert made("buy", 0.02) == (0.02, True)
    assert made("sell", 0.02) == (-0.02, False)
    assert made("sell", -0.02) == (0.02, True)
    assert made("none", 0.02) == (None, None)
    assert made("buy", 0.0) == (0.0, False)
    assert good_case(realised=None).won is None


def test_the_day_is_that_of_the_moment_in_utc() -> None:
    case = case_from(document_of(good_case()))
    assert (case.ticker, case.day.isoformat()) == ("AAPL", "2012-11-20")


def test_features_without_a_moment_are_told() -> None:
    case = good_case()
    assert set(vouched_for(case)) == {
        "signal", "factors", "liquidity_usd", "coverage_pct", "headlines", "earnings_in_days",
    }  # fmt: skip
    known = replace(case, moments={"signal": case.as_of, "headlines": (case.as_of - timedelta(hours=1),)})
    assert set(vouched_for(known)) == {"factors", "liquidity_usd", "coverage_pct", "earnings_in_days"}
    bare = replace(case, inputs=replace(case.inputs, factors={}, liquidity_usd=None, headlines=()))
    assert set(vouched_for(bare)) == {"signal", "coverage_pct", "earnings_in_days"}
