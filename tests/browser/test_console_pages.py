"""Every page of the console in a browser: it stands without a complaint, fits, can be read, and tells the truth."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.stack import eventually
from tests.browser import axe
from tests.browser.console_desk import NEWEST_FEED, SCREENSHOTS, Desk, Scheme, complaints

pytestmark = pytest.mark.timeout(600)

MOMENT = "to_char(as_of at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS') || '%2B00:00'"


def first(path: str, statement: str) -> Callable[[Desk], str]:
    """A page about something that the database names."""
    return lambda desk: path + desk.one(statement)


PAGES: dict[str, Callable[[Desk], str]] = {
    "now": lambda _: "/",
    "forecasts": lambda _: "/forecasts",
    "decision": first(
        "/forecasts/", f"select id || '?as_of=' || {MOMENT} from forecasts where ticker = 'AAPL' order by as_of limit 1"
    ),
    "gate": lambda _: "/gate",
    "prompts": lambda _: "/prompts",
    "prompt": lambda _: "/prompts/policy",
    "evaluations": lambda _: "/evaluations",
    "evaluation": first("/evaluations/", "select id from evaluations limit 1"),
    "calls": lambda _: "/calls",
    "call": first("/calls/", "select id from llm_calls where prompt_key = 'policy' order by ts limit 1"),
    "panic": lambda _: "/panic",
}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("light", 390), ("dark", 1200), ("dark", 390)])
@pytest.mark.parametrize("name", PAGES)
def test_it_stands_fits_and_can_be_read(desk: Desk, name: str, scheme: Scheme, width: int) -> None:
    visit = desk.visitor(width=width, scheme=scheme)
    page = desk.see(visit, PAGES[name](desk))
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SCREENSHOTS / f"{name}-{scheme}-{width}.png"), full_page=True)
    assert axe.findings(page) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert complaints(visit) == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sign_in_can_be_read_too(desk: Desk, scheme: Scheme) -> None:
    page = desk.browser.chromium.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page.goto(desk.url("/"))
    assert page.url.startswith(desk.url("/sign-in"))
    assert axe.findings(page) == []
    page.fill("#key", "lexi_not-a-key")
    page.click("button.act")
    assert "not known here" in page.locator("[role=alert]").inner_text()
    assert axe.findings(page) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.close()


def test_light_and_dark_are_two_faces(desk: Desk) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    for path in ("/", "/panic"):
        faces = {desk.see(desk.visitor(scheme=scheme), path).evaluate(ground) for scheme in ("light", "dark")}
        assert len(faces) == 2


NEWEST = f"""
    select h.ticker, to_char(h.as_of at time zone 'utc', 'YYYY-MM-DD'),
      f.features -> 'llm' -> 'policy' ->> 'status', (f.features -> 'llm' -> 'policy' -> 'decision' ->> 'allow'),
      length(f.features -> 'llm' -> 'rationale' ->> 'text')
    from forecast_heads h join forecasts f on f.as_of = h.as_of and f.id = h.id where h.feed = {NEWEST_FEED}
    order by h.ticker
