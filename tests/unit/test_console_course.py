"""How an experiment went, in words, rows and a chart: what the page makes of the report on it."""

import math
from typing import Any

import pytest

from services.analytics.console.pages.prompts.course import now_words, rows
from services.analytics.console.pages.prompts.course_chart import limits, options


def point(day: int, value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"day": f"2026-01-{day:02}", "value": value, "low": low, "high": high}


def course(
    *points: dict[str, Any], unit: str = "rate", better: str | None = "up", worth: float = 0.01
) -> dict[str, Any]:
    named = {"candidate": "1.1.0", "metric": "validity", "unit": unit, "better": better, "worth": worth}
    return {**named, "points": points}


def test_where_it_stands_is_said_in_the_metric_s_unit() -> None:
    assert now_words(course(point(1, 0.5), point(2, 0.021, 0.009, 0.033))) == (
        "+2.10 points (+0.90 to +3.30 points). More is better, from 1.00 points on it is worth having."
    )
    timed = now_words(course(point(1, -120.0, -200.0, -40.0), unit="milliseconds", better="down", worth=100.0))
    assert timed.startswith("-120 ms (-200 to -40 ms). Less is better, from 100 ms on")


def test_without_an_interval_it_says_why() -> None:
    assert "(no interval: fewer than 20 market days" in now_words(course(point(1, 0.02), better=None))


def test_the_table_has_every_look_newest_first() -> None:
    found = rows(course(point(1, 0.02), point(2, -0.01, -0.03, 0.01)))
    assert found == [
        ("2026-01-02", "-1.00 points", "-3.00 to +1.00 points"),
        ("2026-01-01", "+2.00 points", "not yet"),
    ]


def test_the_chart_holds_the_numbers_of_the_report_in_points() -> None:
    band_from, band, line = options(course(point(1, 0.5), point(2, 0.02, -0.01, 0.05), point(3, 0.03, 0.01, 0.05)))[
        "series"
    ]
    assert [each[1:] for each in line["data"]] == [[50.0, None, None], [2.0, -1.0, 5.0], [3.0, 1.0, 5.0]]
    assert line["markArea"]["data"] == [[{"yAxis": -1.0}, {"yAxis": 1.0}]]
    assert [each[1] for each in band_from["data"]] == [-1.0, 1.0]
    assert [each[1] for each in band["data"]] == [6.0, 4.0], "from the lower end to the upper"
    assert [each[0] for each in band["data"]] == [each[0] for each in line["data"]][1:]
    days = [each[0] for each in line["data"]]
    assert days[1] - days[0] == 24 * 3600 * 1000


def test_the_first_days_may_run_out_of_the_picture() -> None:
    wild = [(day, 90.0 / day, None, None) for day in range(1, 20)]
    calm = [(day, 1.0, -40.0 if day < 25 else 0.5, 40.0 if day < 25 else 1.5) for day in range(20, 31)]
    low, high = limits([*wild, *calm], worth=1.0)
    assert -2 < low < -1
    assert 1.5 < high < 2


@pytest.mark.parametrize("worth", [0.0, 1.0])
def test_a_course_of_nothing_but_zeros_has_room(worth: float) -> None:
    low, high = limits([(1, 0.0, None, None), (2, 0.0, 0.0, 0.0)], worth=worth)
    assert low < -worth <= worth < high
    assert math.isclose(-low, high)
