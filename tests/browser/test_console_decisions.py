"""From the chart to a decision, and asking again from there: as recorded, anew, and through another version."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import Visit
from tests.browser.console_desk import HOSTILE, NEWEST_FEED, Desk, complaints

pytestmark = pytest.mark.timeout(600)

SUDDEN = "A sudden turn."
# The chart's rightmost mark of a kind: the slider below it and the legend have none.
RIGHTMOST = """colour => {
  const marks = Array.from(document.querySelectorAll(`.lexi-chart svg path[fill="var(--${colour})"]`))
    .map(each => each.getBoundingClientRect()).filter(box => box.width > 4 && box.width < 20);
  const box = marks.sort((a, b) => b.x - a.x)[0];
  return box && [box.x + box.width / 2, box.y + box.height / 2];
}"""
NEWEST = f"""
    select id from forecasts where ticker = 'AAPL' and feed = {NEWEST_FEED}
      and features #>> '{{llm,policy,decision,allow}}' = 'true'
      and features #>> '{{llm,policy,rules,allow}}' = 'true' order by as_of desc limit 1"""
ANSWERED = """
    select id from forecasts where ticker = 'AAPL' and features #>> '{llm,rationale,status}' = 'ok'
      and features #>> '{llm,rationale,call_id}' is not null order by as_of limit 1"""


@pytest.fixture
def visit(desk: Desk) -> Iterator[Visit]:
    """Somebody with the operator's key."""
    visitor = desk.visitor()
    yield visitor
    visitor.page.context.close()


def test_a_mark_of_the_chart_opens_its_decision(desk: Desk, visit: Visit) -> None:
    with desk.still("services.forecast"):
        newest = desk.settled(NEWEST)
        page = desk.see(visit, "/forecasts?ticker=AAPL")
        page.wait_for_function(RIGHTMOST, arg="good")
        page.mouse.click(*page.evaluate(RIGHTMOST, "good"))
        page.wait_for_url(f"**/forecasts/{newest}?**")
        page.get_by_text(newest, exact=True).wait_for()
        page.get_by_text(": allow.").wait_for()
    assert complaints(visit) == []


def test_a_call_is_replayed_as_recorded_anew_and_through_another_version(desk: Desk, visit: Visit) -> None:
    forecast = desk.one(ANSWERED)
    asked = "features #>> '{llm,rationale,call_id}', features #>> '{llm,rationale,prompt_version}'"
    call, version = desk.rows(f"select {asked} from forecasts where id = '{forecast}'")[0]
    other = next(each for each in ("1.0.0", "1.1.0") if each != version)
    page = desk.see(visit, f"/forecasts/{forecast}")
    part = Part(page)

    part.press("As recorded")
    part.says(f"As recorded. The model was not called; version {version}. Nothing differs from the original.")
    assert " ".join(HOSTILE.split()) in " ".join(part.text("reply of the replay").split())
    with desk.model.saying(SUDDEN):
        part.press("Ask the model again")
        part.says(f"Asked again. The model was called; version {version}. It differs as shown below.")
        assert f"+{SUDDEN}" in lines(part)
        assert [line for line in lines(part) if line.startswith("-A steady drift.")]
        assert page.get_by_role("combobox", name="Version of the rationale").input_value() == other
        part.press("Through this version")
        part.says(f"Through version {other}. The model was called; version {other}. It differs as shown below.")
        assert f"+{SUDDEN}" in lines(part)
    part.press("Through this version")
    part.says(f"Through version {other}. The model was not called; version {other}. It differs as shown below.")

    made = f"select source, prompt_version, after from replays where call_id = '{call}' order by at"
    kept = [(source, number, json.loads(after)["text"]) for source, number, after in desk.rows(made)]
    assert ("model", version, SUDDEN) in kept
    assert ("model", other, SUDDEN) in kept
    pressed = f"select reason, outcome from presses where action = 'replay' and subject = '{call}' order by id"
    assert desk.rows(pressed) == [
        [how, "200 done"]
        for how in ("as recorded", "asked again", f"through version {other}", f"through version {other}")
    ]
    assert complaints(visit) == []


class Part:
    """The part of the page that replays the rationale."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._buttons = page.get_by_role("group", name="Replay the rationale")
        self._buttons.get_by_role("combobox").and_(page.locator(":enabled")).wait_for()

    def press(self, button: str) -> None:
        """Press a button of it."""
        self._buttons.get_by_role("button", name=button, exact=True).click()

    def says(self, words: str) -> None:
        """Wait for what it says in the end."""
        self.page.get_by_text(words, exact=True).wait_for()

    def text(self, name: str) -> str:
        """A text that it shows."""
        return self.page.get_by_role("group", name=name, exact=True).inner_text()


def lines(part: Part) -> list[str]:
    """The difference of the texts."""
    return part.text("Difference of the texts").split("\n")


def test_an_evaluation_s_report_is_opened_from_its_page(desk: Desk, visit: Visit) -> None:
    page = desk.see(visit, "/evaluations")
    page.get_by_role("region", name="Evaluations, newest first").locator("tbody a").first.click()
    page.wait_for_url("**/evaluations/*-*")
    with page.expect_response("**/report") as answer:
        page.get_by_role("link", name="Open the report").click()
    assert answer.value.status == 200
    assert "sandbox" in answer.value.headers["content-security-policy"]
    page.get_by_text("Missed: 2 of 4 thresholds.").first.wait_for()
    assert page.locator("script, iframe, form, a[href^='javascript:']").count() == 0
    assert complaints(visit) == []