"""


def test_now_shows_the_newest_forecasts_as_they_were_written(desk: Desk) -> None:
    with desk.still("services.forecast"):
        page = desk.see(desk.visitor(), "/")
        expected = desk.rows(NEWEST)
        assert len(expected) == 5

        def same() -> bool | None:
            cards = sorted(page.locator("article").all_inner_texts())
            found = [card.split("\n") for card in cards]
            return (
                True if [(card[0], card[1][:10]) for card in found] == [(row[0], row[1]) for row in expected] else None
            )

        eventually(same, what="the cards are those of the database", within_s=20)
        for ticker, _, status, allow, length in expected:
            text = page.locator(f"article[aria-label={ticker}]").inner_text()
            assert f"policy {status if allow == '' else {'true': 'allow', 'false': 'deny'}[allow]}" in text
            assert len(text.split("\n")[-1]) == int(length)


def test_now_shows_the_switch_and_the_feed_of_the_database(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/")
    page.get_by_text(f"{desk.one(f'select {NEWEST_FEED}')}, 201").first.wait_for()
    _, stands = desk.stack.get("API_PORT", "/strategist/switches")
    by = next(each["set_by"] for each in stands if each["name"] == "LLM_SHADOW_MODE")
    page.get_by_text(f"shadow: policy verdicts are only logged (by {by})").first.wait_for()
    page.get_by_text("entries may be made").wait_for()


def test_calls_are_those_on_record_page_by_page(desk: Desk) -> None:
    with desk.still("services.forecast"):
        desk.settled("select count(*) from llm_calls where prompt_key = 'policy'")
        ids = [row[0] for row in desk.rows("select id from llm_calls where prompt_key = 'policy' order by id desc")]
        assert len(ids) > 55
        page = desk.see(desk.visitor(), "/calls?key=policy")
        assert links(page, "Calls, newest first") == [f"/calls/{each}" for each in ids[:50]]
        page.get_by_role("link", name="Older").click()
        page.wait_for_url("**before=**")
        assert links(page, "Calls, newest first") == [f"/calls/{each}" for each in ids[50:100]]


def test_a_search_finds_the_calls_that_failed_and_no_others(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/calls")
    page.get_by_label("Prompt key").fill("policy")
    page.get_by_label("Outcome").click()
    page.get_by_role("option", name="not successful").click()
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**success=false**")
    found = links(page, "Calls, newest first")
    assert found
    ids = ", ".join(f"'{each.rpartition('/')[2]}'" for each in found)
    assert desk.rows(f"select distinct success, prompt_key from llm_calls where id in ({ids})") == [["f", "policy"]]


def test_a_call_shows_what_was_sent_and_received(desk: Desk) -> None:
    call = desk.one("select id from llm_calls where prompt_key = 'policy' and not success order by ts limit 1")
    page = desk.see(desk.visitor(), f"/calls/{call}")
    assert page.get_by_role("group", name="reply").inner_text() == desk.one(
        f"select reply from llm_bodies where id = '{call}'"
    )


def test_forecasts_are_the_rows_of_the_ticker(desk: Desk) -> None:
    with desk.still("services.forecast"):
        rows = desk.rows(
            "select to_char(as_of at time zone 'utc', 'YYYY-MM-DD HH24:MI'), last_price, lower, upper from forecasts "
            f"where ticker = 'AAPL' and feed = {NEWEST_FEED} order by as_of desc limit 250"
        )
        page = desk.see(desk.visitor(), "/forecasts?ticker=AAPL")
        label = "Forecasts, newest first"
        moments = cells(page, label, 1)
        assert moments == [row[0] for row in rows][: max(20, len(moments))]
        for column, place in ((2, 1), (4, 2), (5, 3)):
            assert cells(page, label, column) == [f"{float(row[place]):.6g}" for row in rows[: len(moments)]]


def test_the_gate_shows_the_newest_verdicts_and_the_report_that_was_made(desk: Desk) -> None:
    with desk.still("follow_signal", "services.jobs"):
        rows = desk.rows("select client_order_id, verdict, mode from gate_verdicts order by seq desc limit 50")
        page = desk.see(desk.visitor(), "/gate")
        label = "The newest verdicts"
        assert cells(page, label, 9) == [row[0] for row in rows]
        assert [each.split(",")[0] for each in cells(page, label, 4)] == [row[1] for row in rows]
        summary = desk.one("select content ->> 'summary' from reports where name = 'shadow'")
        page.get_by_text(summary, exact=False).first.wait_for()


def test_prompts_are_those_in_force(desk: Desk) -> None:
    _, known = desk.stack.get("API_PORT", "/llm/admin/prompts")
    page = desk.see(desk.visitor(), "/prompts")
    label = "Prompts and what is in force"
    shown = dict(zip(cells(page, label, 1), cells(page, label, 2), strict=True))
    assert shown == {each["key"]: each["active"] for each in known}


def test_evaluations_are_those_registered(desk: Desk) -> None:
    page = desk.see(desk.visitor(), "/evaluations")
    ids = [f"/evaluations/{row[0]}" for row in desk.rows("select id from evaluations order by created_at desc")]
    shown = links(page, "Evaluations, newest first")
    assert [each for each in shown if not each.endswith("/report")] == ids
    assert [each for each in shown if each.endswith("/report")] == [f"{each}/report" for each in ids]


def cells(page: Any, label: str, column: int) -> list[str]:
    """A column of the table with this label."""
    found = page.get_by_role("region", name=label, exact=True)
    found.locator("tbody tr").first.wait_for()
    return found.locator(f"tbody tr td:nth-child({column})").all_inner_texts()


def links(page: Any, label: str) -> list[str]:
    """Where the links of a table lead."""
    found = page.get_by_role("region", name=label, exact=True).locator("tbody a")
    found.first.wait_for()
    return [each.get_attribute("href") for each in found.all()]
