"""Texts that strangers wrote and numbers that people read: neither says more than is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.evaluation.report.numbers import interval, number, with_interval, without_unit
from libs.evaluation.report.paths import found_at, path_of
from libs.evaluation.report.texts import is_hidden, plain, side_by_side, visible
from tests.unit.evaluation_report_reading import Read, Shown, says

TEXTS = st.text(st.characters(), max_size=60)


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.9833, "rate", "98.3 %"), (1.0, "rate", "100.0 %"), (0.0, "rate", "0.0 %"), (0.99996, "rate", "99.996 %"),
        (0.9999999, "rate", "> 99.999 %"), (0.0000001, "rate", "< 0.001 %"), (0.00041, "rate", "0.04 %"),
        (0.97996, "low", "97.9 %"), (0.98, "low", "98.0 %"), (0.00121, "return", "+0.12 %"),
        (-0.0012, "return", "\N{MINUS SIGN}0.12 %"), (0.0, "return", "0.00 %"),
        (0.027, "points", "+2.7 percentage points"),
        (1240.4, "ms", "1,240 ms"), (88.12, "ms", "88.1 ms"), (0.000213, "usd", "0.000213 USD"),
        (0.00000042, "usd", "0.00000042 USD"), (701.4, "tokens", "701"), (31.72, "tokens", "31.7"),
        (0.0712, "score", "0.071"),
        (1234567, "count", "1,234,567"), (0.0003, "p", "< 0.001"), (0.0412, "p", "0.041"), (0.98, "exact", "0.98"),
        (None, "rate", "\N{EN DASH}"), (float("nan"), "ms", "\N{EN DASH}"), (812.4, "s", "812 s"),
    ],
)  # fmt: skip
def test_a_number_as_people_read_it(value: float | None, unit: str, said: str) -> None:
    assert number(value, unit) == said


UNITS = st.sampled_from(["rate", "ms", "tokens", "usd", "return", "points", "s"])


@given(st.floats(-1, 1, allow_nan=False), UNITS)
def test_what_is_said_is_the_number(value: float, unit: str) -> None:
    exact = value if unit in {"return", "points"} else abs(value)
    told = number(exact, unit)
    assert says(Shown("", "", unit, told), exact) or abs(exact) < 1e-5


@given(st.floats(0, 1))
def test_only_all_is_a_hundred_percent_and_only_none_is_zero(value: float) -> None:
    told = number(value, "rate")
    assert (told == "100.0 %") == (100 * value == 100)
    assert (told == "0.0 %") == (value == 0)


def test_an_interval_names_its_unit_once() -> None:
    figure = {"value": 0.983, "low": 0.961, "high": 0.993, "n": 300, "unit": "rate"}
    assert with_interval(figure) == "98.3 % (96.1 to 99.3 %)"
    assert interval(figure | {"low": None}) == ""
    assert with_interval(None) == "\N{EN DASH}"
    assert without_unit("> 99.999 %") == "> 99.999 %"


@given(TEXTS)
def test_no_text_becomes_a_tag_or_hides_a_character(text: str) -> None:
    made = str(visible(text))
    read = Read(made)
    assert read.open == []
    assert set(read.tags) <= {"span"}
    assert not any(is_hidden(each) for each in made)


@given(TEXTS)
def test_a_terminal_sees_no_control_character(text: str) -> None:
    for lines in (False, True):
        told = plain(text, lines=lines)
        assert not any(is_hidden(each) for each in told)
        assert lines or "\n" not in told


@given(TEXTS)
def test_what_is_printed_for_all_to_see_stays_as_it_is(text: str) -> None:
    seen = "".join(each for each in text if not is_hidden(each) and each not in "\n\t")
    assert plain(seen) == seen


def test_a_long_text_is_cut_and_says_so() -> None:
    assert plain("x" * 2500) == "x" * 2000 + " … (500 characters more)"
    assert "500 characters more" in visible("x" * 2500)


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_texts_side_by_side_lose_nothing(texts: list[str]) -> None:
    for text, made in zip(texts, side_by_side(texts), strict=True):
        read = Read(str(made))
        assert set(read.tags) <= {"span", "mark"}
        if not any(is_hidden(each) for each in text):
            assert read.words == text


def test_only_the_words_that_differ_are_marked() -> None:
    first, second = side_by_side(["buy on strong earnings now", "buy on weak earnings now"])
    assert str(first) == "buy on <mark>strong</mark> earnings now"
    assert str(second) == "buy on <mark>weak</mark> earnings now"


def test_texts_with_little_in_common_are_left_alone() -> None:
    assert "<mark>" not in "".join(side_by_side(["all of this", "none 4 2 here, really: nothing"]))


def test_a_text_made_to_be_slow_to_compare_is_not_compared() -> None:
    assert "<mark>" not in "".join(side_by_side(["a b " * 2000, "b a " * 2000]))


@given(st.lists(st.text(st.characters(), min_size=1), min_size=1, max_size=4), st.integers())
def test_a_path_leads_where_it_says(names: list[str], value: int) -> None:
    document: object = value
    for name in reversed(names):
        document = {name: document}
    path = path_of(names)
    assert found_at(document, path) == value
    assert not any(is_hidden(each) for each in path)
