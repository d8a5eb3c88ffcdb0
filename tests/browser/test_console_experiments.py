"""The metrics of an experiment over time: each chart and its table say what the jobs' report says."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from services.analytics.console.pages.prompts.course import now_words, rows
from tests.browser import axe
from tests.browser.conftest import Visit
from tests.browser.console_desk import SCREENSHOTS, Desk, complaints
from tests.browser.test_console_pages import cells

pytestmark = pytest.mark.timeout(600)

BANDS = """each => each.querySelectorAll('svg path[fill="var(--accent)"][fill-opacity="0.2"]').length"""


@pytest.fixture
def visit(desk: Desk) -> Iterator[Visit]:
    """Somebody with the operator's key, on a phone at night."""
    visitor = desk.visitor(width=390, scheme="dark")
    yield visitor
    visitor.page.context.close()


def courses(desk: Desk) -> list[Mapping[str, Any]]:
    """What the jobs made."""
    return json.loads(desk.one("select content -> 'courses' from reports where name = 'course:policy'"))


def section(page: Any, course: Mapping[str, Any]) -> Any:
    """Where the page has a course."""
    name = f"{course['metric'].replace('_', ' ')} of {course['candidate']} less 1.0.0"
    return page.get_by_role("region", name=name, exact=True)


def test_each_metric_has_a_chart_and_a_table_that_say_what_the_report_says(desk: Desk, visit: Visit) -> None:
    with desk.still("services.forecast", "services.jobs"):
        found = [course for course in courses(desk) if course["points"]]
        page = desk.see(visit, "/prompts/policy")
        page.get_by_text("The intervals hold at every look").wait_for()
        assert page.locator("section.lexi-course").count() == len(found) > 5
        for course in found:
            place = section(page, course)
            assert now_words(course) in place.inner_text()
            chart = place.locator(".lexi-small-chart")
            assert now_words(course) in chart.get_attribute("aria-label")
            known = any(point["low"] is not None for point in course["points"])
            page.wait_for_function(f"each => ({BANDS})(each) === {int(known)}", arg=chart.element_handle())
        course = next(each for each in found if each["metric"] == "deny_rate")
        place = section(page, course)
        assert place.locator("tbody tr").count() == 0
        place.locator("summary").focus()
        page.keyboard.press("Enter")
        label = place.get_by_role("region").first.get_attribute("aria-label")
        expected = rows(course)
        for column in (1, 2, 3):
            assert cells(page, label, column) == [row[column - 1] for row in expected]
        assert axe.findings(page) == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
        page.screenshot(path=str(SCREENSHOTS / "experiment-dark-390.png"), full_page=True)
    assert complaints(visit) == []


def test_who_may_only_read_is_told_so(desk: Desk) -> None:
    page = desk.see(desk.visitor(key=desk.another_key("eve", "read")), "/prompts/policy")
    page.get_by_text("reports on experiments ask for").first.wait_for()
    assert page.locator("section.lexi-course").count() == 0
    page.context.close()
